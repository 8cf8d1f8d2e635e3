"""Planning of copies: every page once, in pieces the driver takes; a bounded number at a time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.core import Fence
from scalesim.memory.links.dma import (
    MAX_PIECES,
    MIN_DEPTH_BYTES,
    ChunkQueue,
    Depth,
    DmaChunk,
    dma_pieces,
)
from scalesim.memory.links.link import MAX_CHUNK_BYTES, Copies, chunked

runs = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 40)), min_size=1, max_size=12)


def pages_of(drawn: list[tuple[int, int]]) -> list[int]:
    """Page ids in runs, each id once."""
    found: dict[int, None] = {}
    for start, length in drawn:
        found |= dict.fromkeys(range(start, start + length))
    return list(found)


@given(runs, runs, st.integers(1, 64))
def test_pieces_are_the_copies_and_cross_no_seam(
    device: list[tuple[int, int]], host: list[tuple[int, int]], seam: int
) -> None:
    on_device, on_host = pages_of(device), pages_of(host)
    count = min(len(on_device), len(on_host))
    copies = Copies("in", on_device[:count], on_host[:count])
    pieces = dma_pieces(copies, seam)
    pairs = [(on + i, of + i) for on, of, num_pages in pieces for i in range(num_pages)]
    assert pairs == list(zip(copies.device_pages, copies.host_pages, strict=True))
    for _, page, num_pages in pieces:
        assert page // seam == (page + num_pages - 1) // seam
    for first, second in itertools.pairwise(pieces):  # no piece could be longer
        joins = second[0] == first[0] + first[2] and second[1] == first[1] + first[2]
        assert not joins or second[1] % seam == 0


@given(st.integers(1, 4000), st.sampled_from([64 << 10, 1 << 20, 2 << 20, 17 << 20]))
def test_chunks_hold_16_mib_or_one_page(count: int, page_bytes: int) -> None:
    parts = chunked(Copies("out", range(count), range(count)), page_bytes)
    assert [page for part in parts for page in part.device_pages] == list(range(count))
    for part in parts:
        assert len(part.device_pages) * page_bytes <= max(MAX_CHUNK_BYTES, page_bytes)


def chunk(ticket: int, num_bytes: int = 10, num_pieces: int = 1) -> DmaChunk:
    copies = Copies("in", range(num_pieces), range(0, 2 * num_pieces, 2))
    pieces = dma_pieces(copies, 1 << 20)
    return DmaChunk(ticket, copies, Fence("compute", ticket), num_bytes, pieces)


def started(queue: ChunkQueue, depth: int) -> list[int]:
    return [each.ticket for each in queue.start(depth, lambda each: True)]


def test_urgent_chunks_overtake_what_waits_and_keep_their_order() -> None:
    queue = ChunkQueue()
    queue.add([chunk(1), chunk(2)], urgent=False)
    queue.add([chunk(3), chunk(4)], urgent=True)
    assert started(queue, 20) == [3, 4] and started(queue, 20) == []
    assert not queue.cancel(3) and queue.cancel(1) and not queue.cancel(1)
    assert queue.queued_bytes == 30
    queue.ended(chunk(3))
    assert started(queue, 20) == [2] and queue.queued_bytes == 20


def test_a_chunk_whose_step_is_not_launched_holds_back_those_behind_it() -> None:
    queue = ChunkQueue()
    queue.add([chunk(1), chunk(2)], urgent=False)
    assert list(queue.start(100, lambda each: each.ticket != 1)) == []
    assert started(queue, 100) == [1, 2]


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, MAX_PIECES)), max_size=30),
    st.integers(1, 1000),
)
def test_in_flight_is_bounded_and_all_is_carried(sizes: list[tuple[int, int]], depth: int) -> None:
    queue, flying, order = ChunkQueue(), [], []
    chunks = {n: chunk(n, size, pieces) for n, (size, pieces) in enumerate(sizes)}
    queue.add(list(chunks.values()), urgent=False)
    while queue.queued_bytes:
        flying += started(queue, depth)
        assert flying
        if len(flying) > 1:
            assert sum(chunks[n].num_bytes for n in flying) <= depth
            assert sum(len(chunks[n].pieces) for n in flying) <= MAX_PIECES
        order.append(flying[0])
        queue.ended(chunks[flying.pop(0)])
    assert order == list(chunks)


def test_depth_grows_at_once_with_the_loops_turns_and_shrinks_slowly() -> None:
    depth = Depth()
    assert depth.num_bytes(50e9) == MIN_DEPTH_BYTES
    for now_s in (0.0, 0.001, 0.011):
        depth.polled(now_s)
    assert depth.num_bytes(50e9) == pytest.approx(1.5 * 0.01 * 50e9)
    depth.polled(0.012)
    assert 0.8 * 0.01 < depth.num_bytes(1e12) / 1.5e12 < 0.01
    depth.polled(1000.0)  # a pause is no iteration
    assert depth.num_bytes(1e12) == pytest.approx(1.5e11)
