"""The rules of `docs/style.md` that a machine can check, each with the place where it is broken."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest

from vecstore import config

ROOT = Path(__file__).parents[2]
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 60
FILE_BYTES_MAX = 5_000_000
EMPTY_NAMES = {"common", "helper", "helpers", "manager", "misc", "util", "utils"}
GENERATED = ("vecstore/wire/v1/",)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def project_files() -> tuple[str, ...]:
    """Return the project's files: those of git, tracked or about to be, or without git all that was unpacked."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    else:
        made = re.compile(r"(^|/)(\.(?!ci/)[^/]+/|__pycache__/|build/|dist/|[^/]+\.egg-info/)")
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
        names = [name for name in names if not made.search(name)]
    return tuple(sorted(name for name in names if name and (ROOT / name).is_file()))


@cache
def python_files(under: str = "") -> tuple[str, ...]:
    """Return the project's own Python files below a folder."""
    found = [name for name in project_files() if name.endswith(".py") and name.startswith(under)]
    return tuple(name for name in found if not name.startswith(GENERATED))


@cache
def text(name: str) -> str:
    """Return a file's text."""
    return (ROOT / name).read_text()


@cache
def tree(name: str) -> ast.Module:
    """Return a Python file's syntax tree."""
    return ast.parse(text(name), name)


def functions(name: str) -> Iterator[Function]:
    """Iterate over the functions and methods of a file."""
    for node in ast.walk(tree(name)):
        if isinstance(node, Function):
            yield node


def body_lines(node: Function) -> int:
    """Return the lines of a function's body without its docstring."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def called(name: str) -> Iterator[tuple[int, str]]:
    """Iterate over the calls of a file: line, and the name called as it is written."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def imported(name: str) -> set[str]:
    """Return the names of the modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_the_project_is_seen() -> None:
    """The checks below look at something: the package, the tests and the documents are among the files."""
    assert {"vecstore/api.py", "tests/unit/test_tidy.py", "README.md", "docs/style.md"} <= set(project_files())


def test_no_file_is_long() -> None:
    """A Python file holds one idea: 600 lines at most."""
    lengths = {name: len(text(name).splitlines()) for name in python_files()}
    assert {name: length for name, length in lengths.items() if length > FILE_LINES_MAX} == {}


def test_no_function_is_long() -> None:
    """A function fits a screen: 60 lines at most, its docstring apart."""
    long = [
        f"{name}:{node.lineno} {node.name} has {body_lines(node)} lines"
        for name in python_files()
        for node in functions(name)
        if body_lines(node) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_no_module_has_an_empty_name() -> None:
    """A module is named for what it holds, not for being useful."""
    words = {name: set(re.split(r"[/_.]", name)) for name in python_files()}
    assert {name: found & EMPTY_NAMES for name, found in words.items() if found & EMPTY_NAMES} == {}


def test_every_module_says_what_it_is() -> None:
    """Every Python file that holds code begins with a docstring."""
    silent = [name for name in python_files() if tree(name).body and ast.get_docstring(tree(name)) is None]
    assert silent == []


def test_every_test_says_what_it_shows() -> None:
    """Every test has a sentence of docstring: what is promised, so that a failure says what was broken."""
    silent = [
        f"{name}:{node.lineno} {node.name}"
        for name in python_files("tests/")
        for node in functions(name)
        if node.name.startswith("test_") and ast.get_docstring(node) is None
    ]
    assert silent == []


def test_nothing_is_left_for_later_in_comments() -> None:
    """What is to be done is done, or is not part of the project; a comment keeps no list."""
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "HA" + "CK", "X" * 3)) + r")\b")
    found = [
        f"{name}:{number}"
        for name in python_files()
        for number, line in enumerate(text(name).splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []


def test_the_library_prints_nothing() -> None:
    """Only the command line prints; the library raises, returns, and logs."""
    found = [
        f"{name}:{line}"
        for name in python_files("vecstore/")
        if not name.startswith("vecstore/cli/")
        for line, function in called(name)
        if function == "print"
    ]
    assert found == []


def test_no_test_sleeps() -> None:
    """A test that sleeps hopes: wait for the event, or move the clock."""
    found = [
        f"{name}:{line}"
        for name in python_files("tests/")
        for line, function in called(name)
        if function in ("time.sleep", "sleep")
    ]
    assert found == []


def test_no_test_mocks() -> None:
    """A mock agrees with whoever wrote it: tests use the real thing, or a fake that keeps its promises."""
    mocks = {name: {found for found in imported(name) if "mock" in found.split(".")} for name in python_files("tests/")}
    assert {name: found for name, found in mocks.items() if found} == {}


def test_only_the_clock_reads_the_time() -> None:
    """Wall time is injected: `vecstore/clock.py` alone asks the machine what time it is."""
    clocks = ("time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow")
    found = [
        f"{name}:{line} {function}"
        for name in python_files("vecstore/")
        if name != "vecstore/clock.py"
        for line, function in called(name)
        if function in clocks
    ]
    assert found == []


def test_the_protocol_has_no_thread_and_no_file() -> None:
    """What decides in the replication is pure: what carries it out is named here, and does no deciding."""
    adapters = {f"vecstore/replication/{name}.py" for name in ("driver", "inflow", "store_log")}
    foreign = {"threading", "concurrent", "queue", "socket", "os", "pathlib", "time", "asyncio", "grpc", "subprocess"}
    found = {
        name: sorted({one.split(".")[0] for one in imported(name)} & foreign)
        for name in python_files("vecstore/replication/")
        if name not in adapters
    }
    assert len(found) > 20 and {name: some for name, some in found.items() if some} == {}


def test_no_path_of_one_machine() -> None:
    """No file names a folder that only its author has."""
    home = re.compile(r"(?<![\w.$}/)])/(?:home|root|Users|work)/[\w.]")
    found = []
    for name in project_files():
        if Path(name).suffix in {".py", ".pyi", ".md", ".toml", ".json", ".c", ".sh", ""} and name != "LICENSE":
            lines = text(name).splitlines()
            found += [f"{name}:{number}" for number, line in enumerate(lines, 1) if home.search(line)]
    assert found == []


def test_no_file_is_large() -> None:
    """What is larger than 5 MB belongs elsewhere: a clone stays quick."""
    sizes = {name: (ROOT / name).stat().st_size for name in project_files()}
    assert {name: size for name, size in sizes.items() if size > FILE_BYTES_MAX} == {}


def test_the_sample_fits_its_promise() -> None:
    """The demo's sample is under 4 MB."""
    assert (ROOT / "vecstore/cli/sample.parquet").stat().st_size < 4_000_000


