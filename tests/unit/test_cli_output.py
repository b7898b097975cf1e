"""What the command line prints, and where: lines for people on stderr, results on stdout."""

from __future__ import annotations

import json
import logging

import click
import pytest
from click.testing import CliRunner

from vecstore.cli.output import Output, duration, reporting
from vecstore.errors import Exhausted


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0.4 ms"), (0.015, "15 ms"), (4.21, "4.2 s"), (185, "3m05s"), (3725, "1h02m")],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    """A time has the unit that a person would choose."""
    assert duration(seconds) == text


def test_what_the_library_logs_is_one_line() -> None:
    """A failure in the background is told as one line, without its traceback, and the command goes on."""

    @click.command()
    @reporting
    def command(out: Output) -> None:
        try:
            raise Exhausted("disk: full")
        except Exhausted:
            logging.getLogger("vecstore.engine").exception("a checkpoint failed")
        out.result({"done": True}, "done")

    done = CliRunner().invoke(command, ["--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"done": True})
    assert done.stderr == "error: a checkpoint failed: disk: full\n"


def test_an_error_is_one_line_and_one_document() -> None:
    """An error of the library has its hint on the line, its details in the document, and exit code 1."""

    @click.command()
    @reporting
    def command(out: Output) -> None:
        raise Exhausted("disk: full\nreally", hint="free space", details={"free_bytes": 7})

    done = CliRunner().invoke(command, ["--json"])
    assert done.exit_code == 1
    assert done.stderr == "error: disk: full really (free space)\n"
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["message"], error["hint"]) == ("Exhausted", "disk: full really", "free space")
    assert (error["outcome"], error["details"]) == ("refused", {"free_bytes": 7})


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """In a log, progress is a line at the first step and at the last, with what is done and what is left."""
    with Output(False).meter("import docs") as meter:
        meter(0, 100)
        meter(40, 100)
        meter(50, 100)
        meter(100, 100)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("import docs: 40 of 100 rows, ")
    assert lines[0].endswith(" left")
    assert lines[1].startswith("import docs: 100 of 100 rows")
