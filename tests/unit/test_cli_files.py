"""Every format that can be imported is read into the same rows, from any row on, and what is wrong is named."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecstore.cli import arrays, lines, tables
from vecstore.cli.batch import Batch, Source, Wanted
from vecstore.cli.files import open_source
from vecstore.config import RECORD_BYTES_MAX
from vecstore.errors import InvalidArgument, NotFound

ROWS, DIM = 1_000, 8
WANTED = Wanted(DIM, cosine=True, batch_rows_max=300)
Writer = Callable[[Path, npt.NDArray[np.float32]], Path]


@pytest.fixture
def vectors(seed: int) -> npt.NDArray[np.float32]:
    """Return vectors that float16 holds exactly, so that every format holds the same."""
    return np.random.default_rng(seed).integers(1, 100, (ROWS, DIM)).astype(np.float32) / np.float32(4)


def column(values: npt.NDArray[Any], kind: str) -> pa.Array:
    """Return vectors as an Arrow column of some kind of list."""
    numbers = pa.array(values.reshape(-1))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(numbers, values.shape[1])
    offsets = np.arange(0, values.size + 1, values.shape[1])
    if kind == "large":
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), numbers)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), numbers)


def table_of(values: npt.NDArray[Any], kind: str = "fixed") -> pa.Table:
    """Return a table of ids, names and vectors."""
    names = [f"name {i}" for i in range(len(values))]
    return pa.table({"id": np.arange(len(values)) + 10, "name": names, "vector": column(values, kind)})


def write_parquet(folder: Path, vectors: npt.NDArray[np.float32]) -> Path:
    pq.write_table(table_of(vectors), folder / "a.parquet", row_group_size=170)
    return folder / "a.parquet"


def write_arrow_file(folder: Path, vectors: npt.NDArray[np.float32]) -> Path:
    table = table_of(vectors, "list")
    with pa.ipc.new_file(str(folder / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=170)
    return folder / "a.arrow"


def write_arrow_stream(folder: Path, vectors: npt.NDArray[np.float32]) -> Path:
    table = table_of(vectors, "large")
    with pa.ipc.new_stream(str(folder / "a.arrows"), table.schema) as writer:
        writer.write_table(table, max_chunksize=170)
    return folder / "a.arrows"


def write_lines(folder: Path, vectors: npt.NDArray[np.float32]) -> Path:
    rows = [{"id": i + 10, "name": f"name {i}", "vector": row} for i, row in enumerate(vectors.tolist())]
    # A line without anything on it is no row.
    (folder / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    return folder / "a.jsonl"


def write_npy(folder: Path, vectors: npt.NDArray[np.float32]) -> Path:
    np.save(folder / "a.npy", vectors.astype(np.float64))
    return folder / "a.npy"


def write_npz(folder: Path, vectors: npt.NDArray[np.float32]) -> Path:
    names = np.array([f"name {i}" for i in range(len(vectors))])
    path = folder / "a.npz"
    np.savez_compressed(path, vectors=vectors.astype(np.float16), id=np.arange(len(vectors)) + 10, name=names)
    return path


def write_fvecs(folder: Path, vectors: npt.NDArray[np.float32]) -> Path:
    words = np.empty((len(vectors), vectors.shape[1] + 1), np.int32)
    words[:, 0] = vectors.shape[1]
    words[:, 1:] = vectors.view(np.int32)
    words.tofile(folder / "a.fvecs")
    return folder / "a.fvecs"


def write_hdf5(folder: Path, vectors: npt.NDArray[np.float32]) -> Path:
    with h5py.File(folder / "a.hdf5", "w") as file:
        file["train"] = vectors
        file["test"] = vectors[:3] + 1
        file.attrs["distance"] = "euclidean"
    return folder / "a.hdf5"


WITH_COLUMNS = [write_parquet, write_arrow_file, write_arrow_stream, write_lines, write_npz]
PLAIN = [write_npy, write_fvecs, write_hdf5]


def read(source: Source, start: int = 0, wanted: Wanted = WANTED) -> list[Batch]:
    """Read the batches of a source, and check that each begins where the last one ended."""
    batches = list(source.batches(start, wanted))
    row = start
    for batch in batches:
        assert batch.row == row
        assert 0 < len(batch) <= wanted.batch_rows_max
        row += len(batch)
    return batches


@pytest.mark.parametrize("start", [0, 1, 170, 299, 999, 1_000])
@pytest.mark.parametrize("write", WITH_COLUMNS + PLAIN)
def test_every_format_gives_the_same_rows(
    write: Writer, start: int, tmp_path: Path, vectors: npt.NDArray[np.float32]
) -> None:
    """Vectors, ids and payloads are those that were written, from any row on."""
    source = open_source(str(write(tmp_path, vectors)))
    batches = read(source, start)
    found = np.concatenate([batch.vectors for batch in batches] or [np.empty((0, DIM), np.float32)])
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors[start:])
    ids = [each for batch in batches for each in batch.named(base=7)]
    payloads = [payload for batch in batches for payload in batch.payloads or []]
    if write in PLAIN:
        assert ids == list(range(7 + start, 7 + ROWS))
        assert payloads == []
    else:
        assert ids == list(range(10 + start, 10 + ROWS))
        assert payloads == [{"name": f"name {i}"} for i in range(start, ROWS)]
    assert source.rows() == ROWS
    assert source.describe().dim == DIM


@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint64"])
def test_every_list_of_numbers_is_a_vector(
    kind: str, dtype: str, tmp_path: Path, vectors: npt.NDArray[np.float32]
) -> None:
    """All real types and all kinds of list are taken, and rounded to float32."""
    given = np.floor(vectors).astype(dtype)
    pq.write_table(table_of(given, kind), tmp_path / "a.parquet")
    batches = read(open_source(str(tmp_path / "a.parquet")))
    assert np.array_equal(np.concatenate([batch.vectors for batch in batches]), given.astype(np.float32))


def test_a_slice_of_a_list_column_is_read_from_its_own_offset(tmp_path: Path) -> None:
    """Vectors of a sliced record batch are the slice's, not those of the whole column."""
    given = np.arange(1, 41, dtype=np.float32).reshape(10, 4)
    table = table_of(given, "list").slice(3, 5)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    (batch,) = read(open_source(str(tmp_path / "a.arrow")), wanted=Wanted(4, False, 100))
    assert np.array_equal(batch.vectors, given[3:8])


