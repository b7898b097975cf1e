"""Every index kind on a few thousand rows: recall as asked, filters and deletes respected, built and rebuilt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.data import mixture, recall, sample
from tests.support.oracle import OracleCollection, check_hits
from vecstore import Collection, Database, InvalidArgument

from .base import DatabaseContract, ids_of, refused

KINDS = ["auto", "flat", "ivf_flat", "ivf_pq", "ivf_sq8", "hnsw"]
ROWS, DIM, QUERIES = 6_000, 32, 60


def built(database: Database, kind: str, metric: Any = "l2", shards: int = 1) -> tuple[Collection, Any, Any]:
    """Return a collection of rows of the mixture, all built, with the rows and queries of the same mixture."""
    rows, queries = mixture(ROWS, DIM, seed=1, centres=200), mixture(QUERIES, DIM, seed=2, centres=200)
    docs = database.create_collection(
        "built", DIM, metric=metric, index=kind, shards=shards, fields={"n": "int64", "even": "bool"}
    )
    docs.upsert(range(ROWS), rows, [{"n": i % 100, "even": i % 2 == 0} for i in range(ROWS)])
    docs.optimize()
    return docs, rows, queries


def measured(docs: Collection, queries: Any, k: int, **keywords: Any) -> float:
    """Return the recall of an approximate search against the exact one, ids that pad left out."""
    effort = {name: keywords.pop(name) for name in ("recall", "effort") if name in keywords}
    true = docs.search_batch(queries, k, exact=True, **keywords).ids
    return recall(docs.search_batch(queries, k, **effort, **keywords).ids, true)


class IndexingContract(DatabaseContract):
    """Index kinds and the quality asked for."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_recall_asked_is_met(self, database: Database, kind: str) -> None:
        """Each kind meets the recall asked for at several k, and 0.95 unasked, on queries it has not seen."""
        docs, _, queries = built(database, kind)
        for k in (1, 10, 100):
            for asked in (0.9, 0.95, 0.99):
                assert measured(docs, queries, k, recall=asked) >= asked - 0.5 / np.sqrt(QUERIES * k), (k, asked)
        assert measured(docs, queries, 10) >= 0.95

    @pytest.mark.parametrize("metric", ["cosine", "ip"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_recall_under_other_metrics(self, database: Database, kind: str, metric: str) -> None:
        """The recall asked is met under cosine and inner product too, and exact search is exact."""
        docs, rows, queries = built(database, kind, metric)
        assert measured(docs, queries, 10, recall=0.95) >= 0.93
        oracle = OracleCollection("built", DIM, metric, {"n": "int64", "even": "bool"})
        oracle.upsert(range(ROWS), rows, [{"n": i % 100, "even": i % 2 == 0} for i in range(ROWS)])
        for query in queries[:5]:
            hits = docs.search(query, 10, exact=True)
            check_hits(hits, oracle, query)
            assert ids_of(hits) == [id for id, _ in oracle.search(query, 10)]
            check_hits(docs.search(query, 10), oracle, query)

    @pytest.mark.parametrize("kind", KINDS)
    def test_filters_never_lower_recall(self, database: Database, kind: str) -> None:
        """Under filters of 50%, 10% and 1% every hit matches, and the recall asked is met."""
        docs, _, queries = built(database, kind)
        for filter in ({"even": True}, {"n": {"$lt": 10}}, {"n": 7}, {"$not": {"n": {"$lt": 10}}}):
            assert measured(docs, queries, 10, filter=filter) >= 0.95
            matching = set(ids_of(list(docs.scan(filter))))
            for hits in docs.search_batch(queries, 10, filter=filter):
                assert len(hits) == 10
                assert set(ids_of(hits)) <= matching
        assert len(docs.search(queries[0], 100, filter={"n": 7})) == 60

    @pytest.mark.parametrize("kind", KINDS)
    def test_deleted_and_moved_rows_are_never_found(self, database: Database, kind: str) -> None:
        """Rows deleted, replaced or written after the build are gone, moved or found, before and after a rebuild."""
        docs, rows, queries = built(database, kind)
        oracle = OracleCollection("built", DIM, "l2", {"n": "int64", "even": "bool"})
        oracle.upsert(range(ROWS), rows, [{"n": i % 100, "even": i % 2 == 0} for i in range(ROWS)])
        gone, moved = range(0, ROWS, 3), range(1, ROWS, 30)
        docs.delete(ids=gone)
        oracle.delete(gone)
        places = mixture(len(moved), DIM, seed=9, centres=200)
        docs.upsert(moved, places, [{"n": 500}] * len(moved))
        oracle.upsert(moved, places, [{"n": 500}] * len(moved))
        fresh = range(10_000, 10_500)
        docs.upsert(fresh, queries[0] + mixture(500, DIM, seed=3, centres=200) / 50, [{"n": 600}] * 500)
        oracle.upsert(fresh, queries[0] + mixture(500, DIM, seed=3, centres=200) / 50, [{"n": 600}] * 500)
        for _ in range(2):
            for query in queries[:10]:
                check_hits(docs.search(query, 20), oracle, query)
            assert measured(docs, queries, 10) >= 0.95
            assert {hit.payload["n"] for hit in docs.search(queries[0], 50)} == {600}
            docs.optimize()
        assert docs.count() == len(oracle.points)

    @pytest.mark.parametrize("kind", ["ivf_pq", "hnsw"])
    def test_a_few_of_many_rows_are_left(self, database: Database, kind: str) -> None:
        """Where hardly a row of a segment lives, and then none, searches say so: before it is rewritten, and after."""
        docs, rows, _ = built(database, kind)
        docs.delete(ids=range(8, ROWS))
        hits = docs.search(rows[3], 10)
        assert sorted(ids_of(hits)) == list(range(8))
        assert hits[0].id == 3
        docs.delete(ids=range(8))
        assert ids_of(docs.search(rows[3], 10)) == []
        docs.optimize()
        assert ids_of(docs.search(rows[3], 10)) == []

    def test_shards_answer_as_one(self, database: Database) -> None:
        """A collection of several shards gives one merged answer, exact and approximate."""
        docs, rows, queries = built(database, "auto", shards=3)
        oracle = OracleCollection("built", DIM, "l2", {"n": "int64", "even": "bool"})
        oracle.upsert(range(ROWS), rows, [{"n": i % 100, "even": i % 2 == 0} for i in range(ROWS)])
        for query in queries[:10]:
            assert ids_of(docs.search(query, 25, exact=True)) == [id for id, _ in oracle.search(query, 25)]
            check_hits(docs.search(query, 25), oracle, query)
        assert measured(docs, queries, 10) >= 0.95
        assert ids_of(list(docs.scan(limit=50))) == list(range(50))
        assert docs.count({"n": 7}) == 60

    @pytest.mark.parametrize("kind", KINDS)
    def test_exact_flag_says_what_was_compared(self, database: Database, kind: str) -> None:
        """`exact` is true where every matching point was compared: always when asked, always for flat."""
        docs, _, queries = built(database, kind)
        assert docs.search(queries[0], exact=True).exact is True
        assert all(hits.exact for hits in docs.search_batch(queries[:3], exact=True))
        if kind != "ivf_flat":  # which compares every point where it skips no lists
            assert docs.search(queries[0], recall=0.9).exact is (kind == "flat")

    @pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq", "ivf_sq8", "hnsw"])
    def test_effort_is_taken(self, database: Database, kind: str) -> None:
        """More effort finds no less, and the greatest finds nearly all."""
        docs, _, queries = built(database, kind)
        low, high = (measured(docs, queries, 10, effort=effort) for effort in (1, 512))
        assert high >= 0.95
        assert low <= high

    @pytest.mark.parametrize(
        "keywords",
        [{"recall": 0.9, "exact": True}, {"recall": 0.9, "effort": 5}, {"exact": True, "effort": 5},
         {"recall": 0.9, "exact": True, "effort": 5}],
        ids=lambda keywords: "-".join(keywords),
    )  # fmt: skip
    def test_recall_exact_and_effort_exclude_each_other(
        self, database: Database, docs: Collection, keywords: dict[str, Any]
    ) -> None:
        """Two of the three ways to ask for quality are refused, naming them."""
        with refused(database, InvalidArgument, "recall", "exact", "effort"):
            docs.search([1, 2, 3, 4], **keywords)
        with refused(database, InvalidArgument, "recall", "exact", "effort"):
            docs.search_batch([[1, 2, 3, 4]], **keywords)

    def test_optimize_reports_progress_and_writes_nothing(self, database: Database) -> None:
        """Progress grows to the rows that were present; no record is written, no answer changes."""
        docs = database.create_collection("rows", 8, metric="l2")
        docs.upsert(range(9_000), mixture(9_000, 8, seed=4, centres=50))
        before, seen = database.status(), list[tuple[int, int]]()
        docs.optimize(progress=lambda done, total: seen.append((done, total)))
        after = database.status()
        assert (before["lsn"], before["chain"]) == (after["lsn"], after["chain"])
        assert before["collections"]["rows"]["digest"] == after["collections"]["rows"]["digest"]
        assert seen
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1] == (9_000, 9_000)
        docs.optimize()

    def test_recall_on_real_embeddings(self, database: Database) -> None:
        """On the sample that ships with the package the recall asked is met, with rows left out as queries."""
        packages = sample()
        docs = database.create_collection("packages", packages.vectors.shape[1], index="ivf_pq")
        docs.upsert(packages.ids[100:], packages.vectors[100:], packages.payloads[100:])
        docs.optimize()
        for k, asked in ((1, 0.95), (10, 0.95), (10, 0.99), (100, 0.9)):
            assert measured(docs, packages.vectors[:100], k, recall=asked) >= asked - 0.02, (k, asked)