def limits() -> list[str]:
    """Return the names of the limits in `config.py`."""
    units = {"KIB", "MIB", "GIB"}
    return [name for name in vars(config) if name.isupper() and name not in units and not name.startswith("_")]


@pytest.mark.parametrize("name", limits())
def test_every_limit_is_kept_somewhere(name: str) -> None:
    """A limit that no code reads is a promise that nobody keeps."""
    readers = [file for file in python_files("vecstore/") if re.search(rf"\b{name}\b", text(file))]
    uses = len(re.findall(rf"\b{name}\b", text("vecstore/config.py")))
    assert len(readers) > 1 or uses > 1


@pytest.mark.parametrize("name", [field.name for field in msgspec.structs.fields(config.Config)])
def test_every_option_is_used_and_described(name: str) -> None:
    """An option has a reader in the package, a paragraph in its class, and a row in the operator's table."""
    readers = [file for file in python_files("vecstore/") if re.search(rf"\.{name}\b", text(file))]
    assert readers != [], f"nothing reads {name}"
    assert re.search(rf"^ +{name}$", config.Config.__doc__ or "", re.MULTILINE)
    assert f"| `{name}` |" in text("docs/operations.md")


def markdown_links() -> list[tuple[str, str]]:
    """Return document and target of every link of a document to something of the project."""
    found = []
    for name in project_files():
        if name.endswith(".md"):
            prose = re.sub(r"```.*?```|`[^`]*`", "", text(name), flags=re.DOTALL)
            targets = re.findall(r"\]\(([^)\s]+)\)", prose)
            found += [(name, target) for target in targets if "://" not in target and not target.startswith("mailto:")]
    return found


def anchors(name: str) -> set[str]:
    """Return the anchors that a document's headings make."""
    headings = re.findall(r"^#+ (.+)$", text(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(document: str, target: str) -> bool:
    """Tell whether a link of a document leads nowhere."""
    path, _, anchor = target.partition("#")
    file = (ROOT / document).parent / path if path else ROOT / document
    if not file.exists():
        return True
    return bool(anchor) and anchor not in anchors(str(file.resolve().relative_to(ROOT)))


def test_every_link_leads_somewhere() -> None:
    """Links between the documents name files, and headings, that exist."""
    assert [(document, target) for document, target in markdown_links() if broken(document, target)] == []


def test_a_broken_link_is_found() -> None:
    """The check of links sees a missing file and a missing heading."""
    verdicts = [broken("README.md", target) for target in ("LICENSE", "docs/none.md", "docs/style.md#none")]
    assert verdicts == [False, True, True]


def test_the_change_log_knows_this_version() -> None:
    """The newest entry of the change log is the version that is being built."""
    version = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    newest = re.search(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == version
