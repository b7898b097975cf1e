"""Collections come, are renamed, replaced, dropped and made again; what handles do meanwhile."""

from __future__ import annotations

import pytest

from vecstore import AlreadyExists, Closed, Collection, Database, InvalidArgument, NotFound

from .base import DatabaseContract, ids_of, refused, state


class LifecycleContract(DatabaseContract):
    """Collections and their handles."""

    def test_new_database_is_empty(self, database: Database) -> None:
        """A new database has no collections and says so."""
        assert database.collections() == []
        assert database.status()["collections"] == {}

    def test_create_returns_a_handle_that_knows_its_schema(self, database: Database) -> None:
        """A handle tells name, dimension, metric, fields and metadata as they were given."""
        metadata = {"embedding": {"provider": "none", "model": "m", "dimension": 3}, "n": [1, None, 2.5]}
        docs = database.create_collection(
            "Docs.v1_a-b", 3, metric="ip", fields={"size": "int64", "tags": "list<string>"}, metadata=metadata
        )
        assert isinstance(docs, Collection)
        assert (docs.name, docs.dim, docs.metric) == ("Docs.v1_a-b", 3, "ip")
        assert docs.fields == {"size": "int64", "tags": "list<string>"}
        assert docs.metadata == metadata

    def test_a_number_names_a_collection_for_good(self, database: Database) -> None:
        """A collection keeps its number through a rename; one made anew under its name has another."""
        docs, other = database.create_collection("docs", 2), database.create_collection("other", 2)
        number = docs.number
        assert number not in (0, other.number)
        database.rename_collection("docs", "papers")
        assert docs.number == database.collection("papers").number == number
        database.drop_collection("papers")
        assert database.create_collection("docs", 2).number not in (number, other.number)

    @pytest.mark.parametrize(("given", "kind"), [(5, "int"), ("five", "str")])
    def test_the_first_write_fixes_the_kind_of_ids(self, database: Database, given: int | str, kind: str) -> None:
        """A collection has no kind of ids until its first point, and keeps it when that is gone."""
        docs = database.create_collection("docs", 2)
        assert docs.id_kind == ""
        docs.upsert([given], [[1, 2]])
        docs.delete(ids=[given])
        assert docs.id_kind == kind

    def test_position_is_that_of_status(self, database: Database, docs: Collection) -> None:
        """`position` gives the epoch and LSN that status gives."""
        written = docs.upsert(9, [1, 2, 3, 4])
        status = database.status()
        assert database.position() == (status["epoch"], status["lsn"]) == (status["epoch"], written.lsn)

    def test_defaults_of_create(self, database: Database) -> None:
        """Without keywords a collection is cosine, with no fields and no metadata."""
        docs = database.create_collection("docs", 2)
        assert (docs.metric, docs.fields, docs.metadata) == ("cosine", {}, {})

    def test_collections_are_listed_sorted(self, database: Database) -> None:
        """Names are listed by code point."""
        for name in ("b", "a", "B", "0", "z-1"):
            database.create_collection(name, 2)
        assert database.collections() == ["0", "B", "a", "b", "z-1"]

    @pytest.mark.parametrize("name", ["a", "x" * 255, "A.b-c_9", ".", "-"])
    def test_every_allowed_name_is_taken(self, database: Database, name: str) -> None:
        """Names of 1 to 255 of the allowed characters are taken as they are."""
        database.create_collection(name, 2)
        assert database.collections() == [name]

    @pytest.mark.parametrize("dim", [1, 16_384])
    def test_dimension_limits_are_usable(self, database: Database, dim: int) -> None:
        """The least and the greatest dimension store and find a point."""
        docs = database.create_collection("docs", dim, metric="l2")
        docs.upsert(1, [0.5] * dim)
        assert [(hit.id, hit.score) for hit in docs.search([0.5] * dim)] == [(1, 0.0)]

    def test_handle_by_name_is_equivalent(self, database: Database, docs: Collection) -> None:
        """`collection(name)` gives a handle on the same points."""
        again = database.collection("docs")
        assert (again.name, again.dim, again.metric, again.fields) == (docs.name, docs.dim, docs.metric, docs.fields)
        again.delete(ids=[0])
        assert docs.count() == again.count() == 3

    def test_missing_collection_is_not_found(self, database: Database, docs: Collection) -> None:
        """A handle on a name that nobody has is an error that says the name."""
        with refused(database, NotFound, "nothing-here"):
            database.collection("nothing-here")

    def test_create_refuses_a_taken_name(self, database: Database, docs: Collection) -> None:
        """A taken name is an error, and the collection stays as it is."""
        with refused(database, AlreadyExists, "docs"):
            database.create_collection("docs", 4)

    def test_exist_ok_returns_the_same_collection(self, database: Database, docs: Collection) -> None:
        """With `exist_ok` the same arguments give the collection that exists, and write no record."""
        before = state(database)
        again = database.create_collection("docs", 4, metric="l2", fields=docs.fields, exist_ok=True)
        assert again.count() == 4
        assert state(database) == before

    @pytest.mark.parametrize("changed", [{"dim": 5}, {"metric": "ip"}, {"index": "flat"}, {"shards": 2}])
    def test_exist_ok_refuses_other_arguments(self, database: Database, changed: dict[str, object]) -> None:
        """With `exist_ok` other arguments are an error: the caller would get what it did not ask for."""
        arguments: dict[str, object] = {"dim": 4, "metric": "l2"}
        database.create_collection("docs", **arguments)  # type: ignore[arg-type]
        with refused(database, AlreadyExists, "docs"):
            database.create_collection("docs", exist_ok=True, **(arguments | changed))  # type: ignore[arg-type]

    def test_handles_follow_a_rename(self, database: Database, docs: Collection) -> None:
        """A handle made before a rename has the new name and the same points; the old name is free."""
        database.rename_collection("docs", "papers")
        assert (docs.name, docs.count()) == ("papers", 4)
        assert database.collections() == ["papers"]
        docs.upsert(9, [1, 2, 3, 4])
        assert database.collection("papers").count() == 5
        database.create_collection("docs", 4)
        assert docs.count() == 5

    def test_rename_to_a_taken_name_needs_replace(self, database: Database, docs: Collection) -> None:
        """A rename onto another collection is refused without `replace`."""
        database.create_collection("papers", 4)
        with refused(database, AlreadyExists, "papers"):
            database.rename_collection("docs", "papers")

    def test_replace_drops_the_one_that_had_the_name(self, database: Database, docs: Collection) -> None:
        """With `replace` the other is dropped in one record, and its handles are stale."""
        papers = database.create_collection("papers", 2)
        papers.upsert(1, [1, 2])
        lsn = database.status()["lsn"]
        database.rename_collection("docs", "papers", replace=True)
        assert database.status()["lsn"] == lsn + 1
        assert database.collections() == ["papers"]
        assert (docs.name, docs.count()) == ("papers", 4)
        with pytest.raises(NotFound):
            papers.count()

    def test_rename_of_a_missing_collection(self, database: Database, docs: Collection) -> None:
        """A rename of what does not exist is not found."""
        with refused(database, NotFound, "absent"):
            database.rename_collection("absent", "x")

    def test_drop_is_immediate(self, database: Database, docs: Collection) -> None:
        """After a drop the name is gone, and every call of a handle is not found."""
        database.drop_collection("docs")
        assert database.collections() == []
        assert database.status()["collections"] == {}
        with refused(database, NotFound):
            docs.upsert(1, [1, 2, 3, 4])
        for call in (
            lambda: docs.count(),
            lambda: docs.search([1, 2, 3, 4]),
            lambda: docs.get(1),
            lambda: list(docs.scan()),
            lambda: docs.delete(ids=1),
            lambda: docs.add_field("more", "int64"),
            lambda: docs.optimize(),
        ):
            with pytest.raises(NotFound):
                call()

    def test_drop_of_a_missing_collection(self, database: Database, docs: Collection) -> None:
        """A drop of what does not exist is not found, or nothing with `missing_ok`."""
        with refused(database, NotFound, "absent"):
            database.drop_collection("absent")
        before = state(database)
        database.drop_collection("absent", missing_ok=True)
        assert state(database) == before

    def test_recreated_collection_is_another(self, database: Database, docs: Collection) -> None:
        """A collection made again under a dropped name is empty, may differ, and stale handles never reach it."""
        database.drop_collection("docs")
        again = database.create_collection("docs", 2)
        again.upsert("text", [1, 2])
        with pytest.raises(NotFound):
            docs.count()
        assert ids_of(again.get(["text"])) == ["text"]
        assert again.count() == 1

    def test_open_scan_finishes_after_a_drop(self, database: Database, docs: Collection) -> None:
        """A scan that began before a drop ends on what it began with."""
        scan = docs.scan()
        first = next(scan)
        database.drop_collection("docs")
        assert [first.id, *ids_of(list(scan))] == [0, 1, 2, 3]

    def test_each_change_of_a_collection_is_one_record(self, database: Database) -> None:
        """Create, rename and drop are a record each."""
        lsn = database.status()["lsn"]
        database.create_collection("docs", 2)
        database.rename_collection("docs", "papers")
        database.drop_collection("papers")
        assert database.status()["lsn"] == lsn + 3

    def test_collections_do_not_mix(self, database: Database) -> None:
        """The same id in two collections is two points, with an id kind for each collection."""
        first, second = database.create_collection("a", 2), database.create_collection("b", 3)
        first.upsert(1, [1, 0], [{"in": "a"}])
        second.upsert("1", [0, 1, 0], [{"in": "b"}])
        assert first.get(1)[0].payload == {"in": "a"}
        assert second.get("1")[0].payload == {"in": "b"}
        first.delete(ids=1)
        assert (first.count(), second.count()) == (0, 1)

    def test_metadata_is_a_copy(self, database: Database) -> None:
        """Changing what `metadata` and `fields` returned changes nothing in the store."""
        docs = database.create_collection("docs", 2, metadata={"a": {"b": 1}}, fields={"size": "int64"})
        docs.metadata["a"]["b"] = 2
        docs.metadata.clear()
        docs.fields.clear()
        again = database.collection("docs")
        assert (again.metadata, again.fields) == ({"a": {"b": 1}}, {"size": "int64"})

    def test_calls_after_close_are_refused(self, database: Database, docs: Collection) -> None:
        """After close every call raises `Closed`; closing twice is harmless."""
        database.close()
        database.close()
        for call in (
            lambda: docs.count(),
            lambda: docs.upsert(1, [1, 2, 3, 4]),
            lambda: docs.search([1, 2, 3, 4]),
            lambda: docs.search_batch([[1, 2, 3, 4]]),
            lambda: docs.get(1),
            lambda: list(docs.scan()),
            lambda: database.collections(),
            lambda: database.status(),
            lambda: database.create_collection("x", 2),
        ):
            with pytest.raises(Closed, match="(?i)clos"):
                call()

    def test_context_manager_closes(self, database: Database) -> None:
        """Leaving the `with` block closes the database."""
        with database as same:
            assert same is database
        with pytest.raises(Closed):
            database.collections()

    @pytest.mark.parametrize("name", ["", "a b", "a/b", "é", "x" * 256, "a\n"])
    def test_names_outside_the_alphabet_are_refused(self, database: Database, docs: Collection, name: str) -> None:
        """A bad name is refused by create and rename alike, saying what is allowed."""
        with refused(database, InvalidArgument, "name", "[A-Za-z0-9._-]{1,255}"):
            database.create_collection(name, 2)
        with refused(database, InvalidArgument, "[A-Za-z0-9._-]{1,255}"):
            database.rename_collection("docs", name)
