"""Two Regions with a network between them that can be bad: each store is reached by the other through a proxy.

Clients of the tests go to the stores themselves, so that what they are told is not what the bad network made of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.proxy import Proxy, Way

from .stores import Store, put

__all__ = ["Between", "apart"]


class Between:
    """A writes, B follows, and what lies between them.

    Attributes
    ----------
    a, b
        The stores, in the regions east and west; each is the other's synchronous standby.
    to_a, to_b
        The proxies in front of them.
    """

    def __init__(self, path: Path, environment: Mapping[str, str], seed: int) -> None:
        self.to_a, self.to_b = Proxy(seed=seed), Proxy(seed=seed + 2)
        self.a = Store(path / "a", "--region", "east", "--slot", "east", environment=environment)
        self.b = Store(path / "b", "--region", "west", "--slot", "west", environment=environment)
        self.a.arguments += ["--advertise", self.to_a.address, "--synchronous", "west"]
        self.b.arguments += ["--advertise", self.to_b.address, "--synchronous", "east"]

    def begin(self) -> None:
        """Start both, with a hundred points, and wait until B follows."""
        self.a.start()
        self.to_a.aim(self.a.address)
        with self.a.database() as database:
            put(database, 0, 100)
        self.b.start("--standby-of", self.to_a.address)
        self.to_b.aim(self.b.address)
        self.b.wait(lambda found: found["status"] == "following")

    def ways(self, source: Store) -> tuple[Way, Way]:
        """Return the ways that the bytes of a store take to the other one, whichever of them made the connection."""
        return (self.to_a.replies, self.to_b.requests) if source is self.a else (self.to_b.replies, self.to_a.requests)

    def proxy(self, store: Store) -> Proxy:
        """Return the proxy in front of a store."""
        return self.to_a if store is self.a else self.to_b

    def cut(self, *sources: Store) -> None:
        """Lose what stores send."""
        for source in sources or (self.a, self.b):
            for way in self.ways(source):
                way.is_cut = True

    def heal(self) -> None:
        """Be a good network again."""
        self.to_a.heal()
        self.to_b.heal()

    def end(self) -> None:
        """Stop all."""
        self.heal()
        for each in (self.a, self.b):
            each.stop()
        self.to_a.close()
        self.to_b.close()


@contextlib.contextmanager
def apart(path: Path, *, environment: Mapping[str, str] | None = None, seed: int = 0) -> Iterator[Between]:
    """Run two Regions for a block."""
    made = Between(path, environment or {}, seed)
    try:
        made.begin()
        yield made
    finally:
        made.end()
