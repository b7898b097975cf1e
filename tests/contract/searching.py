"""Search and search_batch: answers, order, thresholds, shapes. Small collections, where every answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.support.data import integer_vectors, normal_vectors
from tests.support.oracle import OracleCollection, check_hits
from vecstore import Collection, Database, Hit, Hits, SearchBatch

from .base import PAYLOADS, VECTORS, DatabaseContract, ids_of

METRICS = ["cosine", "ip", "l2"]


def filled(database: Database, metric: Any, rows: Any, **keywords: Any) -> tuple[Collection, OracleCollection]:
    """Return a collection of these rows, with the payload ``{"n": id % 7}``, and the oracle of it."""
    docs = database.create_collection("filled", rows.shape[1], metric=metric, fields={"n": "int64"}, **keywords)
    oracle = OracleCollection("filled", rows.shape[1], metric, {"n": "int64"})
    payloads = [{"n": i % 7} for i in range(len(rows))]
    docs.upsert(range(len(rows)), rows, payloads)
    oracle.upsert(range(len(rows)), rows, payloads)
    return docs, oracle


class SearchingContract(DatabaseContract):
    """Search and search_batch."""

    def test_hits_are_a_sequence_of_hit(self, database: Database, docs: Collection) -> None:
        """`Hits` is a sequence, nearest first, that knows its view and whether it was exact."""
        hits = docs.search([1, 0, 0, 0])
        assert isinstance(hits, Hits)
        assert len(hits) == 4
        assert all(type(hit) is Hit for hit in hits)
        assert (hits[0].id, hits[0].score, hits[0].payload, hits[0].vector) == (0, 0.0, PAYLOADS[0], None)
        assert type(hits[0].id) is int
        assert type(hits[0].score) is float
        assert ids_of(hits[1:3]) == ids_of(list(hits))[1:3]
        assert hits[-1].id == list(hits)[3].id
        assert hits.lsn == database.status()["lsn"]
        assert hits.exact is True
        with pytest.raises(IndexError):
            hits[4]

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("exact", [True, False])
    def test_answers_are_the_oracles(self, database: Database, metric: str, exact: bool) -> None:
        """On few rows every search is exact: ids, order and scores are the oracle's, k beyond the rows included."""
        rows = normal_vectors(300, 16, seed=1)
        docs, oracle = filled(database, metric, rows)
        for query in normal_vectors(10, 16, seed=2):
            for k in (1, 10, 1_000):
                hits = docs.search(query, k, exact=exact)
                check_hits(hits, oracle, query)
                assert ids_of(hits) == [id for id, _ in oracle.search(query, k)]

    @pytest.mark.parametrize("metric", ["ip", "l2"])
    def test_ties_go_by_id(self, database: Database, metric: str) -> None:
        """Equal scores are ordered by id, and a tie at the end of k is cut by id too."""
        rows = integer_vectors(400, 3, seed=3, high=4)
        docs, oracle = filled(database, metric, rows)
        docs.update(range(399, -1, -2), vectors=rows[399::-2])
        for query in integer_vectors(6, 3, seed=4, high=4):
            for k in (1, 7, 50, 400):
                assert [(hit.id, hit.score) for hit in docs.search(query, k, exact=True)] == oracle.search(query, k)

    def test_ties_of_str_ids_go_by_code_point(self, database: Database) -> None:
        """Equal points with str ids come in the order of their code points."""
        docs = database.create_collection("named", 2)
        ids = ["z", "a", "\U0001f600", "\ue000", "aa", "Z"]
        docs.upsert(ids, np.ones((6, 2)))
        assert ids_of(docs.search([1, 1])) == sorted(ids)
        assert ids_of(docs.search([1, 1], 3)) == sorted(ids)[:3]

    def test_cosine_scores_do_not_depend_on_length(self, database: Database) -> None:
        """Under cosine, rows and queries of any length score by direction alone, within -1 and 1."""
        docs = database.create_collection("angles", 2)
        docs.upsert([1, 2, 3, 4], np.array([[1e-12, 0], [3e15, 3e15], [0, 7], [-2, 0]]))
        hits = docs.search([1e-6, 0])
        assert ids_of(hits) == [1, 2, 3, 4]
        assert [hit.score for hit in hits] == pytest.approx([1, math.sqrt(0.5), 0, -1], abs=1e-6)

    def test_offset_leaves_out_the_nearest(self, database: Database) -> None:
        """Pages by offset are the parts of one answer."""
        rows = normal_vectors(200, 8, seed=5)
        docs, oracle = filled(database, "l2", rows)
        whole = [id for id, _ in oracle.search(rows[0], 200)]
        assert ids_of(docs.search(rows[0], 10, offset=0)) == whole[:10]
        assert ids_of(docs.search(rows[0], 10, offset=25)) == whole[25:35]
        assert ids_of(docs.search(rows[0], 10, offset=195)) == whole[195:]
        assert len(docs.search(rows[0], 10, offset=500)) == 0

    @pytest.mark.parametrize(
        ("metric", "threshold", "expected"),
        [("l2", 4.0, [0, 3]), ("l2", 0.0, [0]), ("l2", -1.0, []), ("ip", 1.0, [0, 3]), ("ip", 0.0, [0, 3, 1, 2]),
         ("cosine", 0.5, [0, 3]), ("cosine", 0.51, [0]), ("cosine", 2.0, [])],
    )  # fmt: skip
    def test_score_threshold(self, database: Database, metric: Any, threshold: float, expected: list[int]) -> None:
        """Hits farther than the threshold are left out, those at it stay: below for cosine and ip, above for l2."""
        docs = database.create_collection("near", 4, metric=metric)
        docs.upsert([0, 1, 2, 3], VECTORS)
        hits = docs.search([1, 0, 0, 0], score_threshold=threshold)
        assert sorted(ids_of(hits)) == sorted(expected)

    def test_threshold_and_offset_together(self, docs: Collection) -> None:
        """The threshold cuts the answer that the offset moved along."""
        assert ids_of(docs.search([1, 0, 0, 0], 2, offset=1, score_threshold=5.0)) == [3, 1]

    def test_with_vector_gives_the_stored_vector(self, docs: Collection) -> None:
        """Vectors come with hits when asked for."""
        for hit in docs.search([1, 1, 1, 1], with_vector=True, with_payload=False):
            assert hit.vector is not None
            assert hit.vector.dtype == np.float32
            assert hit.vector.tolist() == VECTORS[int(hit.id)].tolist()
            assert hit.payload == {}

    @pytest.mark.parametrize("query", [[1, 0, 0, 0], (1.0, 0, 0, 0), np.eye(4)[0], np.eye(4, dtype=np.float16)[:, 0]])
    def test_queries_in_every_form(self, docs: Collection, query: Any) -> None:
        """Queries are any array-like of real numbers, as rows are."""
        assert docs.search(query, 1)[0].id == 0
        assert docs.search_batch([query, query], 1).ids.tolist() == [[0], [0]]

    def test_batch_has_the_shape_asked(self, docs: Collection) -> None:
        """`ids` are int64 padded with -1, `scores` float32 padded with nan, both (queries, k)."""
        batch = docs.search_batch(VECTORS[:3], 6, filter={"section": "web"})
        assert isinstance(batch, SearchBatch)
        assert batch.ids.shape == batch.scores.shape == (3, 6)
        assert (batch.ids.dtype.name, batch.scores.dtype.name) == ("int64", "float32")
        assert batch.ids[0].tolist() == [0, 2, -1, -1, -1, -1]
        assert batch.scores[0, :2].tolist() == [0.0, 10.0]
        assert np.isnan(batch.scores[:, 2:]).all()
        assert len(batch) == 3
        assert ids_of(batch[0]) == [0, 2]
        assert isinstance(batch[0], Hits)
        assert [len(hits) for hits in batch] == [2, 2, 2]
        assert [len(hits) for hits in batch[1:]] == [2, 2]
        assert batch.lsn == batch[0].lsn

    def test_batch_of_str_ids_is_padded_with_none(self, database: Database) -> None:
        """With str ids `ids` is an object array padded with None."""
        docs = database.create_collection("named", 2)
        docs.upsert(["b", "a"], [[1, 0], [0, 1]])
        batch = docs.search_batch([[1, 0]], 3)
        assert batch.ids.dtype == object
        assert batch.ids.tolist() == [["b", "a", None]]
        assert np.isnan(batch.scores[0, 2])

    def test_batch_of_an_empty_collection_is_all_padding(self, database: Database) -> None:
        """A batch on no rows has its shape, and no hits."""
        batch = database.create_collection("empty", 2).search_batch([[1, 0], [0, 1]], 3)
        assert (batch.ids.shape, batch.scores.shape) == ((2, 3), (2, 3))
        assert np.isnan(batch.scores).all()
        assert [list(hits) for hits in batch] == [[], []]

    def test_batch_of_no_queries(self, docs: Collection) -> None:
        """A batch of no queries has no rows."""
        batch = docs.search_batch(np.empty((0, 4), np.float32), 3)
        assert (len(batch), batch.ids.shape, batch.scores.shape) == (0, (0, 3), (0, 3))

    @pytest.mark.parametrize("metric", METRICS)
    def test_batch_answers_as_single_searches_do(self, database: Database, metric: str) -> None:
        """Each row of a batch is what a search of its query gives."""
        rows = normal_vectors(500, 12, seed=6)
        docs, oracle = filled(database, metric, rows)
        queries = normal_vectors(33, 12, seed=7)
        batch = docs.search_batch(queries, 9, filter={"n": {"$in": [1, 2]}}, with_payload=True)
        for query, hits, ids, scores in zip(queries, batch, batch.ids, batch.scores, strict=True):
            single = docs.search(query, 9, filter={"n": {"$in": [1, 2]}})
            assert ids_of(hits) == ids_of(single) == ids.tolist()
            assert [hit.score for hit in hits] == scores.tolist()
            assert [hit.score for hit in single] == pytest.approx(scores, rel=1e-5, abs=1e-5)
            check_hits(hits, oracle, query, {"n": {"$in": [1, 2]}})

    def test_batch_gives_no_payloads_unless_asked(self, docs: Collection) -> None:
        """Payloads are left out of batches by default, of searches not."""
        assert docs.search_batch(VECTORS, 1)[0][0].payload == {}
        assert docs.search(VECTORS[0], 1)[0].payload == PAYLOADS[0]

    def test_searches_see_every_acknowledged_write(self, docs: Collection) -> None:
        """What was acknowledged is found at once, what was deleted or moved never again."""
        for i in range(100, 150):
            docs.upsert(i, [i, i, i, i])
            assert docs.search([i, i, i, i], 1)[0].id == i
            docs.upsert(i, [-i, -i, -i, -i])
            assert docs.search([-i, -i, -i, -i], 1)[0].id == i
            assert docs.search([i, i, i, i], 1)[0].id != i
            docs.delete(ids=i)
            assert docs.search([-i, -i, -i, -i], 1)[0].id != i

    def test_k_to_the_edge(self, docs: Collection) -> None:
        """The greatest k is taken, and gives what there is."""
        assert len(docs.search([1, 0, 0, 0], 10_000)) == 4
        assert docs.search_batch([[1, 0, 0, 0]], 10_000).ids.shape == (1, 10_000)

    def test_timeouts_that_suffice_change_nothing(self, docs: Collection) -> None:
        """Every call takes a timeout, and within it answers as ever."""
        assert docs.upsert(9, [1, 2, 3, 4], timeout=60).count == 1
        assert docs.update(9, payloads=[{"size": 1}], timeout=60).count == 1
        assert docs.search([1, 2, 3, 4], 1, timeout=60)[0].id == 9
        assert docs.search_batch([[1, 2, 3, 4]], 1, timeout=60).ids.tolist() == [[9]]
        assert docs.get(9, timeout=60)[0].payload == {"size": 1}
        assert docs.count(timeout=60) == 5
        assert docs.delete(ids=9, timeout=60).count == 1
        docs.optimize(timeout=60)
