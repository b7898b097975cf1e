"""Who calls, and what it may: a name and its grants, carried with the call in a context variable.

A grant is a role and the collections that it holds for. Of read, write and admin each includes those before it;
replicate stands apart. What a caller holds no grant for at all it does not see: such a collection looks as if it did
not exist.

This module decides nothing about tokens (`auth`) and refuses nothing itself (`guard`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["ANYONE", "ROLES", "Caller", "Grant", "current", "enter", "host_of", "use"]

Role = Literal["read", "write", "admin", "replicate"]

ROLES: tuple[Role, ...] = get_args(Role)
_INCLUDED: dict[str, tuple[Role, ...]] = {
    "read": ("read",),
    "write": ("read", "write"),
    "admin": ("read", "write", "admin"),
    "replicate": ("replicate",),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """A role, and where it holds.

    Attributes
    ----------
    role
        "read", "write" or "admin", each with those before it, or "replicate".
    collections
        Names of collections; None for all, and for what concerns the store as a whole.
    """

    role: Role
    collections: frozenset[str] | None = None


class Caller:
    """One caller. Immutable and thread-safe.

    Parameters
    ----------
    name
        As it stands in logs: the name of a token, or the subject of a certificate or of a JWT.
    grants
        What it may.
    """

    __slots__ = ("_by_role", "_everywhere", "_roles", "_sees_all", "_visible", "grants", "name")

    def __init__(self, name: str, grants: tuple[Grant, ...] = ()) -> None:
        self.name = name
        self.grants = grants
        everywhere: set[str] = set()
        by_role: dict[str, set[str]] = {}
        for grant in grants:
            for role in _INCLUDED[grant.role]:
                if grant.collections is None:
                    everywhere.add(role)
                else:
                    by_role.setdefault(role, set()).update(grant.collections)
        self._everywhere = frozenset(everywhere)
        self._by_role = {role: frozenset(names) for role, names in by_role.items()}
        self._roles = self._everywhere | frozenset(self._by_role)
        self._sees_all = "read" in everywhere
        self._visible = self._by_role.get("read", frozenset())

    def __repr__(self) -> str:
        return f"Caller({self.name!r}, {self.grants!r})"

    def may(self, role: str, collection: str | None = None) -> bool:
        """Tell whether a grant allows a role on a collection; with None, on the store as a whole."""
        if role in self._everywhere:
            return True
        return collection is not None and collection in self._by_role.get(role, ())

    def holds(self, role: str) -> bool:
        """Tell whether a grant allows a role anywhere at all."""
        return role in self._roles

    def sees(self, collection: str) -> bool:
        """Tell whether a collection exists as far as this caller is concerned."""
        return self._sees_all or collection in self._visible


ANYONE = Caller("anyone", (Grant("admin"), Grant("replicate")))
"""The caller of a server that asks nobody who it is, and of work that has no caller."""


def host_of(peer: str) -> str:
    """Return the host of what gRPC calls a peer, as in ipv4:10.0.0.7:4711; "" where it has none."""
    kind, _, rest = peer.partition(":")
    host = rest.replace("%5B", "[").replace("%5D", "]").rpartition(":")[0]
    return host if kind in ("ipv4", "ipv6") else ""


_current: ContextVar[Caller] = ContextVar("vecstore_caller", default=ANYONE)


def current() -> Caller:
    """Return the caller of this context."""
    return _current.get()


def enter(caller: Caller) -> None:
    """Make a caller that of this context until the context ends: for contexts that serve one call only."""
    _current.set(caller)


@contextmanager
def use(caller: Caller) -> Iterator[None]:
    """Make the body act for a caller."""
    before = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(before)
