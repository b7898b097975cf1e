"""examples/semantic_search.py, run as its reader would run it: in a process, on a folder of text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vecstore
from tests.support.serve import process

PROGRAM = Path(__file__).parents[2] / "examples" / "semantic_search.py"
POEM = "The whale sings below.\n\nNobody hears it.\n"
RECIPE = "Boil the noodles for nine minutes.\n\nAdd salt and butter.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Supply a folder of two text files, one of them further down, and one file of another kind."""
    folder = tmp_path / "texts"
    (folder / "kitchen").mkdir(parents=True)
    (folder / "poem.txt").write_text(POEM)
    (folder / "kitchen" / "recipe.md").write_text(RECIPE)
    (folder / "picture.png").write_bytes(b"\x89PNG whale noodles")
    return folder


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run the program beside the folder and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def test_a_folder_is_searched(folder: Path) -> None:
    """A question finds the passage that shares its words, with file and line; a filter keeps to a file."""
    printed = run(folder, "index", "texts")
    assert printed.splitlines()[-1] == "2 passages in passages"
    found = run(folder, "search", "singing whales", "-k", "1")
    assert "poem.txt:1" in found
    assert "The whale sings below." in found
    only = run(folder, "search", "singing whales", "-k", "1", "--file", "kitchen/recipe.md")
    assert "kitchen/recipe.md:1" in only


def test_a_second_run_does_only_what_changed(folder: Path) -> None:
    """What is new, changed or gone is told and taken in; what stayed is not touched."""
    run(folder, "index", "texts")
    assert run(folder, "index", "texts").splitlines() == ["2 passages in passages"]
    (folder / "poem.txt").write_text(POEM + "\n" + "A longer line about ships.\n" * 60)
    (folder / "kitchen" / "recipe.md").unlink()
    (folder / "letter.rst").write_text("Dear sir, where is my umbrella?\n")
    printed = run(folder, "index", "texts").splitlines()
    assert [line.split()[:2] for line in printed[:-1]] == [
        ["gone", "kitchen/recipe.md"],
        ["new", "letter.rst:"],
        ["changed", "poem.txt:"],
    ]
    assert "letter.rst:1" in run(folder, "search", "umbrellas", "-k", "1")
    assert "recipe" not in run(folder, "search", "noodles", "-k", "9")
    (folder / "poem.txt").write_text(POEM)
    assert run(folder, "index", "texts").splitlines()[-1] == "2 passages in passages"


def test_an_interrupted_run_is_completed(folder: Path) -> None:
    """A file of which a part is missing is taken in anew, though what is there has its hash."""
    (folder / "poem.txt").write_text("A line about ships and the sea.\n" * 100)
    run(folder, "index", "texts")
    with vecstore.open(str(folder.parent / "search-store")) as db:
        passages = db.collection("passages")
        whole = passages.count()
        passages.delete(ids=[point.id for point in passages.scan({"file": "poem.txt"}, limit=1)])
    printed = run(folder, "index", "texts").splitlines()
    assert printed[0].startswith("changed   poem.txt")
    assert printed[-1] == f"{whole} passages in passages"


def test_an_embedding_of_the_users_own(folder: Path) -> None:
    """Any callable named by module:function embeds; the collection then refuses another."""
    code = "def lengths(texts):\n    return [[len(text), 1.0] for text in texts]\n"
    (folder.parent / "mine.py").write_text(code)
    own = ("--embed", "mine:lengths", "--collection", "own")
    assert "2 passages in own" in run(folder, *own, "index", "texts")
    assert run(folder, *own, "search", "x", "-k", "2").count("\n") > 2
    refused = run(folder, "--collection", "own", "search", "x", code=1)
    assert "was made by" in refused
    assert "mine:lengths" in refused


@pytest.mark.parametrize("name", ["nonsense", "mine:", "no_such_module:f", "os:no_such_function", "os:sep"])
def test_a_wrong_embedding_is_refused(folder: Path, name: str) -> None:
    """What names no callable is an error that says so, and makes no store."""
    assert name in run(folder, "--embed", name, "search", "x", code=1)
    assert not (folder.parent / "search-store").exists()


def test_a_folder_is_searched_on_a_server(folder: Path) -> None:
    """With host:port as its store the program does the same on a server."""
    with process(folder.parent / "served") as server:
        there = ("--store", server.grpc)
        assert run(folder, *there, "index", "texts").splitlines()[-1] == "2 passages in passages"
        assert "poem.txt:1" in run(folder, *there, "search", "singing whales", "-k", "1")
    assert not (folder.parent / "search-store").exists()
