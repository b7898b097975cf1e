"""The installed command `vecstore`, seen from outside: a process, its exit code, its stdout and stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

COMMAND = str(Path(sys.executable).with_name("vecstore"))
DIM = 8
TIMEOUT_S = 240


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The JSON document on stdout."""
        return json.loads(self.out)


def vecstore(*arguments: object) -> Done:
    """Run the command, whatever its exit code."""
    command = [COMMAND, *(str(each) for each in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def good(*arguments: object) -> Any:
    """Run a command that must succeed, with ``--json``, and return what it says."""
    done = vecstore(*arguments, "--json")
    assert done.code == 0, done.err
    return done.value


def refused(*arguments: object) -> tuple[dict[str, Any], str]:
    """Run a command that must be refused; return the JSON error, and the one line that people see."""
    done = vecstore(*arguments, "--json")
    assert done.code == 1
    error: dict[str, Any] = done.value["error"]
    plain = vecstore(*arguments)
    assert plain.code == 1
    line = plain.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert error["message"] in line
    return error, line


def rows_of(rows: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return vectors."""
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def write_table(path: Path, rows: int, seed: int = 0) -> Path:
    """Write a Parquet file of points: even rows have a size, odd ones none."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows_of(rows, seed).reshape(-1)), DIM)
    columns = {
        "key": [f"p{i:06d}" for i in range(rows)],
        "section": [("web", "mail", "db")[i % 3] for i in range(rows)],
        "size": [i if i % 2 == 0 else None for i in range(rows)],
        "vector": vectors,
    }
    pq.write_table(pa.table(columns), path, row_group_size=max(1, rows // 4))
    return path


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """Return where a store may be made."""
    return tmp_path / "store"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with a collection `docs` of 600 points, made by the command line; tests only read it."""
    folder = tmp_path_factory.mktemp("filled")
    file = write_table(folder / "docs.parquet", 600)
    good("create", folder / "store", "docs", "--dim", DIM, "--field", "section:string", "--field", "size:int64")
    done = good("import", folder / "store", "docs", file, "--id", "key", "--batch-rows", 100)
    assert (done["rows"], done["count"], done["resumed_rows"]) == (600, 600, 0)
    return folder / "store"


# -- create ----------------------------------------------------------------------------------------------------------


def test_create_makes_a_store_and_a_collection(where: Path) -> None:
    """What was asked for is what status tells, after the process is gone."""
    fields = ["--field", "section:string", "--field", "tags:list<string>"]
    made = good("create", where, "docs", "--dim", 4, "--metric", "l2", *fields, "--metadata", '{"embedding": {"a": 1}}')
    assert made == {
        "name": "docs",
        "dim": 4,
        "metric": "l2",
        "fields": {"section": "string", "tags": "list<string>"},
        "metadata": {"embedding": {"a": 1}},
    }
    one = good("status", where)["collections"]["docs"]
    assert (one["dim"], one["metric"], one["count"]) == (4, "l2", 0)
    assert good("collections", where) == ["docs"]


def test_create_twice_is_refused_unless_it_may_exist(where: Path) -> None:
    """An existing name is an error; with `--exist-ok` it is fine for the same arguments alone."""
    good("create", where, "docs", "--dim", 4)
    error, _ = refused("create", where, "docs", "--dim", 4)
    assert error["kind"] == "AlreadyExists"
    good("create", where, "docs", "--dim", 4, "--exist-ok")
    error, _ = refused("create", where, "docs", "--dim", 5, "--exist-ok")
    assert error["kind"] in ("AlreadyExists", "InvalidArgument")


def test_rename_and_drop(where: Path) -> None:
    """A collection gets another name, and is gone after a drop."""
    good("create", where, "a", "--dim", 4)
    good("create", where, "b", "--dim", 4)
    assert refused("rename", where, "a", "b")[0]["kind"] == "AlreadyExists"
    good("rename", where, "a", "b", "--replace")
    assert good("collections", where) == ["b"]
    assert good("drop", where, "b", "--yes") == {"name": "b", "count": 0}
    assert good("collections", where) == []
    assert refused("drop", where, "b", "--yes")[0]["kind"] == "NotFound"


# -- usage and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["create", "w", "n"],
        ["create", "w", "n", "--dim", "4", "--field", "a:number"],
        ["create", "w", "n", "--dim", "4", "--field", "a"],
        ["create", "w", "n", "--dim", "4", "--metric", "manhattan"],
        ["create", "w", "n", "--dim", "4", "--metadata", "[1]"],
        ["import", "w", "n"],
        ["import", "w", "n", "a.parquet", "--batch-rows", "0"],
        ["import", "w", "n", "a.parquet", "--metric", "l2"],
        ["search", "w", "n"],
        ["search", "w", "n", "--like", "1", "--vector", "[1]"],
        ["search", "w", "n", "--like", "1", "--filter", "{"],
    ],
)
def test_wrong_usage_has_exit_code_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be a command is told apart from a command that failed, and touches nothing."""
    monkeypatch.chdir(tmp_path)
    done = vecstore(*arguments)
    assert (done.code, done.out) == (2, "")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_not_there_is_not_made(where: Path) -> None:
    """Only `create` and `import --create` make a store; all other commands leave nothing behind."""
    for arguments in (["status"], ["verify"], ["collections"], ["search", "n", "--like", "1"], ["drop", "n", "--yes"]):
        command, *rest = arguments
        assert refused(command, where, *rest)[0]["kind"] == "NotFound"
    assert not where.exists()


def test_a_folder_that_is_no_store_is_left_untouched(tmp_path: Path) -> None:
    """A folder of other things is refused, and holds the same things afterwards."""
    (tmp_path / "letter.txt").write_text("dear reader")
    for command in (["status", tmp_path], ["create", tmp_path, "n", "--dim", 4]):
        refused(*command)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_what_works_on_a_directory_alone_refuses_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log is cut where the store is: the address of a server is refused, and no folder of that name is made."""
    monkeypatch.chdir(tmp_path)
    for address in ("localhost:7601", "10.0.0.1:7601", "[::1]:7601"):
        error, line = refused("doctor", address, "--accept-loss")
        assert error["kind"] == "InvalidArgument"
        assert address in line
        assert "server" in line
    assert list(tmp_path.iterdir()) == []


# -- search ----------------------------------------------------------------------------------------------------------


def test_search_like_a_point_leaves_it_out(filled: Path) -> None:
    """The nearest of a point are those of its vector, without itself, scores descending."""
    vectors = rows_of(600)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit[17]
    expected = [f"p{i:06d}" for i in np.argsort(-scores)[1:6]]
    found = good("search", filled, "docs", "--like", "p000017", "-k", 5, "--exact")
    assert [hit["id"] for hit in found["hits"]] == expected
    assert found["exact"] is True
    assert found["hits"][0]["score"] == pytest.approx(np.sort(scores)[-2], abs=1e-5)


def test_search_keeps_to_the_filter(filled: Path) -> None:
    """All hits match the condition, and payloads come with them."""
    condition = json.dumps({"section": "web", "size": {"$lt": 300}})
    found = good("search", filled, "docs", "--like", "p000000", "--filter", condition, "--recall", 0.99)
    assert len(found["hits"]) == 10
    for hit in found["hits"]:
        assert hit["payload"]["section"] == "web"
        assert hit["payload"]["size"] < 300


def test_search_takes_a_vector_as_json_or_file(filled: Path, tmp_path: Path) -> None:
    """A vector in the command and the same in a file have the same hits."""
    vector = rows_of(600)[5]
    np.save(tmp_path / "q.npy", vector)
    by_file = good("search", filled, "docs", "--vector", tmp_path / "q.npy", "-k", 3)
    by_text = good("search", filled, "docs", "--vector", json.dumps(vector.tolist()), "-k", 3)
    assert [hit["id"] for hit in by_file["hits"]] == [hit["id"] for hit in by_text["hits"]]
    assert by_file["hits"][0]["id"] == "p000005"


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["none", "--like", "1"], "NotFound", "none"),
        (["docs", "--like", "zzz"], "NotFound", "zzz"),
        (["docs", "--like", "p000001", "-k", "0"], "InvalidArgument", "k"),
        (["docs", "--like", "p000001", "--recall", "2"], "InvalidArgument", "recall"),
        (["docs", "--like", "p000001", "--recall", "0.9", "--exact"], "InvalidArgument", "exact"),
        (["docs", "--like", "p000001", "--filter", '{"colour": 1}'], "InvalidArgument", "colour"),
        (["docs", "--vector", "[1, 2]"], "InvalidArgument", "8"),
        (["docs", "--vector", "none.npy"], "NotFound", "none.npy"),
    ],
)
def test_a_search_that_has_no_meaning_is_refused(arguments: list[str], kind: str, said: str, filled: Path) -> None:
    """The error names what was given."""
    error, line = refused("search", filled, *arguments)
    assert error["kind"] == kind
    assert said in line


def test_output_for_people_is_a_table(filled: Path) -> None:
    """Without `--json` a hit is a line with id, score and payload; stdout has no control codes."""
    done = vecstore("search", filled, "docs", "--like", "p000017", "-k", 3)
    assert done.code == 0
    assert "section" in done.out
    assert sum("p0" in line for line in done.out.splitlines()) == 3
    assert "\x1b" not in done.out


# -- status, verify, doctor ------------------------------------------------------------------------------------------


def test_status_and_verify_agree(filled: Path) -> None:
    """What verify recomputes from the bytes is what status tells."""
    status, proof = good("status", filled), good("verify", filled)
    assert proof["ok"] is True
    assert proof["damaged"] == []
    assert (proof["lsn"], proof["chain"]) == (status["lsn"], status["chain"])
    assert proof["collections"]["docs"]["digest"] == status["collections"]["docs"]["digest"]
    assert status["collections"]["docs"]["count"] == 600
    for command in ("status", "verify", "doctor"):
        done = vecstore(command, filled)
        assert (done.code, bool(done.out)) == (0, True)


def test_doctor_finds_nothing_wrong_with_a_good_store(filled: Path) -> None:
    """A store that is well is said to be well."""
    good("doctor", filled)


def test_verify_and_doctor_fail_where_bytes_are_damaged(where: Path, tmp_path: Path) -> None:
    """A byte that changed in RocksDB's files is found: exit code 1, one line, no traceback, whichever command asks."""
    file = write_table(tmp_path / "a.parquet", 400)
    good("import", where, "docs", file, "--id", "key", "--create", "--batch-rows", 50)
    written = [path for path in where.rglob("*") if path.suffix in (".sst", ".blob", ".log") and path.stat().st_size]
    largest = max(written, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    done = vecstore("verify", where)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: ")


def test_the_doctor_names_what_is_lost_and_goes_on_without_it(where: Path) -> None:
    """A log that was cut below the witness: nothing opens it, the doctor names the LSNs, and cuts when told to."""
    code = (
        "import os, sys, vecstore\n"
        "docs = vecstore.open(sys.argv[1]).collection('docs')\n"
        "for i in range(20): docs.upsert([i], [[1, 0, 0, 0, 0, 0, 0, i]])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    good("create", where, "docs", "--dim", DIM)
    last = good("status", where)["lsn"]
    subprocess.run([sys.executable, "-c", code, str(where)], check=False)
    log = max(where.rglob("*.log"), key=lambda path: path.stat().st_size)
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    error, line = refused("status", where)
    assert error["kind"] == "Damaged"
    assert "doctor" in line
    done = vecstore("doctor", where, "--json")
    assert (done.code, done.value["ok"]) == (1, False)
    lost = [done.value["details"]["first_lost_lsn"], done.value["details"]["last_lost_lsn"]]
    assert last < lost[0] < lost[1] == last + 20
    told = vecstore("doctor", where)
    assert told.code == 1
    assert f"{lost[0]} to {lost[1]}" in told.out
    mended = good("doctor", where, "--accept-loss")
    assert (mended["ok"], mended["accepted"]["lost"]) == (True, lost)
    status = good("status", where)
    assert (status["lsn"], status["epoch"]) == (lost[0], 2)
    assert good("verify", where)["ok"] is True


def test_a_store_that_another_process_has_can_be_read(where: Path) -> None:
    """Writing is refused with the other's pid; reading works from its last state."""
    good("create", where, "docs", "--dim", 4)
    code = (
        "import sys, vecstore\n"
        "db = vecstore.open(sys.argv[1])\n"
        "db.collection('docs').upsert([1, 2], [[1, 0, 0, 0], [0, 1, 0, 0]])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(where)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        error, line = refused("create", where, "more", "--dim", 4)
        assert error["kind"] == "Locked"
        assert str(holder.pid) in line
        found = vecstore("search", where, "docs", "--like", "1", "--json")
        assert found.code == 0
        assert str(holder.pid) in found.err
        assert [hit["id"] for hit in found.value["hits"]] == [2]
        holder.communicate("")


# -- export ----------------------------------------------------------------------------------------------------------


def test_an_export_makes_the_same_collection_again(filled: Path, where: Path, tmp_path: Path) -> None:
    """The digest of a collection made from an export is that of the one exported."""
    file = tmp_path / "out.parquet"
    exported = good("export", filled, "docs", file)
    assert exported["rows"] == 600
    assert exported["bytes"] == file.stat().st_size
    digest = good("status", filled)["collections"]["docs"]["digest"]
    made = good("import", where, "docs", file, "--create")
    assert exported["digest"] == made["digest"] == digest
    assert pq.read_table(file).num_rows == 600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out.parquet"]


def test_an_export_of_a_filter_has_what_matches(filled: Path, tmp_path: Path) -> None:
    """Only the points that match are written, and a file that exists is kept unless it may be replaced."""
    file = tmp_path / "web.parquet"
    assert good("export", filled, "docs", file, "--filter", '{"section": "web"}')["rows"] == 200
    assert set(pq.read_table(file)["section"].to_pylist()) == {"web"}
    assert refused("export", filled, "docs", file)[0]["kind"] == "AlreadyExists"
    assert good("export", filled, "docs", file, "--overwrite")["rows"] == 600


# -- import ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["parquet", "arrow", "arrows", "jsonl", "npy", "npz", "fvecs", "h5"])
def test_every_format_is_imported(ending: str, where: Path, tmp_path: Path) -> None:
    """The rows of each format are searched by their row numbers afterwards."""
    vectors = rows_of(50)
    file = write_as(ending, tmp_path / f"a.{ending}", vectors)
    done = good("import", where, "docs", file, "--create", "--metric", "l2", "--batch-rows", 20)
    assert (done["rows"], done["count"]) == (50, 50)
    found = good("search", where, "docs", "--vector", json.dumps(vectors[33].tolist()), "-k", 1)
    assert found["hits"] == [{"id": 33, "score": 0.0, "payload": {}}]


def write_as(ending: str, path: Path, vectors: npt.NDArray[np.float32]) -> Path:
    """Write vectors in the format of an ending."""
    table = pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])})
    if ending == "parquet":
        pq.write_table(table, path)
    elif ending in ("arrow", "arrows"):
        writer = pa.ipc.new_file if ending == "arrow" else pa.ipc.new_stream
        with writer(str(path), table.schema) as file:
            file.write_table(table)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps({"vector": row}) + "\n" for row in vectors.tolist()))
    elif ending == "npy":
        np.save(path, vectors)
    elif ending == "npz":
        np.savez(path, vectors=vectors)
    elif ending == "fvecs":
        dims = np.full((len(vectors), 1), vectors.shape[1], np.int32)
        np.hstack([dims, vectors.view(np.int32)]).tofile(path)
    else:
        import h5py

        with h5py.File(path, "w") as file:
            file["train"] = vectors
    return path


def test_row_numbers_go_on_from_file_to_file(where: Path, tmp_path: Path) -> None:
    """Rows of a second file have ids of their own, and do not replace those of the first."""
    files = [write_as("npy", tmp_path / f"{i}.npy", rows_of(30, seed=i)) for i in range(3)]
    done = good("import", where, "docs", *files, "--create", "--batch-rows", 7)
    assert (done["rows"], done["count"]) == (90, 90)
    vector = json.dumps(rows_of(30, seed=2)[4].tolist())
    assert good("search", where, "docs", "--vector", vector, "-k", 1)["hits"][0]["id"] == 64


def test_fields_of_a_created_collection_are_those_of_the_file(where: Path, tmp_path: Path) -> None:
    """`--create` declares what the file's columns are, so that they can be filtered at once."""
    good("import", where, "docs", write_table(tmp_path / "a.parquet", 60), "--id", "key", "--create")
    found = good("search", where, "docs", "--like", "p000000", "--filter", '{"size": {"$gte": 50}}')
    assert sorted(hit["payload"]["size"] for hit in found["hits"]) == [50, 52, 54, 56, 58]


@pytest.mark.parametrize("field", ["section:int64", "size:string"])
def test_a_value_that_does_not_fit_is_named_by_row_and_field(field: str, where: Path, tmp_path: Path) -> None:
    """The engine's refusal is traced to one row; every row before it is written, and none after."""
    file = write_table(tmp_path / "a.parquet", 50)
    good("create", where, "docs", "--dim", DIM, "--field", field)
    error, line = refused("import", where, "docs", file, "--id", "key")
    assert error["kind"] == "InvalidArgument"
    assert error["details"]["row"] == 0
    assert f"{file}: row 0: " in line
    assert field.split(":", maxsplit=1)[0] in line
    assert good("status", where)["collections"]["docs"]["count"] == 0


def test_rows_before_a_bad_one_are_there(where: Path, tmp_path: Path) -> None:
    """A bad row in the middle is named; what precedes it was committed, so that a repaired file only adds the rest."""
    vectors = rows_of(100)
    vectors[70] = np.nan
    np.save(tmp_path / "a.npy", vectors)
    error, _ = refused("import", where, "docs", tmp_path / "a.npy", "--create", "--batch-rows", 20)
    assert (error["details"]["row"], error["details"]["column"]) == (70, "vector")
    assert good("status", where)["collections"]["docs"]["count"] == 60
    np.save(tmp_path / "a.npy", rows_of(100))
    assert good("import", where, "docs", tmp_path / "a.npy")["count"] == 100


def test_a_file_of_another_dimension_is_refused(where: Path, tmp_path: Path) -> None:
    """The file's dimension and the collection's are both named."""
    good("create", where, "docs", "--dim", 5)
    _, line = refused("import", where, "docs", write_as("npy", tmp_path / "a.npy", rows_of(3)))
    assert "8" in line
    assert "5" in line


def test_a_damaged_file_is_refused(where: Path, tmp_path: Path) -> None:
    """Bytes that are no Parquet are one line of error that names the file."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    _, line = refused("import", where, "docs", tmp_path / "a.parquet", "--create")
    assert "a.parquet" in line
    assert not where.exists()


# -- interruption ----------------------------------------------------------------------------------------------------

ROWS = 6_000
BATCH_ROWS = 50


def start_and_kill(arguments: list[str], reports: int) -> None:
    """Start an import, and kill it with SIGKILL once it has reported progress so many times."""
    with subprocess.Popen([COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        for _ in range(reports):
            assert "rows" in child.stderr.readline()
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_killed_import_continues_to_the_same_digest(ending: str, tmp_path: Path) -> None:
    """Kill -9 in the middle, three times over, then to the end: what an import without interruption would have made."""
    file = tmp_path / f"a.{ending}"
    if ending == "parquet":
        write_table(file, ROWS)
        options = ["--id", "key"]
    else:
        write_as(ending, file, rows_of(ROWS))
        options = []
    options += ["--create", "--batch-rows", str(BATCH_ROWS), "--json"]
    whole = good("import", tmp_path / "whole", "docs", file, *options)
    command = ["import", str(tmp_path / "killed"), "docs", str(file), *options]
    counts = []
    for _ in range(3):
        start_and_kill(command, reports=1)
        counts.append(good("status", tmp_path / "killed")["collections"]["docs"]["count"])
    assert counts == sorted(set(counts))
    assert BATCH_ROWS <= counts[0] < counts[-1] < ROWS
    resumed = good(*command)
    assert (resumed["digest"], resumed["count"]) == (whole["digest"], ROWS)
    assert counts[-1] - BATCH_ROWS <= resumed["resumed_rows"] <= counts[-1]
    assert good("verify", tmp_path / "killed")["ok"] is True


def test_an_import_into_a_changed_collection_starts_over(where: Path, tmp_path: Path) -> None:
    """Where points were removed after the interruption, no row is taken for written that is not there."""
    file = write_table(tmp_path / "a.parquet", ROWS)
    options = ["--id", "key", "--create", "--batch-rows", str(BATCH_ROWS)]
    start_and_kill(["import", str(where), "docs", str(file), *options], reports=1)
    good("drop", where, "docs", "--yes")
    done = vecstore("import", where, "docs", file, *options, "--json")
    assert (done.code, done.value["count"], done.value["resumed_rows"]) == (0, ROWS, 0)
    assert "starting at the first row again" in done.err


# -- demo ------------------------------------------------------------------------------------------------------------


def test_the_demo_proves_what_it_says(tmp_path: Path) -> None:
    """The demo ends well, and its store holds what it claims: asked again, from outside."""
    report = good("demo", "--dir", tmp_path / "demo")
    assert report["ok"] is True
    assert len(report["checks"]) == 5
    assert all(report["checks"].values())
    assert report["imported"] == 4_000
    assert report["seconds"] < 60
    assert [answer["question"] for answer in report["answers"][::2]] == ["nginx", "postgresql", "ffmpeg"]
    assert {hit["id"] for hit in report["answers"][0]["hits"]} >= {"nginx-core", "nginx-common"}
    assert len(report["steps_s"]) == 7
    status = good("status", tmp_path / "demo")
    assert status["collections"]["packages"]["count"] == 4_000
    assert status["collections"]["writer"]["count"] >= report["acknowledged_points"] >= 25_000
    assert status["lsn"] >= report["acknowledged_lsn"]
    assert good("verify", tmp_path / "demo")["ok"] is True
    sections = good("search", tmp_path / "demo", "packages", "--like", "ffmpeg", "--filter", '{"section": "video"}')
    assert {hit["payload"]["section"] for hit in sections["hits"]} == {"video"}


def test_the_demo_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `--dir` the store is removed; the story is told on stdout."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = vecstore("demo")
    assert done.code == 0
    assert "Nothing acknowledged was lost" in done.out
    assert list(tmp_path.iterdir()) == []


def test_the_demo_keeps_out_of_a_folder_in_use(tmp_path: Path) -> None:
    """A folder that holds something is refused, and left as it is."""
    (tmp_path / "letter.txt").write_text("dear reader")
    assert refused("demo", "--dir", tmp_path)[0]["kind"] == "AlreadyExists"
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
