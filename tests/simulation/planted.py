"""Bugs to plant in the protocol, each a way in which it could have been written wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vecstore.record import Record, Token
from vecstore.replication import actions as do
from vecstore.replication import epochs, feed, state
from vecstore.replication.epochs import Claim, ForkSearch, Relation, Standing
from vecstore.replication.feed import Feed
from vecstore.replication.log import Log, Place
from vecstore.replication.messages import Ack, Checkpointed, Exported, Frame, Message, Report, Verified
from vecstore.replication.part import Desk
from vecstore.replication.primary import Primary
from vecstore.replication.rejoin import Rejoining
from vecstore.replication.standby import Standby
from vecstore.replication.state import Member

from . import disk, node

__all__ = ["BUGS", "Bug", "planted"]


@dataclass(frozen=True)
class Bug:
    """A bug.

    Attributes
    ----------
    name
        What is wrong.
    changes
        Which attributes of which objects make it so.
    seed
        One that was seen to find it; tried first.
    favoured
        Faults that the search for it has more of.
    """

    name: str
    changes: tuple[tuple[Any, str, Any], ...]
    seed: int = 0
    favoured: tuple[str, ...] = ()


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Plant a bug for a while."""
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in bug.changes]
    try:
        for owner, name, value in bug.changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


# -- what is wrong ---------------------------------------------------------------------------------------------------


def _tip(self: Feed) -> int:
    return self.desk.log.tip.lsn


def _tip_of_handover(self: Feed) -> int:
    log = self.desk.log
    return log.tip.lsn if log.handover else log.durable_lsn


_persist = Desk.persist
_start = Primary.start
_found = Rejoining._found


def _persist_no_fence(self: Desk, **changes: Any) -> None:
    _persist(self, **changes)
    if changes.get("role") == "fenced":
        self.actions.pop()


def _persist_last(self: Desk, **changes: Any) -> None:
    """Say first, write after: a message is put before the write that it speaks of."""
    _persist(self, **changes)
    if self.actions and isinstance(self.actions[-1], do.Persist) and changes.get("epoch") is None:
        self.late.append(self.actions.pop())  # type: ignore[attr-defined]


def _member_begin(self: Member, now_s: float) -> None:
    self.now_s = max(self.now_s, now_s)
    self.actions = _Reordered()
    self.late = self.actions.late  # type: ignore[attr-defined]


