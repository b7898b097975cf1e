"""A served store as a member of the replication: its driver, its links, its contents, and what it says of itself.

Made when the store is open, closed before it is. The steward, one slow thread, does what neither the protocol nor an
operator does: it finds the store that `standby_of` names, lets a fenced store rejoin it, archives the log while this
store is the primary, and notes where the log ends, for the lag of others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ..engine.engine import Engine
from ..errors import InvalidArgument, VecstoreError
from ..replication.coding import decode_state
from ..replication.drill import Plan
from ..replication.driver import Driver
from ..replication.durable import Durable, Timing
from ..replication.epochs import Claim, Identity
from ..replication.lag import Position, StandbyLag, Trail
from ..replication.messages import Arriving, Call, Message, Rejoin
from ..replication.standby import Standby
from ..replication.state import Member
from . import log
from .commands import Commands
from .contents import StoreContents
from .describe import applied_of, describe, end_of
from .drill import Drills
from .follow import Links, Self
from .peers import AddressBook
from .probe import Probe
from .ranges import Ranges
from .reach import Reach
from .scrub import Scrub
from .settings import Settings

__all__ = ["Replication"]

STEWARD_S = 0.5
MEET_S = 10.0
REJOIN_S = 10.0


class Replication:
    """The replication of one served store. Thread-safe.

    Parameters
    ----------
    engine
        Open.
    address
        Returns where this server listens: ``host:port``, or ``:port``.
    replace
        Closes the store, lets something be done to its folder, opens it again beneath its handles.

    Attributes
    ----------
    on_scrub
        Takes messages of the scrub: who sent it, and its bytes.
    more
        What else belongs into the description: each returns entries.
    facts
        Returns what this store says of itself to those that follow it.
    on_facts
        Takes what another store says of itself; quick.
    readiness
        Judges a description: which checks are as they should be; None where nobody judges.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        address: Callable[[], str],
        replace: Callable[[Callable[[str], Any]], Engine],
    ) -> None:
        self._settings, self._address = settings, address
        options, self._region = settings.replication, settings.server.region
        self.on_scrub: Callable[[str, bytes], None] = lambda _from, _data: None
        self.more: list[Callable[[], Mapping[str, Any]]] = []
        self.facts: Callable[[], bytes] = bytes
        self.on_facts: Callable[[str, bytes], None] = lambda _from, _facts: None
        self.readiness: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] = lambda _: None
        self._log = log.logger()
        self._trail = Trail()
        self.book = AddressBook(Path(engine.directory.path))
        self.reach = Reach(options)
        store_id = engine.directory.store_id.hex()
        me = Self(store_id, engine.lineage, self._region, self.advertised, self._end, lambda: self.facts())
        self.links = Links(
            me,
            self.book,
            self.reach,
            self._receive,
            on_scrub=lambda sender, data: self.on_scrub(sender, data),
            on_damage=self._cannot_read,
            on_end=self._heard,
            on_facts=lambda sender, data: self.on_facts(sender, data),
            on_arriving=lambda sender: self.driver.receive("", Arriving(sender)),
            on_change=self._was_changed,
        )
        self.contents = StoreContents(
            lambda: self.driver.engine,
            lambda offline: self._replaced(offline, replace),
            self.reach.fetch,
            self.links.address,
            settings.server.archive,
        )
        self.driver: Driver = Driver(
            engine,
            self.links,
            self.contents,
            _state_of(engine, self._region),
            region=self._region,
            synchronous=options.synchronous,
            slot=options.slot,
            timing=_timing_of(settings),
            on_alarm=lambda text: self._log.warning("alarm", text=text),
        )
        self.scrub = Scrub(self.driver, self.links.send, every_s=options.scrub_every_s, points=options.scrub_points)
        self.on_scrub = self.scrub.receive
        self.more.append(self.scrub.describe)
        self.ranges = Ranges(lambda: self.driver.engine)
        wall_us, now_s = engine.clock.wall_us(), time.monotonic()
        self._lag = StandbyLag(applied_of(self.driver), wall_us, now_s)
        self.drills = Drills(lambda: self.driver.engine, self.describe, region=self._region)
        self.commands = Commands(self.driver, self.meet)
        self.commands.register("drill", self._drill)
        self._closing = threading.Event()
        self._target = ""
        self._meeting = Probe("meet", lambda: self.reach.describe(options.standby_of, MEET_S))
        self._met_s = 0.0
        self._rejoin_after_s = 0.0
        self._steward = threading.Thread(target=self._tend, name="vecstore-steward", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.driver.start()
        self.scrub.start()
        self._steward.start()

    def close(self) -> None:
        """End: comparisons and links first, then the driver; the store may be closed when this returns."""
        self._closing.set()
        self.ranges.close()
        self.links.close()
        self._steward.join()
        self.scrub.close()
        self.driver.close()
        self.contents.close()

    def _replaced(self, offline: Callable[[str], Any], replace: Callable[[Callable[[str], Any]], Engine]) -> Engine:
        """Let something be done to the folder of the closed store; whoever reads the store by itself lets go of it."""
        with self.scrub.away():
            return replace(offline)

    # -- what it says ------------------------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        """What the store is: "primary", "standby" or "fenced"."""
        return self.driver.state.role

    @property
    def endless_count(self) -> int:
        """How many calls are under way that end when this server says so: links, and comparisons."""
        return self.links.serving_count + self.ranges.count

    def advertised(self) -> str:
        """Return where other stores reach this server."""
        return self._settings.replication.advertise or self._address()

    def describe(self) -> dict[str, Any]:
        """Return what the store is in the replication, as docs/operations.md describes it."""
        found = describe(self.driver, self.links, self._trail, self._lag, self._region)
        for more in self.more:
            found.update(more())
        found["readiness"] = self.readiness(found)
        return found

    def chains(self, lsns: Iterable[int]) -> list[tuple[int, str | None]]:
        """Return the chains at LSNs that are durable here, in hex; None where it is not known, or not durable."""
        store_log = self.driver.log
        known = store_log.durable_lsn
        found = [(lsn, store_log.chain(lsn) if lsn <= known else None) for lsn in lsns]
        return [(lsn, None if chain is None else chain.hex()) for lsn, chain in found]

    def _drill(self, options: bytes) -> tuple[bool, str]:
        try:
            plan = msgspec.json.decode(options, type=Plan)
        except msgspec.MsgspecError as exc:
            raise InvalidArgument(f"drill: options: {exc}") from exc
        return True, msgspec.json.encode(self.drills.run(plan)).decode()

    def _end(self) -> Position:
        end = end_of(self.driver)
        self._trail.note(end, time.monotonic())
        return end

    # -- what comes --------------------------------------------------------------------------------------------------

    def _receive(self, sender: str, message: Message) -> None:
        self.driver.receive(sender, message)

    def _heard(self, sender: str, end: Position) -> None:
        if sender == self.driver.state.primary:
            self._lag.heard(end, time.monotonic())

    def _cannot_read(self, sender: str, why: str) -> None:
        """Stop where the primary says what this version does not know: a standby is brought to a new version first."""

        def halt(member: Member) -> None:
            if isinstance(member.part, Standby) and sender == member.durable.primary:
                member.part.stop(why)

        self._log.error("unreadable", store=sender, why=why)
        try:
            self.driver.act(halt)
        except (VecstoreError, TimeoutError) as exc:
            self._log.error("not stopped", why=str(exc))

    def _was_changed(self, sender: str, why: str) -> None:
        """Tell a human; the link has ended, and another one is made."""
        self._log.error("changed on the way", store=sender, why=why)
        with suppress(VecstoreError, TimeoutError):
            self.driver.act(lambda member: member.alarm(f"from {sender}: {why}"))

    # -- meeting others ----------------------------------------------------------------------------------------------

    def meet(self, address: str) -> str:
        """Return the id of the store at an address; from then on it can be sent to."""
        return self._meet(address, self.reach.describe(address, MEET_S))

    def _meet(self, address: str, found: Mapping[str, Any]) -> str:
        store_id, lineage = str(found["store_id"]), str(found["lineage"])
        if lineage != self.driver.engine.lineage.hex():
            raise InvalidArgument(f"store: that at {address} is of another lineage: {lineage}")
        self.book.learn(store_id, address, str(found.get("region", "")))
        return store_id

    # -- the steward -------------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        while not self._closing.wait(STEWARD_S):
            try:
                self._end()
                self.contents.expire()
                if self._settings.replication.standby_of:
                    self._seek()
                self._archive()
            except Exception as exc:  # noqa: BLE001  (the next time may be better)
                self._log.warning("the steward failed", why=str(exc))

    def _seek(self) -> None:
        """Find the store that `standby_of` names, tell it of this one, and rejoin it where this store was fenced."""
        address, state, now_s = self._settings.replication.standby_of, self.driver.state, time.monotonic()
        is_following = state.role == "standby" and self.driver.member.status == "following"
        if is_following or state.rejoin is not None or now_s < self._rejoin_after_s:
            return
        # By a thread of its own: where names are not resolved, or nobody answers, the steward has other things to do.
        self._meeting.begin(0.0)
        self._meeting.wait(STEWARD_S)
        answer = self._meeting.answer
        if answer is None or answer.at_s <= max(self._met_s, now_s - MEET_S):
            return
        self._met_s, self._rejoin_after_s = answer.at_s, now_s + REJOIN_S / 5
        try:
            if answer.error is not None:
                raise answer.error
            assert answer.value is not None
            self._target = self._meet(address, answer.value)
        except InvalidArgument as exc:
            self._rejoin_after_s = now_s + REJOIN_S
            self._log.error("standby_of cannot be followed", address=address, why=str(exc))
            return
        except VecstoreError:
            return
        if self._target in ("", self.driver.member.me):
            return
        if state.primary != self._target or state.role != "standby":
            # It answers with what it has promised, and so with the highest claim that it knows.
            self.driver.act(lambda member: member.send(self._target, _call(member)))
        if self._must_rejoin(state):
            self._rejoin_after_s = now_s + REJOIN_S
            done, text = self.driver.command(Rejoin(self._target), REJOIN_S)
            self._log.warning("rejoining", primary=self._target, done=done, text=text)

    def _must_rejoin(self, state: Durable) -> bool:
        """Return whether this store's history parted from that of the primary which it was told to follow."""
        promise = state.promise
        if promise is None or promise.store_id != self._target:
            return False
        if state.role == "fenced":
            return True
        epochs = self.driver.log.epochs
        is_parted = bool(epochs) and epochs[-1].number < promise.number
        return state.role == "standby" and self.driver.member.status == "stopped" and is_parted

    def _archive(self) -> None:
        """Archive the log while this store writes it: two that archive one history would be in each other's way."""
        where, engine = self._settings.server.archive, self.driver.engine
        if where and engine.archiver is None and self.driver.member.accepts_writes:
            engine.archive_to(where)


def _call(member: Member) -> Call:
    return Call(0, member.durable.promise, member.standing())


def _state_of(engine: Engine, region: str) -> Durable:
    """Return the durable state of a store; one that never replicated is the writer of its last epoch."""
    data = engine.replication_state
    if data is not None:
        return decode_state(data)
    identity = Identity(engine.lineage, engine.identity_secret, engine.directory.store_id.hex(), region)
    return Durable("primary", promise=Claim.of(identity, engine.state.fold.epochs[-1]))


def _timing_of(settings: Settings) -> Timing:
    options = settings.replication
    return Timing(
        start_alone_after_s=options.start_alone_after_s,
        call_every_s=options.call_every_s,
        silence_s=options.silence_s,
        stall_s=options.stall_s,
        step_down_s=options.step_down_s,
        catch_up_s=options.catch_up_s,
        retry_s=options.retry_s,
        frame_bytes_max=options.frame_bytes_max,
    )
