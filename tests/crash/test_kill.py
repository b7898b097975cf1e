"""SIGKILL at random moments of a writing process: nothing acknowledged is lost, nothing is half there."""

from __future__ import annotations

import random
from pathlib import Path

from .checks import check_store
from .conftest import KILLS_PER_RUN
from .history import History
from .process import add_seed, write_until_killed

ACKS_MAX = 60
DELAY_S_MAX = 0.02
OPENING_S_MAX = 0.3


def test_killed_writers_lose_nothing(killed_run: int, seed: int, tmp_path: Path) -> None:
    """Several writers of one directory are killed in turn, and after each kill all invariants hold.

    Some die while they open it, some in a write or in background work; tokens of earlier writers stay good.
    """
    rng = random.Random(f"{seed} {killed_run}")
    history = History(threads=2)
    for kill in range(KILLS_PER_RUN):
        opening = kill > 0 and rng.random() < 0.15
        acks = None if opening else rng.randint(1, ACKS_MAX)
        delay_s = rng.random() * (OPENING_S_MAX if opening else DELAY_S_MAX)
        try:
            history.add(write_until_killed(tmp_path / "store", rng.randrange(1 << 30), 2, acks=acks, delay_s=delay_s))
            check_store(tmp_path / "store", history, rng.randrange(1 << 30))
        except BaseException as error:
            add_seed(error, seed=seed, run=killed_run, kill=kill, acks=acks, delay_s=delay_s)
            raise
    assert history.acknowledged > 0


def test_many_threads_in_one_group(seed: int, tmp_path: Path) -> None:
    """Each of eight threads that share groups keeps what was acknowledged; its open write is whole or absent."""
    history = History(threads=8)
    try:
        history.add(write_until_killed(tmp_path / "store", seed, 8, acks=150, delay_s=0.003))
        check_store(tmp_path / "store", history, seed)
    except BaseException as error:
        add_seed(error, seed=seed)
        raise
