"""Every code block of README.md and docs/guide.md runs, in order, and prints what the document says.

- A ``python`` block runs in one namespace for each document, in a folder of its own. A ``text`` block directly after it
  is its output; ``...`` in it stands for anything.
- A ``python NAME`` block is another product's code. It is run, in the same order and namespace, where that product is
  installed, and left out elsewhere with its output.
- A ``console run`` block holds lines that begin with ``$ ``: each is run in the same folder, and what follows is its
  output. A plain ``console`` block is for reading.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/guide.md", "docs/errors.md", "docs/from-chroma.md", "docs/from-qdrant.md")
PEERS = {
    "chromadb": ("docs/from-chroma.md", "python chroma"),
    "qdrant_client": ("docs/from-qdrant.md", "python qdrant"),
}
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its text, the line it begins at, and the output that the document gives for it."""

    language: str
    code: str
    line: int
    output: str | None


def blocks(document: str) -> Iterator[Block]:
    """Iterate over the blocks of a document."""
    found = list(FENCE.finditer(document))
    for match, following in zip(found, [*found, None][1:], strict=True):
        output = None
        if following is not None and following.group(1).strip() == "text":
            between = document[match.end() : following.start()]
            output = following.group(2) if not between.strip() else None
        line = document.count("\n", 0, match.start()) + 1
        yield Block(match.group(1).strip(), match.group(2), line, output)


def agrees(wanted: str, got: str) -> bool:
    """Tell whether output is what a document says, where ``...`` stands for anything."""
    return doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS)


def run_python(block: Block, namespace: dict[str, Any], name: str) -> str:
    """Run a block and return what it printed; line numbers in tracebacks are the document's."""
    printed = io.StringIO()
    code = compile("\n" * block.line + block.code, name, "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def run_console(block: Block) -> list[tuple[str, str, str]]:
    """Run the commands of a block; return command, wanted output and output of each."""
    found = []
    for piece in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
        command, _, wanted = piece.partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "vecstore", f"line {block.line}: only vecstore is run, not {program}"
        environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
        done = subprocess.run(
            [str(Path(sys.executable).with_name("vecstore")), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=COMMAND_TIMEOUT_S,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"line {block.line}: $ {command}\nexits with {done.returncode}\n{done.stdout}"
        found.append((command, wanted, done.stdout))
    return found


def failures(document: str, name: str, folder: Path, peer: str = "python") -> list[str]:
    """Run all blocks of a document in a folder, with those of a peer, and return where it is not true."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    lines = []
    with contextlib.chdir(folder):
        for block in blocks(document):
            if block.language in ("python", peer):
                got = run_python(block, namespace, name)
                if block.output is not None and not agrees(block.output, got):
                    lines.append(f"{name}:{block.line} says\n{block.output}\nbut prints\n{got}")
            elif block.language == "console run":
                lines += [
                    f"{name}:{block.line} $ {command}\nsays\n{wanted}\nbut prints\n{got}"
                    for command, wanted, got in run_console(block)
                    if not agrees(wanted, got)
                ]
    return lines


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_true(name: str, tmp_path: Path) -> None:
    """What a newcomer copies works, and prints what the document shows."""
    found = failures((ROOT / name).read_text(), name, tmp_path)
    assert found == [], "\n".join(found)


@pytest.mark.filterwarnings("default")  # what another product warns of is its own affair
@pytest.mark.parametrize("package", PEERS)
def test_what_is_said_of_others_is_true(package: str, tmp_path: Path) -> None:
    """The other product's code works too, and prints what the document shows."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    name, language = PEERS[package]
    found = failures((ROOT / name).read_text(), name, tmp_path, language)
    assert found == [], "\n".join(found)


@pytest.mark.parametrize("name", [name for name, _ in PEERS.values()])
def test_ten_tasks_in_both(name: str) -> None:
    """Each task stands there once, with the other product's code and then ours."""
    sections = re.split(r"^## ", (ROOT / name).read_text(), flags=re.MULTILINE)
    tasks = [section for section in sections if section[0].isdigit()]
    assert [int(task.split(".")[0]) for task in tasks] == list(range(1, 11))
    for task in tasks:
        languages = [block.language for block in blocks(task) if block.language.startswith("python")]
        assert languages == [dict(PEERS.values())[name], "python"], task.splitlines()[0]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_hold_blocks_that_run(name: str) -> None:
    """Each document has code with output to compare, so that the test above has something to say."""
    assert any(block.language == "python" and block.output for block in blocks((ROOT / name).read_text()))


def test_a_document_that_is_wrong_is_found(tmp_path: Path) -> None:
    """The comparison sees an output that differs, and lets ``...`` stand for anything."""
    document = "```python\nprint(1)\nprint(23)\n```\n\n```text\n1\n{}\n```\n"
    assert failures(document.format("2..."), "right", tmp_path) == []
    assert len(failures(document.format("24"), "wrong", tmp_path)) == 1


def test_an_output_belongs_to_the_block_directly_before_it() -> None:
    """Prose between a block and a text block parts them."""
    together, apart = "```python\n1\n```\n\n```text\n2\n```\n", "```python\n1\n```\nbut\n```text\n2\n```\n"
    assert [block.output for document in (together, apart) for block in blocks(document)] == ["2\n", None, None, None]


def test_the_readme_holds_both_commands() -> None:
    """One line sets up everything and runs the demo; one sets up everything and passes the tests."""
    lines = (ROOT / "README.md").read_text().splitlines()
    for ending in (".venv/bin/vecstore demo", ".venv/bin/pytest"):
        assert [line.startswith("python3 -m venv .venv && ") for line in lines if line.endswith(ending)] == [True]
