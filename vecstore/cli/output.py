"""All that the command line prints, and how it fails.

Results go to stdout: a table for people, or with ``--json`` one JSON document. Messages and progress go to stderr. An
error is one line, ``error: ...``, and exit code 1; with ``--json`` stdout has ``{"error": {...}}`` beside. rich is
imported when something is drawn, so that help stays fast.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import click
import msgspec

from ..errors import VecstoreError

__all__ = ["Meter", "Output", "duration", "reporting"]

_LINE_INTERVAL_S = 2.0


class Meter(Protocol):
    """Shows how far something is."""

    def __call__(self, done: int, total: int | None) -> None:
        """Say how much is done, of how much if that is known."""
        ...


class Output:
    """Where one command prints.

    Parameters
    ----------
    as_json
        Whether stdout is for a program.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, value: Any, text: Callable[[], None] | str) -> None:
        """Print the result: as JSON, or as `text`, or by calling it."""
        if self.as_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
        elif callable(text):
            text()
        else:
            print(text)
        sys.stdout.flush()

    def say(self, message: str) -> None:
        """Print a message for people."""
        print(message, file=sys.stderr, flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
        """Print a table to stdout: numbers to the right, all else to the left."""
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
        for i, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row))
        # A pipe has no width: what reads it wants whole lines.
        Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)

    @contextmanager
    def meter(self, title: str, unit: str = "rows") -> Iterator[Meter]:
        """Show progress, rate and time left on stderr: a bar on a terminal, else a line now and then."""
        if sys.stderr.isatty():
            with _bar(title, unit) as meter:
                yield meter
        else:
            yield _Lines(title, unit)


class _Lines:
    """Progress as lines, for logs."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._start_s: float | None = None
        self._first = 0
        self._said_s = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        now_s = time.monotonic()
        if self._start_s is None:
            self._start_s, self._first = now_s, done
            return
        if done != total and now_s - self._said_s < _LINE_INTERVAL_S:
            return
        self._said_s = now_s
        rate = (done - self._first) / max(now_s - self._start_s, 1e-9)
        of = f" of {total:,}" if total else ""
        speed = f", {rate:,.0f}/s" if rate else ""
        left = f", {duration((total - done) / rate)} left" if total and rate and done < total else ""
        print(f"{self._title}: {done:,}{of} {self._unit}{speed}{left}", file=sys.stderr, flush=True)


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Meter]:
    """Draw a bar with rate and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None, count="", rate="")
        start: list[tuple[float, int]] = []

        def show(done: int, total: int | None) -> None:
            now_s = time.monotonic()
            if not start:
                start.append((now_s, done))
            rate = (done - start[0][1]) / max(now_s - start[0][0], 1e-9)
            count = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
            progress.update(task, completed=done, total=total, count=count, rate=f"{rate:,.0f}/s" if rate else "")

        yield show


def duration(seconds: float) -> str:
    """Return a time for people: ``1h02m``, ``3m05s``, ``4.2 s``, ``15 ms``."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60):02d}m"
    if seconds >= 60:
        return f"{int(seconds // 60)}m{int(seconds % 60):02d}s"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def reporting(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--json`` and its `Output`, and turn what it raises into one line and an exit code."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; messages go to stderr.")
    @functools.wraps(function)
    def run(*, as_json: bool, **arguments: Any) -> None:
        out = Output(as_json)
        logger, handler = logging.getLogger("vecstore"), _LogLines()
        logger.addHandler(handler)
        try:
            function(out, **arguments)
        except VecstoreError as exc:
            _fail(out, exc, exc.hint, {"outcome": exc.outcome, "details": exc.details})
        except BrokenPipeError:
            # Who reads stdout has seen enough; Python would complain again while it shuts down.
            sys.stderr.close()
            raise SystemExit(1) from None
        except OSError as exc:
            _fail(out, exc, "", {"outcome": "refused", "details": {}})
        except KeyboardInterrupt:
            out.say("interrupted")
            raise SystemExit(130) from None
        finally:
            logger.removeHandler(handler)

    return run


class _LogLines(logging.Handler):
    """Prints what the library logs, each record as one line on stderr, without tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        exc = record.exc_info[1] if record.exc_info else None
        why = f": {exc}" if exc is not None else ""
        line = " ".join(f"{record.getMessage()}{why}".split())
        print(f"{record.levelname.lower()}: {line}", file=sys.stderr, flush=True)


def _fail(out: Output, exc: Exception, hint: str, more: Mapping[str, Any]) -> NoReturn:
    """Print an error as one line and end the process."""
    line = " ".join(str(exc).split())
    if out.as_json:
        message = " ".join(str(exc.args[0] if hint else exc).split())
        error = {"kind": type(exc).__name__, "message": message, "hint": hint}
        sys.stdout.write(msgspec.json.encode({"error": {**error, **more}}, enc_hook=str).decode() + "\n")
        sys.stdout.flush()
    out.say(f"error: {line}")
    raise SystemExit(1) from None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
