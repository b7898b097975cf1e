"""The memory formulas, what they choose, where segments go, and the ledger that admits allocations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.index import budget
from vecstore.index.budget import Ledger, NoRoom, choose, layout, need, queries_max
from vecstore.index.placement import Room, Wanted, levelled, place
from vecstore.values import Metric

GIB = 1 << 30
SIZES = {"rows": st.integers(1, 50_000_000), "dim": st.integers(1, 4_096)}


@given(kind=st.sampled_from(budget.KINDS), metric=st.sampled_from(["l2", "ip", "cosine"]), **SIZES)
def test_a_need_holds_at_least_what_the_index_is_made_of(kind: str, metric: Metric, rows: int, dim: int) -> None:
    """Serving takes no less than the codes; building no less than serving; more rows no less than fewer."""
    wanted = need(kind, rows, dim, metric)
    lists, pieces, width = layout(kind, rows, dim)
    code = {"flat": 2 * dim, "ivf_sq": 2 * dim + 8, "ivf_pq": pieces + 8, "cagra": 4 * dim}[kind]
    assert wanted.serve >= rows * code + 4 * lists * width
    assert wanted.build >= wanted.serve
    assert wanted.peak == max(wanted.train, wanted.build, wanted.serve)
    assert need(kind, rows + 1_000, dim, metric).peak >= wanted.peak


@given(rows=st.integers(1_000_000, 50_000_000), dim=st.integers(64, 2_048))
def test_a_need_is_near_what_the_index_is_made_of(rows: int, dim: int) -> None:
    """From a million rows on, lists and tables take less than a tenth of the codes, or a fifth of short ones.

    Lists longer than half a page leave half a page empty each.
    """
    lists, pieces, _ = layout("ivf_pq", rows, dim)

    def pages(codes: int) -> int:
        return lists * budget.PAGE_BYTES // 2 if codes > 0.8 * lists * budget.PAGE_BYTES // 2 else 0

    wide, short = (2 * dim + 8) * rows, (pieces + 8) * rows
    assert need("flat", rows, dim).serve <= 1.1 * 2 * dim * rows
    assert need("ivf_sq", rows, dim).serve <= 1.2 * wide + pages(wide)
    assert need("ivf_pq", rows, dim).serve <= 1.2 * short + pages(short) + 16 * 2_048 * dim + 4_096 * dim


def test_lists_of_more_than_half_a_page_have_their_own_pages() -> None:
    """The step is where a list outgrows half a page of 2 MiB, and is half a page for each list."""
    lists, _, _ = layout("ivf_sq", 4_000_000, 128)
    rows = lists * (budget.PAGE_BYTES // 2) // (2 * 128 + 8)
    below, above = need("ivf_sq", rows * 9 // 10, 128), need("ivf_sq", rows * 11 // 10, 128)
    assert layout("ivf_sq", rows * 9 // 10, 128) == layout("ivf_sq", rows * 11 // 10, 128)
    assert above.serve - below.serve > lists * budget.PAGE_BYTES // 2 > 0.15 * rows * (2 * 128 + 8)
    assert below.serve < 1.1 * 0.9 * rows * (2 * 128 + 8)


@pytest.mark.parametrize("item", [2, 4])
@pytest.mark.parametrize("dim", [1, 32, 33, 4_096])
def test_tiles_are_as_faiss_makes_them(dim: int, item: int) -> None:
    """A gibibyte is shared by two tiles of the given type's numbers, in 512 queries, or 1,024 of few dimensions."""
    queries, columns = budget.tile_of(item, dim)
    assert queries == (1_024 if dim <= 32 else 512)
    assert queries * columns * 2 * item == 1 << 30


@given(**SIZES)
def test_a_layout_is_one_that_faiss_takes(rows: int, dim: int) -> None:
    """Lists stay within what FAISS looks at, codes are of a number that it has kernels for, and divide the width."""
    lists, pieces, width = layout("ivf_pq", rows, dim)
    assert 1 <= lists <= budget.LISTS_MAX
    assert pieces in budget.PQ_PIECES
    assert width % pieces == 0
    assert dim <= width < dim + pieces


