"""Stories: what a seed does to a world. First only safety counts, then all must come right.

In the bad time a nemesis does what machines, networks and operators do at their worst. Then the network is mended,
every process runs, and an operator does what the runbooks say; within bounded time there is one primary, all follow
it with the same digest, a replicated write succeeds, and everything acknowledged is somewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vecstore.replication.epochs import Claim, Identity, Standing
from vecstore.replication.messages import (
    AbortRejoin,
    Adopt,
    Answer,
    Call,
    DropSlot,
    Promote,
    Rejoin,
    StepDown,
    Switchover,
)
from vecstore.storage.catalog import Epoch

from .checks import Violation
from .node import Node
from .world import LINEAGE, Network, World

PEACE_S = 400.0


class Story:
    """One seed's world and what befalls it.

    Parameters
    ----------
    favoured
        Faults that happen more often: what makes a family of seeds.
    """

    def __init__(self, seed: int, favoured: tuple[str, ...] = (), *, duration_s: float = 60.0) -> None:
        self.world = world = World(seed, "a")
        self.rng, self.duration_s = world.rng, duration_s
        self.images: dict[str, Any] = {}
        self.favoured = favoured
        rng = self.rng
        self.cuts = rng.choice((0.02, 0.3))
        self.pace_s = rng.choice((1.0, 3.0, 6.0))
        world.network = Network(
            lost=rng.choice((0, 0, 0.02, 0.1)),
            twice=rng.choice((0, 0, 0.05)),
            slow=rng.choice((0, 0, 0.01, 0.05)),
            flipped=rng.choice((0, 0, 0, 0.02)),
            is_ordered=rng.random() < 0.6,
        )
        world.crash_share = rng.choice((0, 0, 0.002, 0.01))
        world.slow_max_s = rng.choice((0.5, 4.0, 20.0))
        world.retained = rng.choice((8, 30, 200))
        if rng.random() < 0.4:
            world.archive = {}
        self.stores = "abc" if rng.random() < 0.4 else "ab"
        for store_id in self.stores[1:]:
            world.later(rng.random() * 3, world.add_standby, store_id, "a")  # type: ignore[arg-type]

    def run(self) -> World:
        """Live through it; a `Violation` carries the history."""
        world = self.world
        try:
            world.run(3.5)
            for name in ("x", "y"):
                pause_s, patience_s = self.rng.choice((0.1, 0.3)), self.rng.choice((5.0, 60.0))
                world.add_client(name, self.stores, pause_s=pause_s, patience_s=patience_s).begin()
            world.later(self.rng.random() * 3, self._strike)
            world.later(1.0, self._routine)
            world.run(self.duration_s)
            self.peace()
        except Violation as exc:
            raise Violation(f"{exc}\n{world.history()}") from exc
        return world

    def _routine(self) -> None:
        """Checkpoints cut logs, primaries archive, backups take images of disks."""
        world, rng = self.world, self.rng
        for node in list(world.nodes.values()):
            world.archive_from(node)
            if node.is_up and rng.random() < self.cuts:
                world.cut_log(node)
            if rng.random() < 0.05:
                self.images[node.store_id] = node.disk.image()
        world.later(1.0, self._routine)

    # -- the bad time --------------------------------------------------------------------------------------------------

    def _strike(self) -> None:
        if self.world.now_s > self.duration_s:
            return
        faults = [*_FAULTS, *(fault for fault in self.favoured for _ in range(len(_FAULTS) // 2))]
        _STRIKES[self.rng.choice(faults)](self)
        self.world.later(0.2 + self.rng.random() * self.pace_s, self._strike)

    def _any(self) -> Node:
        return self.rng.choice(list(self.world.nodes.values()))

    def _crash(self) -> None:
        node = self._any()
        node.crash(self.rng.random() < 0.6)
        self.world.restart_later(node)

    def _long_crash(self) -> None:
        node = self._any()
        node.crash()
        self.world.restart_later(node, 5 + self.rng.random() * 20)

    def _pause(self) -> None:
        node = self._any()
        node.is_paused = True
        self.world.note("pause", node.store_id)
        self.world.later(self.rng.random() * 10, node.resume)

    def _cut(self) -> None:
        one, other = self.rng.choice(self.stores), self.rng.choice(self.stores)
        self.world.cut(one, other, both=self.rng.random() < 0.6)
        self.world.note("cut", one, other)
        self.world.later(1 + self.rng.random() * 12, self.world.heal)

    def _isolate(self) -> None:
        """Cut a primary off from all stores: its clients still reach it."""
        node = self.world.primary() or self._any()
        for other in self.stores:
            self.world.cut(node.store_id, other)
        self.world.note("isolate", node.store_id)
        self.world.later(2 + self.rng.random() * 15, self.world.heal)

    def _promote(self) -> None:
        node = self._any()
        if node.member is not None:
            force = self.rng.random() < 0.6
            node.command(Promote(node.member.number, self.rng.choice((0, 0, 100)), force))

    def _promote_two(self) -> None:
        """Two operators promote two stores to one number."""
        for node in list(self.world.nodes.values()):
            if node.member is not None and node.status != "open":
                node.command(Promote(node.member.number, 1000, True))

    def _failover(self) -> None:
        """The primary is lost for a while, and a standby promoted, as the runbook says."""
        primary = self.world.primary()
        others = [node for node in self.world.own() if node is not primary and node.is_up]
        if primary is None or not others:
            return
        primary.crash()
        self.world.restart_later(primary, 3 + self.rng.random() * 15)
        chosen = self.rng.choice(others)
        if chosen.member is not None:
            chosen.command(Promote(chosen.member.number, 1000, True))

    def _step_down(self) -> None:
        self._any().command(StepDown())

    def _switch(self) -> None:
        primary = self.world.primary()
        others = [node for node in self.world.own() if node is not primary]
        if primary is not None and others:
            target = self.rng.choice(others)
            if target.member is not None:
                target.member.is_ready = self.rng.random() < 0.8
            primary.command(Switchover(target.store_id))
            for node in (primary, target):
                if self.rng.random() < 0.3:
                    self.world.later(self.rng.random() * 0.3, self._crash_one, node)

    def _crash_one(self, node: Node) -> None:
        node.crash()
        self.world.restart_later(node)

    def _rejoin(self) -> None:
        primary = self.world.primary()
        for node in self.world.own():
            if primary is not None and node is not primary and node.status in ("fenced", "stopped"):
                node.command(Rejoin(primary.store_id))

    def _abort(self) -> None:
        for node in self.world.own():
            if node.disk.written.rejoin is not None:
                node.command(AbortRejoin())

    def _put_back(self) -> None:
        node = self._any()
        image = self.images.get(node.store_id)
        if image is not None and not node.is_copied and self.world.seen["put back"] < 2:
            node.crash()
            self.world.put_back(node, image)
            self.world.restart_later(node)

    def _put_back_beneath(self) -> None:
        """A primary's disk goes back to what it is now, once a store that rejoins has read more from it."""
        primary = self.world.primary()
        if primary is not None:
            self._lurk(primary, primary.disk.image(), self.world.now_s + 15.0)

    def _lurk(self, primary: Node, image: Any, end_s: float) -> None:
        states = [node.disk.written.rejoin for node in self.world.own() if node is not primary]
        has_read = any(state is not None and state.target_lsn > image[0].tip.lsn for state in states)
        if has_read and primary.is_up and self.world.seen["put back"] < 2:
            primary.crash()
            self.world.put_back(primary, image)
            self.world.restart_later(primary)
        elif self.world.now_s < min(end_s, self.duration_s):
            self.world.later(0.1, self._lurk, primary, image, end_s)

    def _jump(self) -> None:
        self._any().clock.offset_us = self.rng.choice((0, -3_600_000_000, 2_400_000_000_000_000))

    def _cut_log(self) -> None:
        node = self._any()
        self.world.cut_log(node, retained=2)

    def _drop_slot(self) -> None:
        node = self._any()
        for slot in node.disk.written.slots[:1]:
            node.command(DropSlot(slot.name))

    def _copy(self) -> None:
        if "k" not in self.world.nodes:
            self.world.add_copy("k", self.rng.choice("ab") if "b" in self.world.nodes else "a")
        elif self.rng.random() < 0.3 and self.world.nodes["k"].status == "copied":
            copy = self.world.nodes["k"]
            copy.command(Adopt())
            # Adopted once everything that it meant is carried out: a crash before leaves a copy.
            copy.is_copied = copy.status in ("copied", "down")

    def _stranger(self) -> None:
        """Somebody without the secret, or of another lineage, claims a high epoch."""
        node = self._any()
        rng = self.rng
        epoch = Epoch(
            node.disk.written.promise.number + rng.randint(0, 2) if node.disk.written.promise else 9, "s", 0, ""
        )
        secret, lineage = rng.choice(((b"guessed", LINEAGE), (b"guessed", b"M" * 16)))
        stranger = Identity(lineage, secret, "s")
        claim = Claim.of(stranger, epoch)
        message = rng.choice((Call, Answer))(0, claim, Standing.of(stranger, node.log))
        self.world.send("s", node.store_id, message)

    # -- peace ---------------------------------------------------------------------------------------------------------

    def peace(self) -> None:
        """Mend everything, operate by the runbooks, and see that it comes right."""
        world = self.world
        world.note("peace")
        world.heal()
        cut, world.network = world.network, Network()
        world.crash_share, world.slow_max_s, world.retained = 0.0, 0.5, 1000
        world.failing_share = 0.0
        assert cut is not None
        for name in [node.store_id for node in world.nodes.values() if node.is_copied]:
            world.nodes.pop(name).crash()
        for node in world.own():
            node.clock.offset_us = 0
            if node.is_paused:
                node.resume()
            if not node.is_up:
                node.start()
            if node.member is not None:
                node.member.is_ready = True
        for client in world.clients.values():
            client.stores = [node.store_id for node in world.own()]
        world.later(2.0, self._operate)
        if not world.run(PEACE_S, self._is_well):
            raise Violation(f"liveness: not well after {PEACE_S} s of peace")
        for client in world.clients.values():
            client.is_stopped = True
        world.run(20.0)
        if not world.run(60.0, self._is_well):
            raise Violation("liveness: it was well, and did not stay so")
        self._last_write()
        world.checks.at_end()

    def _operate(self) -> None:
        """Do what the runbooks say, every two seconds."""
        world = self.world
        world.later(2.0, self._operate)
        for node in world.own():
            if not node.is_up:
                node.start()
        primary = world.primary()
        own = world.own()
        if primary is None:
            self._choose(own)
            return
        for node in own:
            if node is not primary and node.status in ("fenced", "stopped") and node.disk.written.rejoin is None:
                node.command(Rejoin(primary.store_id))
            elif node.status == "stopped":
                node.command(AbortRejoin())

    def _choose(self, own: list[Node]) -> None:
        """Promote the store that has the most, once nobody is about to open by itself."""
        if any(node.status in ("starting", "handing") for node in own) and self.world.now_s % 60 < 50:
            return
        free = [
            node for node in own if node.disk.written.rejoin is None and node.member is not None and node.log.epochs
        ]
        if not free:
            for node in own:
                node.command(AbortRejoin())
            return
        best = max(free, key=lambda node: (node.log.epochs[-1].number, node.log.tip.lsn))
        assert best.member is not None
        best.command(Promote(max(node.member.number for node in [best] if node.member), 10_000, True))

    def _is_well(self) -> bool:
        world = self.world
        own = world.own()
        primary = world.primary()
        if primary is None or any(node.status not in ("open", "following") for node in own):
            return False
        if any(node.status == "open" and node is not primary for node in own):
            return False
        return all(
            node.log.tip.chain == primary.log.tip.chain
            and node.log.state.digest == primary.log.state.digest
            and node.disk.written.rejoin is None
            and node.log.durable_lsn == node.log.tip.lsn
            for node in own
        )

    def _last_write(self) -> None:
        """A write that waits for the other Region is acknowledged."""
        world = self.world
        primary = world.primary()
        assert primary is not None
        others = [node for node in world.own() if node is not primary]
        if primary.member is None or not others:
            return
        primary.synchronous = primary.member.synchronous = others[0].region
        client = world.add_client("z", primary.store_id)
        write = client.make(0, 1, "replicated")
        client.current, client.is_stopped = write, True
        world.call("z", primary.store_id, write, 1)
        if not world.run(15.0, lambda: client.told.get(write.request_id) == "done"):
            raise Violation("liveness: a replicated write is not acknowledged in peace")


_STRIKES: dict[str, Callable[[Story], None]] = {
    "crash": Story._crash,
    "long crash": Story._long_crash,
    "pause": Story._pause,
    "cut": Story._cut,
    "isolate": Story._isolate,
    "promote": Story._promote,
    "promote two": Story._promote_two,
    "failover": Story._failover,
    "step down": Story._step_down,
    "switchover": Story._switch,
    "rejoin": Story._rejoin,
    "abort": Story._abort,
    "put back": Story._put_back,
    "put back beneath": Story._put_back_beneath,
    "clock": Story._jump,
    "cut log": Story._cut_log,
    "drop slot": Story._drop_slot,
    "copy": Story._copy,
    "stranger": Story._stranger,
}
_FAULTS = (
    *("crash",) * 3,
    "long crash",
    *("pause",) * 2,
    *("cut",) * 2,
    "isolate",
    "promote",
    "promote two",
    *("failover",) * 3,
    "step down",
    *("switchover",) * 2,
    *("rejoin",) * 4,
    "abort",
    "put back",
    "clock",
    "cut log",
    "drop slot",
    "copy",
    "stranger",
)
assert set(_STRIKES) - set(_FAULTS) == {"put back beneath"}  # which is for the stories that favour it
