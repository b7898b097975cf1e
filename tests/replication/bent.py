"""``python -m tests.replication.bent serve ...``: the product's own command, with one thing bent by the environment.

========================= ==============================================================================================
``BENT_CLOCK=FILE``       the wall clock is so many seconds ahead as the file says, which is read each time
``BENT_NEWER=1``          a later version: it knows one more kind of record, and writes it where a collection is renamed
``BENT_BUG=NAME``         one of `BUGS` is planted: what the history of two Regions must not pass
``BENT_HOLD=WHAT:FILE``   before it does WHAT (bootstrap; install or reset of a store's contents; more than one with
                          commas) it makes the file, and waits until that is gone
========================= ==============================================================================================

What is not bent is the product's, with its processes, network and disk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vecstore import clock
from vecstore.cli.main import main
from vecstore.engine import database, state
from vecstore.engine.calls import Call
from vecstore.engine.committer import Committer
from vecstore.engine.contents.export import _Export
from vecstore.record import Kind
from vecstore.server import standby
from vecstore.server.contents import StoreContents
from vecstore.storage import fold
from vecstore.values import Written

__all__ = ["BUGS", "NEWER_KIND"]

NEWER_KIND = 99
POLL_S = 0.01


def bend_clock(file: Path) -> None:
    """Set the wall clock ahead, or back."""
    true_us = clock.SystemClock.wall_us

    def wall_us(self: clock.SystemClock) -> int:
        return true_us(self) + int(float(file.read_text()) * 1e6)

    clock.SystemClock.wall_us = wall_us  # type: ignore[method-assign]


def be_newer() -> None:
    """Know a kind of record that means what a rename means, and write it in a rename's place."""
    kind = int.__new__(Kind, NEWER_KIND)
    kind._name_, kind._value_ = "NEWER", NEWER_KIND
    Kind._member_map_["NEWER"] = kind
    Kind._value2member_map_[NEWER_KIND] = kind
    kinds = SimpleNamespace(**{member.name: member for member in Kind} | {"RENAME": kind})
    for module in (database, state, fold):
        setattr(module, "Kind", kinds)  # noqa: B010  (mypy knows that it is no name to be set)


def hold(what: str, file: Path) -> None:
    """Wait before something is done to the contents."""
    owner, name = (standby, "install") if what == "bootstrap" else (StoreContents, what)
    original: Any = getattr(owner, name)

    def held(*arguments: Any) -> Any:
        file.touch()
        pause = threading.Event()
        while file.exists():
            pause.wait(POLL_S)
        return original(*arguments)

    setattr(owner, name, held)


def answer_once_stopped() -> None:
    """A store that stopped writing, since its disk refused a write, answers those behind it as done."""
    submit = Committer.submit

    def answer(self: Committer, call: Call) -> Any:
        if self.broken is None:
            return submit(self, call)
        tip = self._state.fold.tip
        return Written(tip.lsn, 1, self._history.token(tip.epoch, tip.lsn, tip.chain), "durable")

    Committer.submit = answer  # type: ignore[method-assign]


def export_records_alone() -> None:
    """Of what lies behind a fork where the log was cut, only the records that are left are exported, and no points."""

    def write_live(self: _Export, folder: str) -> None:
        pass

    _Export._write_live = write_live  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {bug.__name__: bug for bug in (answer_once_stopped, export_records_alone)}
"""What could be wrong with the product, and each of it shows under one kind of fault alone."""


if __name__ == "__main__":
    if "BENT_BUG" in os.environ:
        BUGS[os.environ["BENT_BUG"]]()
    if "BENT_CLOCK" in os.environ:
        bend_clock(Path(os.environ["BENT_CLOCK"]))
    if "BENT_NEWER" in os.environ:
        be_newer()
    if "BENT_HOLD" in os.environ:
        actions, _, place = os.environ["BENT_HOLD"].partition(":")
        for action in actions.split(","):
            hold(action, Path(place))
    main()