@given(free=st.integers(0, 200 * GIB), cuvs=st.booleans(), index=st.sampled_from(["auto", "flat", "hnsw"]), **SIZES)
def test_what_is_chosen_fits(free: int, cuvs: bool, index: str, rows: int, dim: int) -> None:
    """Whatever is chosen stays within the free memory in its worst phase; graphs need cuVS; flat asks for flat."""
    choice = choose(rows, dim, "l2", free, cuvs=cuvs, index=index)
    if choice is None:
        assert need("flat", rows, dim).peak > free
        return
    assert choice.need.peak <= free
    assert choice.kind != "cagra" or (cuvs and index == "hnsw")
    assert index != "flat" or choice.kind == "flat"


def test_the_simplest_index_that_is_fast_enough_is_chosen() -> None:
    """A million rows are flat; a hundred million have lists; where those do not fit, product codes."""
    kinds = [
        choose(rows, 128, "l2", free).kind  # type: ignore[union-attr]
        for rows, free in [(1_000_000, 80 * GIB), (50_000_000, 80 * GIB), (100_000_000, 40 * GIB)]
    ]
    assert kinds == ["flat", "ivf_sq", "ivf_pq"]
    assert choose(1_000_000, 128, "l2", 1 << 20) is None


@given(scratch=st.integers(1 << 24, 1 << 30), dim=st.integers(1, 16_384), candidates=st.integers(1, 20_000))
def test_queries_asked_at_once_fit_the_scratch(scratch: int, dim: int, candidates: int) -> None:
    """What surrounds a call takes at most a quarter of the scratch, unless one query alone takes more."""
    count = queries_max(scratch, dim, candidates)
    assert count == 1 or count * (6 * dim + 24 * candidates) <= scratch // 4


def test_the_ledger_admits_what_fits_and_nothing_else() -> None:
    """A reservation replaces what its name had; one that does not fit changes nothing; what is lent comes back."""
    ledger = Ledger(100)
    ledger.reserve("a", 60)
    ledger.reserve("a", 80)
    with pytest.raises(NoRoom, match="b: 21 bytes wanted, 20 free"):
        ledger.reserve("b", 21)
    assert (ledger.used, ledger.free) == (80, 20)
    with ledger.lent("b", 20):
        assert ledger.free == 0
    ledger.release("a")
    ledger.release("never")
    assert (ledger.used, ledger.reserved) == (0, {})


def test_the_ledger_fails_where_it_is_told_to() -> None:
    """For drills: the n-th allocation fails though there is room, and only that one."""
    ledger = Ledger(100, failing=2)
    ledger.reserve("a", 1)
    with pytest.raises(NoRoom):
        ledger.reserve("b", 1)
    ledger.reserve("b", 1)


def wanted(*rows: int) -> list[Wanted]:
    """Return segments of so many rows of 128 dimensions."""
    return [Wanted(f"s{i}", count, 128, "l2") for i, count in enumerate(rows)]


def test_segments_go_where_most_is_free() -> None:
    """The largest goes first, each to the device with most memory left."""
    placed = place(wanted(1_000_000, 4_000_000, 2_000_000), [Room("0", 8 * GIB), Room("1", 8 * GIB)], {})
    assert placed.refused == {}
    devices = {name: device for name, (device, _) in placed.build.items()}
    assert devices["s1"] != devices["s2"]
    assert devices["s0"] == devices["s2"]


def test_what_has_a_place_keeps_it_until_its_device_is_gone() -> None:
    """Segments on a device that is there are left alone; those of a lost device are placed on the others."""
    rooms = [Room("0", 8 * GIB), Room("1", 8 * GIB)]
    assert place(wanted(1_000_000), rooms, {"s0": "1"}).build == {}
    moved = place(wanted(1_000_000), rooms[:1], {"s0": "1"})
    assert moved.build["s0"][0] == "0"