def test_payloads_are_json(tmp_path: Path) -> None:
    """Times become UTC, dates ISO, decimals floats; nulls are left out; lists and structs stay what they are."""
    zone = dt.timezone(dt.timedelta(hours=2))
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 678901)  # noqa: DTZ001 - a time without a zone is the case
    table = pa.table(
        {
            "id": pa.array(["a", "b"]).dictionary_encode(),
            "vector": pa.array([[1.0], [2.0]], pa.list_(pa.float32())),
            "naive": pa.array([moment, None], pa.timestamp("ns")),
            "aware": pa.array([moment.replace(tzinfo=zone), None], pa.timestamp("us", "Europe/Berlin")),
            "day": pa.array([dt.date(2026, 1, 2), None]),
            "price": pa.array([decimal.Decimal("1.5"), None]),
            "tags": pa.array([["x", "y"], None]),
            "when": pa.array([[moment], None], pa.list_(pa.timestamp("s"))),
            "nested": pa.array([{"a": 1, "b": None}, None]),
            "kind": pa.array(["k", None]).dictionary_encode(),
            "half": pa.array(np.array([0.5, 0.25], np.float16)),
            "yes": pa.array([True, None]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    (batch,) = read(source, wanted=Wanted(1, False, 10))
    assert batch.ids == ["a", "b"]
    assert batch.payloads == [
        {
            "naive": "2026-01-02T03:04:05.678901Z",
            "aware": "2026-01-02T01:04:05.678901Z",
            "day": "2026-01-02",
            "price": 1.5,
            "tags": ["x", "y"],
            "when": ["2026-01-02T03:04:05.000000Z"],
            "nested": {"a": 1, "b": None},
            "kind": "k",
            "half": 0.5,
            "yes": True,
        },
        {"half": 0.25},
    ]
    fields = dict(source.describe().fields or {})
    assert fields["naive"] == fields["aware"] == "timestamp"
    assert (fields["tags"], fields["when"], fields["kind"], fields["price"]) == (
        "list<string>",
        "list<timestamp>",
        "string",
        "float64",
    )
    assert "nested" not in fields
    assert "day" not in fields


def test_a_batch_of_long_payloads_fits_a_record(tmp_path: Path) -> None:
    """Rows of half a megabyte come in as many batches as it takes to keep each within a record."""
    text = "\x01" * 500_000
    table = pa.table({"vector": pa.array([[1.0]] * 40, pa.list_(pa.float32())), "text": [text] * 40})
    pq.write_table(table, tmp_path / "a.parquet")
    batches = read(open_source(str(tmp_path / "a.parquet")), wanted=Wanted(1, False, 10_000))
    assert sum(len(batch) for batch in batches) == 40
    assert max(len(json.dumps(batch.payloads)) for batch in batches) < RECORD_BYTES_MAX


def test_long_vectors_come_in_small_batches(tmp_path: Path) -> None:
    """A batch of the longest vectors stays within a record."""
    np.save(tmp_path / "a.npy", np.ones((600, 16_384), np.float16))
    batches = read(open_source(str(tmp_path / "a.npy")), wanted=Wanted(16_384, True, 10_000))
    assert max(batch.vectors.nbytes for batch in batches) < RECORD_BYTES_MAX // 2
    assert sum(len(batch) for batch in batches) == 600


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    """`--id` and `--vector` name columns; the only list of numbers needs no name; two of them do."""
    ones = pa.array([[1.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"key": ["a"], "embedding": ones}), tmp_path / "one.parquet")
    (batch,) = read(open_source(str(tmp_path / "one.parquet"), "key"), wanted=Wanted(1, False, 10))
    assert batch.ids == ["a"]
    pq.write_table(pa.table({"key": ["a"], "first": ones, "second": ones}), tmp_path / "two.parquet")
    with pytest.raises(InvalidArgument, match="first, second"):
        open_source(str(tmp_path / "two.parquet"))
    (batch,) = read(open_source(str(tmp_path / "two.parquet"), None, "second"), wanted=Wanted(1, False, 10))
    assert batch.payloads == [{"key": "a", "first": [1.0]}]
    assert batch.named(base=5) == [5]


def test_an_hdf5_file_says_its_metric_and_other_data_sets_have_names(
    tmp_path: Path, vectors: npt.NDArray[np.float32]
) -> None:
    """`train` is read unless another is named; euclidean is l2."""
    path = str(write_hdf5(tmp_path, vectors))
    assert open_source(path).describe().metric == "l2"
    assert len(read(open_source(path, None, "test"))[0]) == 3
    with pytest.raises(InvalidArgument, match="train"):
        open_source(path, None, "none")


def bad_table(tmp_path: Path, **columns: Any) -> str:
    """Write a table of 500 good rows whose row 450 is spoilt by other columns."""
    values: dict[str, Any] = {"id": list(range(500)), "vector": [[1.0, 2.0]] * 500}
    for name, value in columns.items():
        values[name] = list(values[name])
        values[name][450] = value
    vector = pa.array(values["vector"], pa.list_(pa.float64()))
    pq.write_table(pa.table({"id": values["id"], "vector": vector}), tmp_path / "bad.parquet")
    return str(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("columns", "name", "said"),
    [
        ({"vector": [1.0]}, "vector", "1 numbers; the collection has 2"),
        ({"vector": None}, "vector", "a vector is missing"),
        ({"vector": [1.0, None]}, "vector", "a number in the vector is missing"),
        ({"vector": [1.0, float("nan")]}, "vector", "nan in the vector"),
        ({"vector": [1.0, 1e39]}, "vector", "1e[+]39 in the vector"),
        ({"vector": [0.0, 0.0]}, "vector", "zero vector"),
        ({"id": None}, "id", "an id is missing"),
        ({"id": -1}, "id", "id -1"),
    ],
)
def test_a_bad_value_is_named_with_file_row_and_column(
    columns: dict[str, Any], name: str, said: str, tmp_path: Path
) -> None:
    """What has no place in a collection is an error that says where it stands."""
    source = open_source(bad_table(tmp_path, **columns))
    with pytest.raises(InvalidArgument, match=said) as caught:
        read(source, wanted=Wanted(2, True, 100))
    assert caught.value.details == {"file": source.path, "row": 450, "column": name}
    assert str(caught.value).startswith(f"{source.path}: row 450, column {name!r}: ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "row 2 .line 4.: not JSON"),
        ("[1]", "row 2 .line 4.: a JSON object"),
        ('{"id": 3}', "row 2, column 'vector': the vector is missing"),
        ('{"id": 3, "vector": "1,2"}', "str instead of a list"),
        ('{"id": 3, "vector": [1]}', "1 numbers; the collection has 2"),
        ('{"id": 3, "vector": [1, "2"]}', "'2' in the vector"),
        ('{"id": 3, "vector": [1, true]}', "True in the vector"),
        ('{"id": 3, "vector": [1, null]}', "None in the vector"),
        ('{"id": "3", "vector": [1, 2]}', "id '3' is a str"),
        ('{"id": 1.5, "vector": [1, 2]}', "id 1.5 is a float"),
        ('{"id": true, "vector": [1, 2]}', "id True is a bool"),
        ('{"vector": [1, 2]}', "an id is missing"),
    ],
)
def test_a_bad_line_is_named(line: str, said: str, tmp_path: Path) -> None:
    """A line of JSON that is no point is named by row and line."""
    good = '{"id": %d, "vector": [1, 2]}\n'
    (tmp_path / "a.jsonl").write_text(good % 1 + "\n" + good % 2 + line + "\n")
    with pytest.raises(InvalidArgument, match=said):
        read(open_source(str(tmp_path / "a.jsonl")), wanted=Wanted(2, True, 100))


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    """A line is never read whole into memory where it is longer than any point."""
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"vector": [' + b"1," * lines.LINE_BYTES_MAX)
    with pytest.raises(InvalidArgument, match="line 1 has more than"):
        open_source(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("write", WITH_COLUMNS + PLAIN)
def test_a_file_that_is_not_whole_is_refused(write: Writer, tmp_path: Path, vectors: npt.NDArray[np.float32]) -> None:
    """A file that was cut short is an error that names it, before or while it is read; never fewer rows in silence."""
    path = write(tmp_path, vectors)
    data = path.read_bytes()
    cut = len(data) * 2 // 3
    while data[cut - 1 : cut] in (b"}", b"\n"):
        # Cut between two lines, the file would be whole.
        cut -= 1
    path.write_bytes(data[:cut])
    with pytest.raises(InvalidArgument, match=str(path)):
        read(open_source(str(path)))


def test_what_is_no_file_to_import_is_refused(tmp_path: Path) -> None:
    """No such file, an unknown ending, a column that is not there, a payload that JSON has no form for."""
    with pytest.raises(NotFound, match="no such file"):
        open_source(str(tmp_path / "none.parquet"))
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(InvalidArgument, match=r"\.csv.*\.parquet"):
        open_source(str(tmp_path / "a.csv"))
    ones = pa.array([[1.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": ones, "raw": pa.array([b"x"])}), tmp_path / "a.parquet")
    with pytest.raises(InvalidArgument, match="'raw': values of binary"):
        open_source(str(tmp_path / "a.parquet"))
    with pytest.raises(InvalidArgument, match="'key': no such column"):
        open_source(str(tmp_path / "a.parquet"), "key")
    with pytest.raises(InvalidArgument, match="'raw': vectors of binary"):
        open_source(str(tmp_path / "a.parquet"), None, "raw")
    np.savez(tmp_path / "a.npz", vectors=np.array([[1, 2]], object), allow_pickle=True)
    with pytest.raises(InvalidArgument, match="Python objects"):
        open_source(str(tmp_path / "a.npz"))


def test_an_export_is_read_back_by_its_payload_column(tmp_path: Path) -> None:
    """The payload of an export is its JSON; the columns of declared fields are not a second source of it."""
    about = {"name": "n", "dim": 1, "metric": "l2", "fields": {"a": "int64"}, "index": "flat", "metadata": {"m": 1}}
    ones = pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1))
    table = pa.table({"id": [1, 2], "vector": ones, "a": [5, None], "payload": ['{"a":5,"b":null}', "{}"]})
    pq.write_table(
        table.replace_schema_metadata({tables.EXPORT_KEY: json.dumps(about).encode()}), tmp_path / "a.parquet"
    )
    source = open_source(str(tmp_path / "a.parquet"))
    (batch,) = read(source, wanted=Wanted(1, False, 10))
    assert batch.payloads == [{"a": 5, "b": None}, {}]
    described = source.describe()
    assert (described.metric, described.fields, described.metadata) == ("l2", {"a": "int64"}, {"m": 1})


def test_halves_of_a_batch_are_its_rows(vectors: npt.NDArray[np.float32]) -> None:
    """Splitting keeps ids, vectors and payloads together."""
    whole = Batch(5, ["a", "b", "c"], vectors[:3], [{"i": i} for i in range(3)])
    first, second = whole.halves()
    assert (first.row, first.ids, first.payloads) == (5, ["a"], [{"i": 0}])
    assert (second.row, second.ids, second.payloads) == (6, ["b", "c"], [{"i": 1}, {"i": 2}])
    assert np.array_equal(np.concatenate([first.vectors, second.vectors]), vectors[:3])


def test_ids_of_a_plain_file_need_no_columns(tmp_path: Path) -> None:
    """Naming a column of a file without columns is an error, not ignored."""
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    with pytest.raises(InvalidArgument, match="--id has no meaning"):
        arrays.npy_source(str(tmp_path / "a.npy"), "id", None)
