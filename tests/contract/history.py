"""Tokens, waiting, status, verify: what can be known of a store's place in its history."""

from __future__ import annotations

import dataclasses
import json
import threading
from typing import Any

import numpy as np
import pytest

from tests.support.oracle import OracleCollection
from vecstore import Collection, Database, DeadlineExceeded, InvalidArgument, WriteLost, Written
from vecstore.record import Token

from .base import FIELDS, PAYLOADS, VECTORS, DatabaseContract, ids_of, refused


class HistoryContract(DatabaseContract):
    """Tokens, wait, status, verify."""

    def test_a_token_names_the_record_written(self, database: Database, docs: Collection) -> None:
        """A token is lineage, epoch, LSN and the chain's first bytes, as status gives them."""
        written = docs.upsert(9, [1, 2, 3, 4])
        token, status = Token.decode(written.token), database.status()
        assert (token.lsn, token.epoch) == (written.lsn, status["epoch"])
        assert token.lineage.hex() == status["lineage"].replace("-", "")
        assert status["chain"].startswith(token.chain.hex())

    @pytest.mark.parametrize("form", ["token", "written"])
    def test_reads_after_a_write_see_it(self, docs: Collection, form: str) -> None:
        """Every read takes `after=`, a token or a `Written`, and sees that write."""
        for i in range(110, 120):
            written = docs.upsert(i, [i, 0, 0, 0], [{"size": i}])
            after = written if form == "written" else written.token
            assert docs.count({"size": i}, after=after) == 1
            assert docs.get(i, after=after)[0].id == i
            assert ids_of(list(docs.scan(start=i, after=after))) == [i]
            hits = docs.search([i, 0, 0, 0], 1, after=after)
            assert ids_of(hits) == [i]
            assert hits.lsn >= written.lsn
            assert docs.search_batch([[i, 0, 0, 0]], 1, after=after).lsn >= written.lsn

    def test_a_memory_write_can_be_waited_for(self, docs: Collection) -> None:
        """`after=` of a write that is not durable, whose token is empty, sees it by its LSN."""
        written = docs.upsert(10, [1, 2, 3, 4], ack="memory")
        assert docs.count(after=written) == 5

    def test_token_of_another_lineage_is_lost(self, database: Database, docs: Collection, other: Database) -> None:
        """A token of another store names a record that this history does not hold."""
        foreign = other.create_collection("docs", 4).upsert([1, 2], np.eye(2, 4))
        for call in (
            lambda: docs.count(after=foreign),
            lambda: docs.get(0, after=foreign.token),
            lambda: list(docs.scan(after=foreign)),
            lambda: docs.search([1, 1, 1, 1], after=foreign),
            lambda: docs.search_batch([[1, 1, 1, 1]], after=foreign),
            lambda: database.wait(foreign.token),
        ):
            with pytest.raises(WriteLost):
                call()

    def test_token_with_another_chain_is_lost(self, database: Database, docs: Collection) -> None:
        """A token whose chain differs at its LSN belongs to a history that was cut off here."""
        written = docs.upsert(9, [1, 2, 3, 4])
        forged = dataclasses.replace(Token.decode(written.token), chain=bytes(8)).encode()
        with pytest.raises(WriteLost):
            docs.count(after=forged)
        with pytest.raises(WriteLost):
            database.wait(forged)
        docs.upsert(10, [1, 2, 3, 4])
        with pytest.raises(WriteLost):
            docs.count(after=forged)

    def test_a_token_ahead_is_waited_for_until_the_timeout(self, database: Database, docs: Collection) -> None:
        """A token of this lineage beyond the last record is waited for; when it does not come, the deadline passes."""
        written = docs.upsert(9, [1, 2, 3, 4])
        ahead = dataclasses.replace(Token.decode(written.token), lsn=written.lsn + 1_000).encode()
        with pytest.raises(DeadlineExceeded):
            docs.count(after=ahead, timeout=0.05)
        with pytest.raises(DeadlineExceeded):
            database.wait(ahead, timeout=0.05)
        assert docs.count() == 5

    @pytest.mark.parametrize("token", ["", "x", "1-2-3-4", 5])
    def test_what_is_no_token_is_refused(self, database: Database, docs: Collection, token: Any) -> None:
        """Text that is no token is refused, naming it."""
        with refused(database, InvalidArgument, "token"):
            docs.count(after=token)
        with refused(database, InvalidArgument, "token"):
            database.wait(token)

    def test_wait_tells_what_became_of_a_write(self, database: Database, docs: Collection) -> None:
        """`wait` for a record that is durable returns its LSN and the level reached."""
        written = docs.upsert(9, [1, 2, 3, 4])
        docs.upsert(10, [1, 2, 3, 4])
        found = database.wait(written.token)
        assert (found.lsn, found.ack) == (written.lsn, "durable")
        assert Token.decode(found.token).lsn >= written.lsn

    def test_every_call_of_many_threads_is_its_own_record(self, database: Database, docs: Collection) -> None:
        """Writes of many threads get LSNs of their own, dense, and every one is applied once."""
        lsn, written = database.status()["lsn"], list[Written]()

        def write(worker: int) -> None:
            written.extend(docs.upsert(1_000 + worker * 25 + i, [worker, i, 0, 1]) for i in range(25))

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(one.lsn for one in written) == list(range(lsn + 1, lsn + 201))
        assert len({one.token for one in written}) == 200
        assert docs.count() == 204

    def test_status_is_one_tree_of_plain_values(self, database: Database, docs: Collection) -> None:
        """Status has what the interface names, of JSON values alone."""
        status = database.status()
        assert json.loads(json.dumps(status)) == status
        assert {"lineage", "store_id", "region", "role", "epoch", "lsn", "durable_lsn", "chain", "collections"} <= set(
            status
        )
        assert (status["role"], status["lsn"]) == ("primary", status["durable_lsn"])
        bytes.fromhex(status["chain"])
        entry = status["collections"]["docs"]
        assert {"count", "digest", "dim", "metric", "index", "segments"} <= set(entry)
        assert (entry["count"], entry["dim"], entry["metric"]) == (4, 4, "l2")

    def test_digest_is_the_oracles(self, database: Database, docs: Collection) -> None:
        """The digest in status is the sum of the content hashes, whatever the way to the contents."""
        oracle = OracleCollection("docs", 4, "l2", FIELDS)
        oracle.upsert([0, 1, 2, 3], VECTORS, PAYLOADS)
        for _ in range(2):
            assert int(database.status()["collections"]["docs"]["digest"], 16) == oracle.digest()
            docs.upsert([0, 0, 9], np.eye(3, 4), [{"a": 1e16}, {"b": [1.5, "é"]}, {"size": 5}])
            oracle.upsert([0, 0, 9], np.eye(3, 4), [{"a": 1e16}, {"b": [1.5, "é"]}, {"size": 5}])
            docs.delete(ids=[1, 77])
            oracle.delete([1, 77])
        docs.delete(ids=range(100))
        assert int(database.status()["collections"]["docs"]["digest"], 16) == 0

    def test_chain_moves_with_every_record_alone(self, database: Database, docs: Collection) -> None:
        """The chain changes with each record, and with nothing else."""
        chains = [database.status()["chain"]]
        for call in (
            lambda: docs.upsert(9, [1, 2, 3, 4]),
            lambda: docs.upsert(9, [1, 2, 3, 4]),
            lambda: docs.delete(ids=9),
            lambda: docs.add_field("new", "bool"),
            lambda: database.rename_collection("docs", "papers"),
        ):
            call()
            chains.append(database.status()["chain"])
        assert len(set(chains)) == 6
        docs.search([1, 2, 3, 4])
        docs.optimize()
        assert database.status()["chain"] == chains[-1]

    def test_verify_of_a_clean_store(self, database: Database, docs: Collection) -> None:
        """`verify` recomputes the digests and the chain of status from the bytes, and finds no damage."""
        docs.upsert(range(100, 5_100), np.ones((5_000, 4)), [{"size": i} for i in range(5_000)])
        docs.delete(filter={"size": {"$lt": 100}})
        docs.update(range(1_000, 2_000), payloads=[{"size": None}] * 1_000)
        seen: list[tuple[int, int]] = []
        report, status = database.verify(progress=lambda done, total: seen.append((done, total))), database.status()
        assert (report["ok"], report["damaged"]) == (True, [])
        assert (report["lsn"], report["chain"]) == (status["lsn"], status["chain"])
        entry = report["collections"]["docs"]
        expected = status["collections"]["docs"]
        assert (entry["digest"], entry["count"]) == (expected["digest"], expected["count"])
        assert seen
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1]
