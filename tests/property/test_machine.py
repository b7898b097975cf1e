"""Random histories of one store, compared with the oracle after every step.

Hypothesis draws the steps and prints, for a failure, the shortest history that fails and how to repeat it;
``--hypothesis-seed=N`` draws others, ``VECSTORE_MACHINE_EXAMPLES`` and ``VECSTORE_MACHINE_STEPS`` draw more of them.
Many more take longer than the deadlock timeout of one test: ``-o faulthandler_timeout=0`` lifts it.
Limits are set so low that checkpoints, log cuts and seals happen all the time.

A crash is an image of the folder taken between two acknowledged writes: the files are copied while the store is open,
and only an image of which no file changed meanwhile counts, which is what kill -9 at that moment would have left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, event, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import vecstore
from tests.support import strategies
from tests.support.oracle import Oracle, OracleCollection, check_hits
from vecstore import Collection, Database, InvalidArgument

CONFIG: Mapping[str, Any] = {
    "checkpoint_log_bytes": 64 << 10,
    "checkpoint_interval_s": 0.2,
    "unsealed_rows_max": 8_192,
    "write_points_max": 3,
    "group_records_max": 4,
    "write_buffer_bytes": 1 << 20,
    "wal_bytes_max": 1 << 20,
    "disk_free_bytes_min": 1 << 20,
}
EXAMPLES = int(os.environ.get("VECSTORE_MACHINE_EXAMPLES") or 20)
STEPS = int(os.environ.get("VECSTORE_MACHINE_STEPS") or 35)
NAMES = st.sampled_from(["a", "b", "c"])
BULK_ROWS = 2_500
COPY_ATTEMPTS = 40


class StoreMachine(RuleBasedStateMachine):
    """One store and its oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vecstore-machine-"))
        self.images = 0
        self.path = self.folder / "store"
        self.oracle = Oracle()
        self.kinds: dict[str, str] = {}
        self.lsn = 0
        self.database: Database = vecstore.open(str(self.path), config=CONFIG)

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    # -- collections ---------------------------------------------------------------------------------------------------

    @initialize(metric=st.sampled_from(["l2", "ip"]), kind=st.sampled_from(["int", "str"]), filled=st.booleans())
    def first_collection(self, metric: str, kind: str, filled: bool) -> None:
        """There is always at least one collection, in half of the histories with rows enough to be sealed."""
        self._create("a", metric, kind, "auto", strategies.FIELDS, 1)
        for start in (0, BULK_ROWS) if filled else ():
            self._fill(self.database.collection("a"), self.oracle.collections["a"], start, start)

    @rule(
        name=NAMES,
        metric=st.sampled_from(["l2", "ip", "cosine"]),
        kind=st.sampled_from(["int", "str"]),
        index=st.sampled_from(["auto", "flat", "ivf_flat", "hnsw"]),
        fields=st.sampled_from([strategies.FIELDS, "infer", {}]),
        shards=st.sampled_from([1, 1, 3]),
    )
    def create(self, name: str, metric: str, kind: str, index: str, fields: Any, shards: int) -> None:
        """Create a collection where the name is free; refused where it is not."""
        if name not in self.oracle.collections:
            self._create(name, metric, kind, index, fields, shards)
            return
        try:
            self.database.create_collection(name, strategies.DIM)
        except vecstore.AlreadyExists:
            return
        raise AssertionError(f"{name} was created twice")

    def _create(self, name: str, metric: Any, kind: str, index: str, fields: Any, shards: int) -> None:
        self.database.create_collection(name, strategies.DIM, metric=metric, fields=fields, index=index, shards=shards)
        self.oracle.create(name, strategies.DIM, metric, fields)
        self.kinds[name] = kind

    @rule(data=st.data(), to=NAMES)
    def rename(self, data: st.DataObject, to: str) -> None:
        """Rename a collection, over another one if need be; a handle of before follows."""
        handle, model = self._any(data)
        name = model.name
        if to == name:
            return
        self.database.rename_collection(name, to, replace=True)
        self.oracle.rename(name, to)
        self.kinds[to] = self.kinds.pop(name)
        assert handle.name == to
        assert handle.count() == len(model.points)

    @precondition(lambda self: len(self.oracle.collections) > 1)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Drop a collection, though not the last one."""
        handle, model = self._any(data)
        self.database.drop_collection(model.name)
        self.oracle.drop(model.name)
        try:
            handle.count()
        except vecstore.NotFound:
            return
        raise AssertionError("a dropped collection was counted")

    @rule(
        data=st.data(),
        name=st.sampled_from(["free", "size", "later", "word"]),
        type=st.sampled_from(["string", "int64", "float64"]),
    )
    def add_field(self, data: st.DataObject, name: str, type: Any) -> None:
        """Declare a field: filled where all payloads fit, refused where one does not."""
        handle, model = self._any(data)
        if name in model.fields:
            return
        fitting = model.add_field(name, type)
        try:
            handle.add_field(name, type)
        except InvalidArgument:
            assert not fitting
            return
        assert fitting

    # -- writes --------------------------------------------------------------------------------------------------------

    @rule(data=st.data(), ack=st.sampled_from(["durable", "durable", "memory"]))
    def upsert(self, data: st.DataObject, ack: Any) -> None:
        """Write a few points, with repeats; refused whole where a payload does not fit."""
        handle, model = self._any(data)
        ids = self._ids(data, model)
        vectors = data.draw(strategies.vectors(len(ids)))
        payloads = data.draw(st.none() | st.lists(strategies.payloads(), min_size=len(ids), max_size=len(ids)))
        changed = _copied(model)
        changed.upsert(ids, vectors, payloads)
        if not all(changed.fitting(payload) for payload in payloads or ()):
            self._refused(handle, lambda: handle.upsert(ids, vectors, payloads))
            return
        written = handle.upsert(ids, vectors, payloads, ack=ack)
        assert written.count == len(set(ids))
        self._replace(model, changed)

    @rule(data=st.data(), seed=st.integers(0, 2**16), start=st.sampled_from([0, 2_500, 4_000, 5_000]))
    def upsert_many(self, data: st.DataObject, seed: int, start: int) -> None:
        """Write so many points that segments fill, overlapping with those of before."""
        self._fill(*self._any(data), seed, start)

    def _fill(self, handle: Collection, model: OracleCollection, seed: int, start: int) -> None:
        ids: list[Any] = list(range(start, start + BULK_ROWS))
        if self.kinds[model.name] == "str":
            ids = [f"p{i:05}" for i in ids]
        vectors = np.random.default_rng(seed).integers(1, 6, (BULK_ROWS, strategies.DIM)).astype(np.float32)
        payloads = [{"size": i % 50, "word": "ab"[i % 2]} for i in range(seed, seed + BULK_ROWS)]
        changed = _copied(model)
        changed.upsert(ids, vectors, payloads)
        if not all(changed.fitting(payload) for payload in payloads):
            return
        assert handle.upsert(ids, vectors, payloads).count == BULK_ROWS
        self._replace(model, changed)

    @rule(data=st.data(), with_vectors=st.booleans())
    def update(self, data: st.DataObject, with_vectors: bool) -> None:
        """Change points, absent ones among them."""
        handle, model = self._any(data)
        ids = self._ids(data, model)
        vectors = data.draw(strategies.vectors(len(ids))) if with_vectors else None
        changes = data.draw(st.lists(strategies.payloads(changes=True), min_size=len(ids), max_size=len(ids)))
        changed = _copied(model)
        count = changed.update(ids, vectors, changes)
        if not all(changed.fitting(payload) for payload in changes):
            return
        assert handle.update(ids, vectors=vectors, payloads=changes).count == count
        self._replace(model, changed)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Remove points, absent ones among them."""
        handle, model = self._any(data)
        ids = data.draw(strategies.id_lists(self.kinds[model.name]))
        assert handle.delete(ids=ids).count == model.delete(ids)

    @rule(data=st.data())
    def delete_where(self, data: st.DataObject) -> None:
        """Remove the points that match a filter."""
        handle, model = self._any(data)
        condition = self._condition(data, model)
        if condition is not None:
            assert handle.delete(filter=condition).count == model.delete_where(condition)

    # -- reads ---------------------------------------------------------------------------------------------------------

    @rule(data=st.data(), k=st.sampled_from([1, 3, 20, 4_000]), exact=st.booleans(), filtered=st.booleans())
    def search(self, data: st.DataObject, k: int, exact: bool, filtered: bool) -> None:
        """Exact answers are the oracle's; approximate ones are live, matching, scored exactly, in order."""
        handle, model = self._any(data)
        query = data.draw(strategies.vectors(1))[0]
        condition = self._condition(data, model) if filtered else None
        hits = handle.search(query, k, filter=condition, exact=exact)
        check_hits(hits, model, query, condition)
        expected = model.search(query, k, condition)
        if hits.exact:
            assert len(hits) == len(expected)
            if model.metric != "cosine":
                assert [(hit.id, hit.score) for hit in hits] == expected
        assert hits.exact or not exact
        batch = handle.search_batch(query[None], k, filter=condition, exact=exact)
        assert batch.lsn == hits.lsn
        if hits.exact and model.metric != "cosine":
            assert batch.ids[0, : len(expected)].tolist() == [id for id, _ in expected]

    @rule(data=st.data(), filtered=st.booleans(), limit=st.none() | st.integers(0, 30))
    def scan(self, data: st.DataObject, filtered: bool, limit: int | None) -> None:
        """A scan gives the oracle's points from a start in order, vectors and payloads included; so does count."""
        handle, model = self._any(data)
        condition = self._condition(data, model) if filtered else None
        start = data.draw(st.none() | strategies.id_lists(self.kinds[model.name], 1).map(lambda ids: ids[0]))
        if not model.points and start is not None:
            return
        found = list(handle.scan(condition, start=start, limit=limit, with_vector=True))
        expected = model.scan(condition, start, limit)
        assert [point.id for point in found] == [id for id, _, _ in expected]
        for point, (_, payload, vector) in zip(found, expected, strict=True):
            assert point.payload == payload
            assert point.vector is not None
            assert point.vector.tobytes() == vector.tobytes()
        assert handle.count(condition) == model.count(condition)

    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        """Get gives the points asked for in the order asked."""
        handle, model = self._any(data)
        ids = data.draw(strategies.id_lists(self.kinds[model.name]))
        found = handle.get(ids)
        if len(set(ids)) == len(ids):
            assert [(point.id, point.payload) for point in found] == [
                (id, model.points[id][0]) for id in ids if id in model.points
            ]

    # -- the life of the store -----------------------------------------------------------------------------------------

    @rule(data=st.data())
    def optimize(self, data: st.DataObject) -> None:
        """Build everything; nothing that can be asked changes."""
        handle, model = self._any(data)
        chain = self.database.status()["chain"]
        handle.optimize()
        assert self.database.status()["chain"] == chain
        assert handle.count() == len(model.points)

    @rule()
    def reopen(self) -> None:
        """Close and open again."""
        self.database.close()
        self.database = vecstore.open(str(self.path), config=CONFIG)

    @rule()
    def crash(self) -> None:
        """Go on from an image of the folder as kill -9 would have left it."""
        image = self._image()
        if image is None:
            event("no image without a change was made")
            return
        before = self.database.status()
        self.database.close()
        self.path = image
        self.database = vecstore.open(str(image), config=CONFIG)
        after = self.database.status()
        event("crashed")
        assert (after["lsn"], after["chain"]) == (before["lsn"], before["chain"])

    @rule()
    def verify(self) -> None:
        """The bytes on disk hold what status says."""
        report = self.database.verify()
        assert report["ok"] is True, report["damaged"]
        assert {
            name: int(entry["digest"], 16) for name, entry in report["collections"].items()
        } == self.oracle.digests()

    @invariant()
    def same_contents(self) -> None:
        """After every step: the same collections, counts, fields and digests; the LSN never goes back."""
        status = self.database.status()
        assert self.database.collections() == sorted(self.oracle.collections)
        for name, model in self.oracle.collections.items():
            entry = status["collections"][name]
            assert entry["count"] == len(model.points)
            event(f"segments: {', '.join(sorted({segment['state'] for segment in entry['segments']}))}")
            assert int(entry["digest"], 16) == model.digest(), f"digest of {name} at LSN {status['lsn']}"
            assert self.database.collection(name).fields == model.fields
        assert status["lsn"] >= self.lsn
        self.lsn = status["lsn"]

    # -- what the rules share ------------------------------------------------------------------------------------------

    def _any(self, data: st.DataObject) -> tuple[Collection, OracleCollection]:
        name = data.draw(st.sampled_from(sorted(self.oracle.collections)), label="collection")
        return self.database.collection(name), self.oracle.collections[name]

    def _ids(self, data: st.DataObject, model: OracleCollection) -> list[int | str]:
        """Draw ids, with repeats where nothing is inferred: what a replaced repeat declares is not said."""
        ids = data.draw(strategies.id_lists(self.kinds[model.name]))
        return list(dict.fromkeys(ids)) if model.infer else ids

    def _condition(self, data: st.DataObject, model: OracleCollection) -> dict[str, Any] | None:
        names = tuple(name for name in strategies.FIELDS if model.fields.get(name) == strategies.FIELDS[name])
        return data.draw(strategies.conditions(names), label="condition") if names else None

    def _refused(self, handle: Collection, call: Any) -> None:
        lsn = self.database.status()["lsn"]
        try:
            call()
        except InvalidArgument as error:
            assert error.outcome == "refused"
            assert self.database.status()["lsn"] == lsn
            return
        raise AssertionError(f"{handle.name} took a payload that does not fit")

    def _replace(self, model: OracleCollection, changed: OracleCollection) -> None:
        model.points, model.fields = changed.points, changed.fields

    def _image(self) -> Path | None:
        """Copy the folder until no file of it changed during the copy; None where that does not come."""
        # Writes with ack="memory" may not be in the files yet: these two records are synced, and so is all before them.
        self.database.create_collection("barrier", 1)
        self.database.drop_collection("barrier")
        self.images += 1
        for _ in range(COPY_ATTEMPTS):
            target = self.folder / f"image-{self.images}"
            before = _listing(self.path)
            try:
                shutil.copytree(self.path, target)
            except (shutil.Error, FileNotFoundError):
                shutil.rmtree(target, ignore_errors=True)
                continue
            if _listing(self.path) == before:
                note(f"image of {len(before)} files")
                return target
            shutil.rmtree(target)
        return None


def _copied(model: OracleCollection) -> OracleCollection:
    return OracleCollection(model.name, model.dim, model.metric, dict(model.fields), model.infer, dict(model.points))


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file."""
    listing = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                entry = os.stat(os.path.join(root, name))
            except FileNotFoundError:
                continue
            listing[os.path.join(root, name)] = (entry.st_size, entry.st_mtime_ns)
    return listing


class TestStore(StoreMachine.TestCase):  # type: ignore[valid-type,misc]
    """Whatever the history, through crashes and reopens, the store holds and answers what the oracle does."""

    settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
