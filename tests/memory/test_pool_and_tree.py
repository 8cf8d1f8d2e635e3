"""The parts of the memory layer one by one: pool, block table, orders, prefix tree."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.pools.page_pool import PagePool, runs
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.run import Transfer
from scalesim.memory.tree.segment import TOKEN_BYTES, Segment

# -- pool -------------------------------------------------------------------------------------


def test_allocation_is_all_or_nothing_and_prefers_one_run() -> None:
    pool = PagePool(11, first=1)
    first, second, third = pool.allocate(3), pool.allocate(4), pool.allocate(3)
    assert first and second and third and pool.num_free == 0
    assert pool.allocate(1) is None and pool.num_used == 10
    pool.free(first)
    pool.free(second)
    assert pool.allocate(8) is None and pool.num_free == 7
    pages = pool.allocate(7)
    assert pages is not None and len(runs(pages)) == 1
    assert 0 not in {*pages, *third}


def test_a_free_page_carries_its_fence() -> None:
    pool = PagePool(4)
    pages = pool.allocate(4)
    assert pages is not None and pool.fence(pages) == -1
    pool.free(pages[:1], fence=7)
    pool.free(pages[1:2], fence=3)
    again = pool.allocate(2)
    assert again is not None and pool.fence(again) == 7 and pool.fence(pages[1:2]) == 3
    with pytest.raises(AssertionError):
        pool.fence_free(again, 9)  # a step may touch them anyway
    pool.free(again)
    pool.fence_free(again[:1], 9)
    assert pool.fence(pool.allocate(2) or []) == 9


def test_double_free_is_refused() -> None:
    pool = PagePool(4)
    pages = pool.allocate(2)
    assert pages is not None
    pool.free(pages)
    with pytest.raises(AssertionError, match="free already"):
        pool.free(pages[:1])


@given(st.integers(0, 2**32), st.integers(1, 64), st.integers(0, 1))
@settings(max_examples=60)
def test_pool_against_a_set(seed: int, num_pages: int, first: int) -> None:
    rng = random.Random(seed)
    pool = PagePool(num_pages + first, first=first)
    held: list[int] = []
    for _ in range(80):
        if rng.random() < 0.5:
            count = rng.randint(0, num_pages)
            pages = pool.allocate(count)
            assert (pages is None) == (count > num_pages - len(held))
            assert not set(pages or []) & set(held)
            held += pages or []
        else:
            rng.shuffle(held)
            cut = rng.randint(0, len(held))
            pool.free(held[:cut])
            del held[:cut]
        pool.check()
        assert set(np.flatnonzero(pool.free_mask())) == {*range(first, num_pages + first)} - {*held}


def test_runs() -> None:
    assert runs([4, 5, 6, 2]) == [(4, 7), (2, 3)]
    assert runs([]) == [] and runs([3, 2, 1]) == [(3, 4), (2, 3), (1, 2)]


# -- block table ------------------------------------------------------------------------------


def test_block_table_gives_rows_and_lists_changes_in_order() -> None:
    table = BlockTable(3)
    row, other = table.allocate(), table.allocate()
    assert {row, other} == {1, 2} and table.num_free == 0
    table.write(row, 0, [7, 8])
    table.write(row, 1, [9])
    rows, cols, pages = table.take_changes()
    assert rows.dtype == cols.dtype == pages.dtype == np.int32
    copy = np.zeros((3, 4), np.int32)
    copy[rows, cols] = pages
    assert copy[row].tolist() == [7, 9, 0, 0]
    assert not len(table.take_changes()[0])
    table.free(row)
    with pytest.raises(AssertionError):
        table.free(row)
    assert table.allocate() == row


# -- orders -----------------------------------------------------------------------------------

USES = st.builds(
    NextUse,
    time=st.none() | st.integers(-3, 9).map(float) | st.just(float("inf")),
    seq=st.integers(0, 3),
    last_use=st.integers(0, 5).map(float),
    last_seq=st.integers(0, 10_000),
)


@given(st.lists(st.tuples(st.integers(0, 12), st.none() | USES), max_size=300), st.booleans())
@settings(max_examples=60)
def test_order_against_a_scan(changes: list[tuple[int, NextUse | None]], soonest: bool) -> None:
    order: LazyHeap[int] = LazyHeap(soonest=soonest)
    live: dict[int, NextUse] = {}
    for item, use in changes:
        if use is None:
            order.discard(item)
            live.pop(item, None)
        else:
            order.add(item, use)
            live[item] = use
    for now in (5.0, 8.0, 30.0):  # nothing is keyed again on a tick
        found = order.peek(now)
        assert (found is None) == (not live) and len(order) == len(live)
        if found is not None:
            mine = live[found]
            for other in live.values():
                ahead = other.sooner_than(mine, now) if soonest else mine.sooner_than(other, now)
                assert not ahead, (found, live)


def test_unknown_uses_count_as_far_as_they_lie_back() -> None:
    order: LazyHeap[str] = LazyHeap()
    order.add("known", NextUse(20.0, 1, 0.0, 1))
    order.add("unknown", NextUse(None, 0, 4.0, 2))
    assert order.peek(10.0) == "known"  # 10 steps ahead against 6 steps back
    assert order.peek(14.0) == "unknown"


# -- prefix tree ------------------------------------------------------------------------------

SIZE = 2


def blocks(*names: int) -> bytes:
    return b"".join(np.array([name, -name], np.int32).tobytes() for name in names)


def tree_with(*paths: tuple[int, ...]) -> tuple[PrefixTree, Segment]:
    tree = PrefixTree(SIZE)
    root = tree.root("model")
    for path in paths:
        tokens = blocks(*path)
        found = tree.match(root, tokens, len(path))
        parent, start = (found[-1][0], sum(count for _, count in found)) if found else (root, 0)
        if found and found[-1][1] < parent.num_blocks:
            parent = tree.split(parent, found[-1][1])
        child = tree.insert(parent, blocks(*path[start:]))
        first = 100 * path[-1]
        child.put("device", list(range(first, first + len(path) - start)))
    return tree, root


def test_match_is_by_tokens_and_partial_at_the_end_only() -> None:
    tree, root = tree_with((1, 2, 3), (1, 2, 4, 5), (9,))

    def matched(*names: int, limit: int = 99) -> list[int]:
        path = tree.match(root, blocks(*names), min(limit, len(names)))
        return [count for _, count in path]

    assert matched(1, 2, 4, 5, 6) == [2, 2]
    assert matched(1, 2, 4, 7) == [2, 1]
    assert matched(1, 2, 3, limit=2) == [2] and matched(1, 8) == [1]
    assert matched(7) == [] and matched(9, 1) == [1]
    assert tree.match(tree.root("another"), blocks(1, 2, 3), 3) == []


def test_each_root_has_blocks_of_its_own_size() -> None:
    tree, tokens = PrefixTree(SIZE), np.arange(12, dtype=np.int32)
    roots = {size: tree.root("model", block_size=size) for size in (SIZE, 3, 6)}
    assert tree.roots("model") == [*roots.values()] and tree.root("model") is roots[SIZE]
    for size, root in roots.items():
        segment = tree.insert(root, tokens.tobytes())
        segment.put("device", range(12 // size))
        assert tree.match(root, tokens.tobytes(), 12 // size) == [(segment, 12 // size)]
        other = np.where(tokens == 7, 99, tokens).tobytes()
        assert tree.match(root, other, 12 // size) == [(segment, 7 // size)]
        upper = tree.split(segment, 7 // size)
        assert len(upper.tokens) == 7 // size * size * TOKEN_BYTES
        assert tree.merge(upper) is segment and segment.tokens == tokens.tobytes()


@pytest.mark.parametrize("length", range(1, 18))
def test_common_blocks_finds_the_first_difference(length: int) -> None:
    tree, root = tree_with(tuple(range(1, length + 1)))
    (segment,) = root.children.values()
    for differs in range(1, length):
        names = list(range(1, length + 1))
        names[differs] = 77
        assert tree.common_blocks(segment, blocks(*names), 0, length) == differs


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_split_divides_pages_and_copies_and_merge_undoes_it(cut: int) -> None:
    tree, root = tree_with((1, 2, 3, 4, 5))
    (segment,) = root.children.values()
    segment.put("host", [10, 11, 12])
    save = Transfer("out", "save", [(segment, 1)])
    segment.put("host", [13], save)
    segment.pin()
    upper = tree.split(segment, cut)
    assert [*upper.device, *segment.device] == [500, 501, 502, 503, 504]
    assert [*upper.host, *segment.host] == [10, 11, 12, 13]
    assert upper.host.valid + segment.host.valid == 3
    assert upper.device.valid + segment.device.valid == 5
    assert upper.pins == segment.pins == 1 and segment.parent is upper
    holder = segment if cut < 4 else upper
    assert save.parts == [(holder, 1)] and holder.host.transfer is save
    assert (segment if holder is upper else upper).host.transfer is None
    assert tree.merge(upper) is None  # pinned, and under a copy
    assert upper.unpin() and segment.unpin() and holder.end_transfer("host")
    assert holder.host.valid == len(holder.host)
    upper.cut("host", 0)
    assert tree.merge(upper) is (segment if cut == 4 or not segment.host else None)
    segment.cut("host", 0)
    if upper.parent is not None:
        assert tree.merge(upper) is segment
    assert segment.tokens == blocks(1, 2, 3, 4, 5) and segment.num_blocks == 5
    assert tree.num_segments == 1 and list(root.children.values()) == [segment]


def test_a_parent_counts_its_children_by_tier() -> None:
    tree, root = tree_with((1, 2), (1, 3), (1, 4))
    upper = root.children[blocks(1)]
    assert upper.device_children == upper.content_children == 3
    child = upper.children[blocks(3)]
    child.put("host", [0])
    child.cut("device", 0)
    assert (upper.device_children, upper.content_children) == (2, 3)
    child.cut("host", 0)
    assert (upper.device_children, upper.content_children) == (2, 2)
    assert tree.remove(child) is upper and len(upper.children) == 2
