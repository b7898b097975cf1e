"""What operators ask of a store by name, as messages of the protocol: names, options, and what becomes of them.

Options come as JSON. A command is carried out by the driver, in its own time; who asked is told whether it is done, and
what there is to say. Whoever asks has the role admin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..errors import InvalidArgument
from ..record import Token
from ..replication.driver import Driver
from ..replication.messages import AbortRejoin, Adopt, Command, DropSlot, Promote, Rejoin, StepDown, Switchover

__all__ = ["Commands"]

Handler = Callable[[bytes], tuple[bool, str]]


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every command may say how long its answer is waited for."""

    timeout_s: Annotated[float, Meta(ge=0, le=3_600)] = 60.0


class _Promote(_Options, frozen=True, kw_only=True):
    """`replaces` is the epoch that is replaced; 0 for the one that the store knows. `wait_token` must be here."""

    replaces: Annotated[int, Meta(ge=0)] = 0
    max_loss: Annotated[int, Meta(ge=0)] = 0
    force: bool = False
    wait_token: str = ""


class _Switchover(_Options, frozen=True, kw_only=True):
    """`target`: a store's id, its address, its region, or the name of its slot. `within_s`: see `Switchover`."""

    target: str
    within_s: Annotated[float, Meta(ge=0, le=3_600)] = 0.0


class _Rejoin(_Options, frozen=True, kw_only=True):
    """`primary`: a store's id or its address; empty for the one that has the highest epoch."""

    primary: str = ""


class _DropSlot(_Options, frozen=True, kw_only=True):
    """`is_gone`: its store never comes back, and is no longer asked either."""

    name: str
    is_gone: bool = False


class Commands:
    """The commands of one store. Thread-safe.

    Parameters
    ----------
    meet
        Finds a store by its address, as it is reached; returns its id.
    """

    def __init__(self, driver: Driver, meet: Callable[[str], str]) -> None:
        self._driver, self._meet = driver, meet
        self._makers: dict[str, tuple[type[_Options], Callable[[Any], Command]]] = {
            "promote": (_Promote, self._promote),
            "step-down": (_Options, lambda _: StepDown()),
            "switchover": (_Switchover, lambda given: Switchover(self._store(given.target), given.within_s)),
            "rejoin": (_Rejoin, lambda given: Rejoin(self._primary(given.primary))),
            "abort-rejoin": (_Options, lambda _: AbortRejoin()),
            "adopt": (_Options, lambda _: Adopt()),
            "drop-slot": (_DropSlot, lambda given: DropSlot(given.name, given.is_gone)),
        }
        self._handlers: dict[str, Handler] = {}

    def register(self, name: str, handler: Handler) -> None:
        """Add a command that is none of the protocol: it is given its options' JSON."""
        self._handlers[name] = handler

    def run(self, name: str, options: bytes) -> tuple[bool, str]:
        """Carry out a command; return whether it is done, and what there is to say.

        Raises
        ------
        InvalidArgument
            There is no such command, or its options are not what it takes.
        Unavailable
            It was not answered in time.
        """
        handler = self._handlers.get(name)
        if handler is not None:
            return handler(options)
        found = self._makers.get(name)
        if found is None:
            known = ", ".join(sorted({*self._makers, *self._handlers}))
            raise InvalidArgument(f"command: {name!r} given; allowed are {known}")
        kind, make = found
        try:
            given = msgspec.json.decode(options or b"{}", type=kind)
        except msgspec.MsgspecError as exc:
            raise InvalidArgument(f"{name}: options: {exc}") from exc
        done, text = self._driver.command(make(given), given.timeout_s)
        if done and name == "adopt":
            # What it is, is durable: only now may the folder say so.
            self._driver.engine.directory.adopt()
        return done, text

    def _promote(self, given: _Promote) -> Promote:
        replaces = given.replaces or self._driver.member.number
        wait = Token.decode(given.wait_token) if given.wait_token else None
        return Promote(replaces, given.max_loss, given.force, wait)

    def _primary(self, text: str) -> str:
        promise = self._driver.state.promise
        if text:
            return self._store(text)
        if promise is None or promise.store_id == self._driver.member.me:
            raise InvalidArgument("rejoin: primary: not given, and this store knows of no other primary")
        return promise.store_id

    def _store(self, text: str) -> str:
        """Return the id of a store that an operator has named."""
        state = self._driver.state
        if text in state.peers:
            return text
        for slot in state.slots:
            if text in (slot.name, slot.store_id):
                return slot.store_id
        if ":" in text:
            return self._meet(text)
        regions = self._regions()
        ids: Mapping[str, None] = dict.fromkeys(id for id, region in regions.items() if region == text)
        if len(ids) != 1:
            raise InvalidArgument(
                f"store: {text!r} names {len(ids)} stores that this one knows",
                hint=f"give its address, its id or the name of its slot; known are {self._known()}",
            )
        return next(iter(ids))

    def _known(self) -> str:
        """Return the stores that can be named, for a human."""
        slots = {slot.store_id: slot.name for slot in self._driver.state.slots}
        names = sorted({*slots.values(), *self._regions().values()})
        return ", ".join(names) or "none: no standby has followed this store yet"

    def _regions(self) -> dict[str, str]:
        """Return the regions of the standbys that are fed now, by store id."""
        feed = getattr(self._driver.member.part, "feed", None)
        return {} if feed is None else {name: stream.region for name, stream in dict(feed.streams).items()}
