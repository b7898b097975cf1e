"""The command line without the engine's libraries: help works, and everything else says what to install."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = ["faiss", "h5py", "pyarrow", "rocksdict"]
THIN = (
    "import sys\n"
    f"for name in {BLOCKED!r}: sys.modules[name] = None\n"
    "sys.argv[0] = 'vecstore'\n"
    "from vecstore.cli.main import main\n"
    "main()\n"
)


def thin(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that cannot import what the extras bring."""
    return subprocess.run([sys.executable, "-c", THIN, *arguments], capture_output=True, text=True, check=False)


def imported_by(code: str) -> set[str]:
    """Return the names of all modules that are there after some code ran in a process of its own."""
    command = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_needs_no_extra() -> None:
    """Help lists the commands on a thin install."""
    done = thin("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("demo", "create", "import", "export", "search", "status", "verify", "doctor"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", ["create", "import", "export", "search", "status", "verify", "doctor", "demo"])
def test_help_of_every_command_needs_no_extra(command: str) -> None:
    """Each command's help works on a thin install, and names `--json`."""
    done = thin(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--json" in done.stdout


def test_help_imports_little() -> None:
    """Help is fast because it imports neither the engine nor what draws tables."""
    modules = imported_by(
        "import contextlib, io\n"
        "from vecstore.cli.main import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): cli(['--help'], standalone_mode=False)"
    )
    assert not modules & {"faiss", "pyarrow", "rich", "rocksdict", "vecstore.cli.data", "vecstore.engine"}


@pytest.mark.parametrize(
    "arguments",
    [["create", "STORE", "a", "--dim", "2"], ["status", "STORE"], ["verify", "STORE"], ["doctor", "STORE"], ["demo"]],
)
def test_a_missing_engine_is_an_error_that_names_the_extra(arguments: list[str], tmp_path: Path) -> None:
    """Without the engine a command ends in one line with the `pip install` that helps."""
    done = thin(*(str(tmp_path) if each == "STORE" else each for each in arguments), "--json")
    assert done.returncode == 1
    assert "vecstore-db[cpu]" in done.stderr.splitlines()[-1]
    assert json.loads(done.stdout)["error"]["kind"] == "EngineMissing"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "extra"), [("a.parquet", "cpu"), ("a.arrow", "cpu"), ("a.hdf5", "hdf5")])
def test_a_missing_reader_is_an_error_that_names_the_extra(name: str, extra: str, tmp_path: Path) -> None:
    """A file whose library is not installed is refused with the extra that reads it, before a store is touched."""
    (tmp_path / name).write_bytes(b"anything")
    done = thin("import", str(tmp_path / "store"), "a", str(tmp_path / name), "--create")
    assert done.returncode == 1
    assert f"vecstore-db[{extra}]" in done.stderr
    assert not (tmp_path / "store").exists()
