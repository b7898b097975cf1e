"""Staging: a call becomes the record of a physical change, or is answered. The first half of what the committer does.

For each call, in this order: whether its caller still waits, whether its request was answered before, whether there is
room; then it is resolved (see `resolve`), and its records are staged on the fold. A call is taken as late as that:
until then its caller may give up and know that nothing changes, and from then on it has a token to ask about. All of it
happens in the committer's thread; nothing is written here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..clock import CommitClock
from ..config import Config
from ..errors import Exhausted, Overloaded, Unavailable, VecstoreError
from ..record import NO_REQUEST, Kind
from ..storage.fold import Staged
from .calls import Call, Delete, DeleteWhere, Schema, Update, Upsert
from .group import Group
from .history import History
from .resolve import Resolved, Resolver
from .settled import Settled
from .state import State

__all__ = ["Stager"]


class Stager:
    """Makes records of calls. Belongs to the committer's thread; nothing of it is durable.

    Parameters
    ----------
    path
        Folder whose disk must have room.

    Attributes
    ----------
    used_bytes
        Returns what the store holds in memory.
    """

    def __init__(
        self,
        state: State,
        resolver: Resolver,
        settled: Settled,
        history: History,
        clock: CommitClock,
        wall_us: Callable[[], int],
        config: Config,
        path: str,
    ) -> None:
        self._state, self._resolver, self._settled, self._history = state, resolver, settled, history
        self._clock, self._wall_us, self._config, self._path = clock, wall_us, config, path
        self.used_bytes: Callable[[], int] = lambda: 0

    def is_full(self, group: Group) -> bool:
        """Return whether a group holds as much as one sync is to cover."""
        return len(group.staged) >= self._config.group_records_max or group.bytes >= self._config.group_bytes_max

    def conflicts(self, call: Call, group: Group) -> bool:
        """Whether a call must see what the group has not applied yet."""
        if isinstance(call, Schema):
            return True
        if isinstance(call, Update | Delete):
            wanted = set(call.keys)
            return any(not wanted.isdisjoint(written) for written in group.keys.get(call.collection, []))
        if isinstance(call, DeleteWhere):
            return call.collection in group.keys
        return any(staged.points is None for staged in group.staged)

    def add(self, call: Call, group: Group) -> None:
        """Stage a call's records, or answer it."""
        if not call.is_wanted():
            return
        try:
            if self._answered_before(call, group):
                return
            self._check_room(call)
            if isinstance(call, Schema):
                self._stage_schema(call, group)
            else:
                self._stage_points(call, group)
        except VecstoreError as exc:
            if call.request_id != NO_REQUEST:
                self._settled.refused(call.request_id, exc)
            call.fail(exc)
            return
        except BaseException as exc:
            call.fail(exc)
            raise
        group.bytes += call.bytes

    def _answered_before(self, call: Call, group: Group) -> bool:
        """Answer a retry of a request that was answered already."""
        if call.request_id == NO_REQUEST:
            return False
        entry = self._state.fold.requests.get(call.request_id)
        if entry is not None:
            lsn, _, count = entry
            call.name(self._token_at(lsn))
            if call.take():
                group.answers.append((call, lsn, count))
            return True
        settled = self._settled.find(call.request_id)
        if settled is not None:
            call.lsn, token = settled
            call.name(token)
            group.answers.append((call, None, 0))
            return True
        for staged in group.staged:
            if staged.record.header.request_id == call.request_id:
                header, mark = staged.record.header, staged.record.mark
                call.name(self._history.token(header.epoch, header.lsn, mark.chain))
                if call.take():
                    group.answers.append((call, header.lsn, header.count))
                return True
        if len(self._state.fold.requests) >= self._config.request_ids_max:
            raise Overloaded("too many request ids are remembered", hint="back off", retry_after_s=1.0)
        return False

    def _token_at(self, lsn: int) -> str:
        tip = self._state.fold.tip
        return self._history.token_at(lsn) or self._history.token(tip.epoch, tip.lsn, tip.chain)

    def _check_room(self, call: Call) -> None:
        """Refuse writes below the floor of free space and above the budget of memory; deletes have a lower floor."""
        try:
            stat = os.statvfs(self._path)
        except OSError as exc:
            raise Unavailable(f"disk: the folder of the store cannot be read: {exc}", retryable=False) from exc
        free = stat.f_bavail * stat.f_frsize
        removes = isinstance(call, Delete | DeleteWhere)
        floor = self._config.disk_free_bytes_min // (4 if removes else 1)
        if free < floor + call.bytes:
            raise Exhausted(
                f"disk: {free} bytes are free, below the floor of {floor}",
                hint="free space, or lower disk_free_bytes_min; reads go on, and deletes down to a quarter of it",
                details={"limit": "disk_free_bytes_min", "free": free, "floor": floor},
            )
        if not removes and isinstance(call, Upsert):
            used, budget = self.used_bytes(), self._config.memory_budget_bytes()
            if used + call.bytes > budget:
                raise Exhausted(
                    f"memory: the store holds {used} of {budget} bytes",
                    hint="delete points, drop collections, or raise memory_bytes_max",
                    details={"limit": "memory_bytes_max", "used": used, "budget": budget},
                )

    def _stage_points(self, call: Call, group: Group) -> None:
        assert isinstance(call, Upsert | Update | Delete | DeleteWhere)
        resolved = self._resolve(call)
        if (resolved.fields or resolved.change is not None) and not call.take():
            return
        if resolved.fields:
            self._stage(call, group, Kind.FIELDS, call.collection, {"fields": resolved.fields}, is_last=False)
        if resolved.change is None:
            group.answers.append((call, None, 0))
            return
        kind = Kind.UPSERT if resolved.change.body.vectors is not None else Kind.DELETE
        staged = self._stage(
            call,
            group,
            kind,
            call.collection,
            resolved.change,
            present=resolved.present,
            hashes_of=resolved.hashes_of,
            request_id=call.request_id,
        )
        keys = resolved.change.body.keys
        if resolved.located is not None and len(group.staged) == 1:
            group.located[0] = resolved.located
        group.keys.setdefault(call.collection, []).append(keys)
        group.answers.append((call, staged.record.lsn, len(keys)))

    def _resolve(self, call: Upsert | Update | Delete | DeleteWhere) -> Resolved:
        if isinstance(call, Upsert):
            return self._resolver.upsert(call)
        if isinstance(call, Update):
            return self._resolver.update(call)
        if isinstance(call, Delete):
            return self._resolver.delete(call)
        return self._resolver.delete_where(call)

    def _stage_schema(self, call: Schema, group: Group) -> None:
        made = call.make()
        if made is None:
            group.answers.append((call, None, 0))
            return
        if not call.take():
            return
        kind, number, change = made
        staged = self._stage(call, group, kind, number, change, request_id=call.request_id)
        group.answers.append((call, staged.record.lsn, 0))

    def _stage(
        self, call: Call, group: Group, kind: Kind, number: int, change: Any, *, is_last: bool = True, **more: Any
    ) -> Staged:
        times = (self._clock.next_us(), self._wall_us())
        staged = self._state.fold.stage(kind, number, change, time_us=times, **more)
        header, mark = staged.record.header, staged.record.mark
        if is_last:
            call.name(self._history.token(header.epoch, header.lsn, mark.chain))
        group.staged.append(staged)
        return staged
