"""docs/errors.md knows every error of the tree, with its true status, retryability and built-in class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vecstore import errors
from vecstore.errors import VecstoreError
from vecstore.wire.status import code_of

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/errors.md").read_text()
ROW = re.compile(r"^\| \[`(\w+)`\]\(#(\w+)\) \| (\w+) \| (yes|no) \| (?:`(\w+)` )?\|$", re.MULTILINE)
TREE = [name for name in errors.__all__ if name != "VecstoreError"]


def rows() -> dict[str, tuple[str, str, str, str]]:
    """Return the table: name to link, status, retryability and built-in class."""
    return {
        name: (link, status, retryable, builtin) for name, link, status, retryable, builtin in ROW.findall(DOCUMENT)
    }


def section(name: str) -> str:
    """Return what the document says under the heading of an error."""
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    return found.group(1) if found else ""


def builtin_of(kind: type[VecstoreError]) -> str:
    """Return the name of the built-in class beside VecstoreError that an error is, or nothing."""
    others = [base.__name__ for base in kind.__bases__ if base is not VecstoreError]
    return "".join(others)


def test_the_table_holds_the_tree_and_nothing_else() -> None:
    """Every class has one row, in the order of the tree's drawing, and no row is of a class that is gone."""
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert list(rows()) == drawn
    assert sorted(drawn) == TREE


@pytest.mark.parametrize("name", TREE)
def test_a_row_is_true(name: str) -> None:
    """The status is what the server answers, the retryability what the class says, the built-in class what it is."""
    error = getattr(errors, name)("text")
    retryable = "yes" if error.retryable else "no"
    assert rows()[name] == (name.lower(), code_of(error).name, retryable, builtin_of(type(error)))


@pytest.mark.parametrize("name", TREE)
def test_an_error_says_what_it_means_and_what_to_do(name: str) -> None:
    """Each error has its section: what it means, what became of the write, what to do."""
    said = re.findall(r"^- \*\*(\w+)\*\*: \S", section(name), re.MULTILINE)
    assert said == ["Means", "Outcome", "Do"]