class _Reordered(list[Any]):
    """Actions of which the writes come last."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        yield from self.late


def _fresh_unchecked(self: Standby, message: Frame) -> Any:
    return None if message.before.lsn > self.tip.lsn else [r for r in message.records if r.lsn > self.tip.lsn]


def _acknowledge_tip(self: Primary) -> None:
    self.desk.act(do.Acknowledge(self.desk.log.tip.lsn, self.feed.replicated_lsn()))


def _ack_at_append(self: Standby, records: Any) -> None:
    self.desk.act(do.Append(tuple(records)))
    self.tip = Place(records[-1].lsn, records[-1].mark.chain)
    self.desk.send(self.desk.durable.primary, Ack(self.session, self.tip, self.tip.lsn))


def _relate_trusting(log: Log, standing: Standing) -> Relation:
    relation = epochs.relate(log, standing)
    return Relation.PREFIX if standing.lsn + 1 < log.first_lsn else relation


def _found_late(self: Rejoining, fork_lsn: int) -> None:
    _found(self, min(fork_lsn + 1, self.desk.log.tip.lsn))


def _left_behind_late(self: node.Node, fork_lsn: int) -> list[Record]:
    return _left_behind(self, fork_lsn + 1)


_left_behind = node.Node.left_behind


def _redirect_late(self: Rejoining, claim: Claim) -> None:
    if self.waiting != "checkpoint":
        _redirect(self, claim)
    elif claim.store_id != self.desk.me:
        self.desk.persist(rejoin=self._state.at(self._state.phase, primary=claim.store_id))


def _checkpoints_slowly(self: node.Node, delay_s: float, function: Any, *arguments: Any) -> None:
    """Be no bug, but the time in which the one above tells."""
    slow_s = 10.0 if arguments and isinstance(arguments[0], Checkpointed) else 0.0
    _report_later(self, delay_s + slow_s, function, *arguments)


_redirect = Rejoining.redirect
_report_later = node.Node.report_later


def _no_export(self: Rejoining) -> None:
    self.desk.persist(rejoin=self._state.at("reset"))
    self.waiting = "reset"
    self._ask()


def _no_handover(self: Primary) -> None:
    if self.status == "open":
        self.desk.act(do.Open())
    elif self._others():
        self._call(self._others())
    else:
        self._open()


def _any_region(self: Feed) -> int:
    return min(max([self.desk.log.durable_lsn]), self.desk.log.durable_lsn)


def _holds_by_lsn(log: Log, token: Token) -> bool | None:
    return True if token.lsn <= log.tip.lsn else None


def _act_only(self: Desk, action: do.Action) -> None:
    self.actions.append(action)


def _write_twice(self: node.Node, write: node.Write, attempt: int) -> None:
    self.log.state.requests.pop(write.request_id, None)
    _write(self, write, attempt)


_write = node.Node.write
_reset = disk.SimLog.reset


def _reset_keeps_requests(self: disk.SimLog, fork_lsn: int, points: Any, target_lsn: int) -> None:
    requests = dict(self.state.requests)
    _reset(self, fork_lsn, points, target_lsn)
    self.state.requests = requests
    self.base_state.requests = dict(requests)


def _export_unlooked(self: Rejoining) -> None:
    self.waiting = "export"
    self.desk.persist(rejoin=self._state.at("export"))
    self.desk.act(do.Export(self._state.fork_lsn, self._state.is_complete))


def _forgets_ids(self: Rejoining) -> None:
    self.ids = ()
    _ask(self)


_ask = Rejoining._ask


def _learn_nothing(self: Member, sender: str, message: Message | Report) -> None:
    pass


def _refused_goes_on(self: Primary, message: Any) -> None:
    if self.status == "handing":
        self._open()


def _refusal_unwritten(self: Desk, **changes: Any) -> None:
    if not changes.get("refused_lsn"):
        _persist(self, **changes)


def _search_trusts_limit(self: ForkSearch) -> tuple[int, ...]:
    self.low = self.limit
    return ()


def _verified_keeps(self: Standby, message: Verified) -> None:
    if message.is_equal:
        _verified(self, message)
    else:
        self.desk.alarm("after the rejoin the digest is another one")


def _step_points_alone(self: Rejoining, sender: str, message: Message | Report) -> None:
    _step(self, sender, Exported(message.fork_lsn, message.ids) if isinstance(message, Exported) else message)


_verified = Standby._verified
_step = Rejoining.step

_TRUE: Callable[..., bool] = lambda *_: True  # noqa: E731
_FALSE: Callable[..., bool] = lambda *_: False  # noqa: E731

BUGS = (
    Bug("ships before it is durable", ((Feed, "shippable", _tip),), seed=1),
    Bug("ships the handover before it is durable", ((Feed, "shippable", _tip_of_handover),), seed=15),
    Bug("forgets to persist the fence", ((Desk, "persist", _persist_no_fence),)),
    Bug("says before it has written", ((Desk, "persist", _persist_last), (Member, "_begin", _member_begin))),
    Bug("believes a foreign claim", ((Claim, "is_valid", _TRUE), (Standing, "is_valid", _TRUE)), seed=0),
    Bug("learns from nobody", ((Member, "_learn", _learn_nothing),)),
    Bug("does not see a second writer of its number", ((Claim, "contests", _FALSE),), seed=7),
    Bug("does not see that its disk went back", ((state, "lost_synced", _FALSE),), seed=3),
    Bug("skips the chain check of frames", ((Standby, "_fresh", _fresh_unchecked),)),
    Bug("acknowledges before it is durable", ((Primary, "_acknowledge", _acknowledge_tip),), seed=1),
    Bug("acknowledges as replicated what only it has", ((Feed, "replicated_lsn", _any_region),)),
    Bug("the standby acknowledges before it is durable", ((Standby, "_append", _ack_at_append),)),
    Bug("bootstraps over an unproven prefix", ((feed, "relate", _relate_trusting),), seed=25),
    Bug("finds the fork one record too late", ((Rejoining, "_found", _found_late),), seed=2),
    Bug("exports from one record too late", ((node.Node, "left_behind", _left_behind_late),), seed=2),
    Bug(
        "keeps a fork that it found with another",
        ((Rejoining, "redirect", _redirect_late), (node.Node, "report_later", _checkpoints_slowly)),
        favoured=("failover", "rejoin"),
        seed=1464,
    ),
    Bug("drops without an export", ((Rejoining, "_export", _no_export),)),
    Bug("takes the shorter log's end for the fork", ((ForkSearch, "ask", _search_trusts_limit),), seed=3),
    Bug(
        "lets the log be cut before it is exported",
        ((Member, "holds_log", property(_FALSE)), (Rejoining, "_export", _export_unlooked)),
        favoured=("isolate", "failover", "rejoin"),
        seed=0,
    ),
    Bug("forgets which points it had touched", ((Rejoining, "_ask", _forgets_ids),), seed=2),
    Bug(
        "keeps the request ids of what it dropped",
        ((disk.SimLog, "reset", _reset_keeps_requests),),
        favoured=("isolate", "failover", "rejoin", "rejoin"),
        seed=145,
    ),
    Bug("a retry is applied twice", ((node.Node, "write", _write_twice),)),
    Bug("writes on behind a handover after a restart", ((Primary, "start", _no_handover),), seed=134),
    Bug(
        "goes on after any refusal of a handover",
        ((Standby, "_is_durable", _TRUE), (Desk, "persist", _refusal_unwritten)),
        seed=15,
    ),
    Bug(
        "a digest that differs after a rejoin stays so",
        ((Standby, "_verified", _verified_keeps),),
        favoured=("put back beneath", "rejoin", "failover"),
        seed=625,
    ),
    Bug(
        "sets points where a name was left behind too",
        ((Rejoining, "step", _step_points_alone),),
        favoured=("isolate", "failover", "rejoin"),
    ),
    Bug("reads while a rejoin is under way", ((Member, "serves_reads", property(_TRUE)),), seed=113),
    Bug("a token is compared by its LSN", ((node, "holds", _holds_by_lsn),)),
    Bug("is promoted while its contents are being replaced", ((Desk, "act", _act_only),), seed=2),
)