def test_what_fits_nowhere_is_refused_with_a_reason() -> None:
    """No device, a budget too small, and a device on which it failed each have their words."""
    assert place(wanted(1_000_000), [], {}).refused == {"s0": "no device"}
    assert place(wanted(1_000_000), [Room("0", 1 << 20)], {}).refused["s0"].startswith("budget: ")
    failed = place(wanted(1_000_000), [Room("0", 8 * GIB)], {}, {"s0": {"0"}})
    assert failed.refused == {"s0": "failed on every device"}
    elsewhere = place(wanted(1_000_000), [Room("0", 8 * GIB), Room("1", 4 * GIB)], {}, {"s0": {"0"}})
    assert elsewhere.build["s0"][0] == "1"


@given(
    rows=st.lists(st.integers(1, 5_000_000), max_size=12),
    free=st.lists(st.integers(0, 10 * GIB), max_size=4),
)
def test_a_device_is_never_given_more_than_it_has(rows: list[int], free: list[int]) -> None:
    """What is placed together stays within each budget, and everything is either placed or refused."""
    rooms = [Room(str(i), size) for i, size in enumerate(free)]
    placed = place(wanted(*rows), rooms, {})
    assert set(placed.build) | set(placed.refused) == {f"s{i}" for i in range(len(rows))}
    for room in rooms:
        held = [choice.need.serve for device, choice in placed.build.values() if device == room.name]
        assert sum(held) <= room.free


@given(
    rows=st.lists(st.integers(1, 5_000_000), max_size=12),
    free=st.lists(st.integers(0, 10 * GIB), min_size=1, max_size=4),
    data=st.data(),
)
def test_moves_bring_devices_nearer_and_come_to_an_end(rows: list[int], free: list[int], data: st.DataObject) -> None:
    """However segments lie, each move leaves the two devices nearer, and after the last no move would."""
    segments = wanted(*rows)
    names = [str(i) for i in range(len(free))]
    held = {one.name: (data.draw(st.sampled_from(names)), need("flat", one.rows, one.dim).serve) for one in segments}
    left = dict(zip(names, free, strict=True))
    for _ in range(100):
        rooms = [Room(name, size) for name, size in left.items()]
        move = levelled(segments, rooms, held)
        if move is None:
            break
        name, target, choice = move
        source, size = held[name]
        before = abs(left[target] - left[source])
        left[source] += size
        left[target] -= choice.need.serve
        assert left[target] >= 0
        assert abs(left[target] - left[source]) < before
        held[name] = (target, choice.need.serve)
    else:
        raise AssertionError("segments wander about")
    least, most = min(names, key=lambda name: left[name]), max(names, key=lambda name: left[name])
    for one in segments:
        device, size = held[one.name]
        fits = choose(one.rows, one.dim, one.metric, left[most])
        if device == least and 2 * size <= left[most] - left[least] and fits is not None:
            assert 2 * fits.need.serve > left[most] - left[least]


def test_a_device_that_came_back_gets_its_share() -> None:
    """Of four equal segments on one device two move to the empty one; not where they failed, nor the last of one."""
    rooms = [Room("0", 4 * GIB), Room("1", 8 * GIB)]
    size = need("flat", 4_000_000, 128).serve
    held = {f"s{i}": ("0", size) for i in range(4)}
    move = levelled(wanted(*[4_000_000] * 4), rooms, held)
    assert move is not None and move[:2] == ("s0", "1")
    assert levelled(wanted(*[4_000_000] * 4), rooms, held, {f"s{i}": {"1"} for i in range(4)}) is None
    assert levelled(wanted(4_000_000), [Room("0", 8 * GIB - size), Room("1", 8 * GIB)], {"s0": ("0", size)}) is None
    assert levelled(wanted(4_000_000), rooms[:1], {"s0": ("0", size)}) is None
