"""The queue of the device's free blocks: each block in it exactly once, whatever happens, and given
out in the order of next use."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.vllm.device_tier import DeviceBlock, NextUseQueue
from tests.order.boards import board_where_prompts_go_on
from tests.vllm.doubles import Block, ListQueue

NUM_BLOCKS = 12


class Pool:
    """As vLLM's ``BlockPool`` uses its queue: blocks of calls, found again by their keys."""

    def __init__(self, ahead: int = 0) -> None:
        self.board = board_where_prompts_go_on()
        self.blocks = [Block(number) for number in range(NUM_BLOCKS)]
        self.left: list[object] = []
        self.inner = ListQueue(self.blocks)
        self.queue = NextUseQueue(self.inner, self.board.keys, self._note, self.evict, ahead)
        self.cached: dict[object, Block] = {}
        self.used: dict[Block, int] = {}
        self.board.keys.watch(lambda: self.cached)

    def _note(self, blocks: Mapping[object, DeviceBlock]) -> None:
        for key, block in blocks.items():
            assert block.block_hash in (key, None)
            self.left.append(key)

    def evict(self, block_ids: set[int]) -> None:
        for number in block_ids:
            block = self.blocks[number]
            assert block not in self.used
            if self.cached.get(block.block_hash) is block:
                del self.cached[block.block_hash]
            block.block_hash = None

    def take(self, count: int) -> list[Block]:
        before = len(self.left)
        blocks = self.queue.popleft_n(count)
        for block in blocks:
            if self.cached.get(block.block_hash) is block:
                del self.cached[block.block_hash]
            block.block_hash = None
            self.used[block] = 1
        for key in self.left[before:]:
            self.board.keys.left([key])
        return blocks

    def open(self, agent: int, keys: list[object]) -> list[Block]:
        """Begin a call: what is cached is used again, the rest is computed and cached."""
        self.board.begin(f"{agent}", agent)
        self.board.used(f"{agent}", keys)
        held = []
        for key in keys:
            block = self.cached.get(key)
            if block is None:
                break
            if not self.used.get(block):
                self.queue.remove(block)
            self.used[block] = self.used.get(block, 0) + 1
            held.append(block)
        for key in keys[len(held) :]:
            [block] = self.take(1)
            block.block_hash = key
            self.cached.setdefault(key, block)  # a second copy is not found
            held.append(block)
        return held

    def close(self, agent: int, held: list[Block]) -> None:
        self.board.end(f"{agent}")
        freed = []
        for block in reversed(held):
            self.used[block] -= 1
            if not self.used[block]:
                del self.used[block]
                freed.append(block)
        self.queue.append_n(freed)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "close", "expect", "tick", "preempt", "empty"]),
            st.integers(0, 4),
            st.integers(1, 3),
        ),
        max_size=80,
    ),
    st.integers(0, 3),
)
def test_each_block_is_in_the_queue_exactly_once(
    acts: list[tuple[str, int, int]], ahead: int
) -> None:
    pool, running = Pool(ahead), dict[int, list[Block]]()
    for act, agent, size in acts:
        if act == "open" and agent not in running and pool.queue.num_free_blocks >= 4:
            keys: list[object] = ["all", *((agent % 2, agent, depth) for depth in range(size))]
            running[agent] = pool.open(agent, keys)
        elif act == "close" and agent in running:
            pool.close(agent, running.pop(agent))
        elif act == "expect":
            pool.board.expect({agent: size * 3.0}, absolute=False)
        elif act == "tick":
            pool.board.tick(size)
        elif act == "preempt" and agent in running:  # freed while the call stays open
            held = running.pop(agent)
            pool.close(agent, held)
            pool.board.begin(f"{agent}", agent)
        elif act == "empty":  # vLLM takes the keys of blocks, wherever these are
            pool.cached.clear()
            for block in pool.blocks:
                block.block_hash = None
        free = pool.queue.get_all_free_blocks()
        assert sorted(block.block_id for block in [*free, *pool.used]) == list(range(NUM_BLOCKS))
        assert pool.queue.num_free_blocks == len(free)
        # and all can be given out
    count = pool.queue.num_free_blocks
    given_out = pool.queue.popleft_n(count)
    assert len(set(map(id, given_out))) == count
    assert pool.queue.num_free_blocks == 0 == len(pool.inner.blocks)
    for key in pool.left:
        pool.cached.pop(key, None)
        pool.board.keys.left([key])
    if not running:
        assert len(pool.board.keys) == 0
    with pytest.raises(ValueError, match="No free blocks"):
        pool.queue.popleft()


def test_empty_blocks_go_first_then_whole_agents_from_the_end() -> None:
    pool = Pool()
    for agent, soon in ((0, 30.0), (1, 10.0), (2, 20.0)):
        held = pool.open(agent, [(agent, depth) for depth in range(3)])
        pool.board.expect({agent: soon})
        pool.close(agent, held)
    assert pool.queue.num_empty == 3
    assert pool.left == []
    pool.take(3 + 9)
    assert pool.left == [(agent, depth) for agent in (0, 2, 1) for depth in (2, 1, 0)]
    assert len(pool.board.keys) == 0


def test_some_blocks_are_emptied_ahead_and_nothing_more_until_they_are_taken() -> None:
    pool = Pool(ahead=2)
    for agent, soon in ((0, 30.0), (1, 10.0)):
        held = pool.open(agent, [(agent, depth) for depth in range(5)])
        pool.board.expect({agent: soon})
        pool.close(agent, held)
    pool.board.expect({2: 20.0})
    pool.board.begin("2", 2)
    pool.board.used("2", ["new"])
    pool.cached["new"] = Block(99)  # held elsewhere: its owner stays
    pool.board.end("2")
    pool.board.expect({2: 20.0})
    # two hold nothing; of the five that are used later, two are emptied with the third
    assert pool.queue.num_leaving_before("new", 99) == 2 + 3
    pool.take(2 + 1)
    assert pool.left == [(0, 4), (0, 3), (0, 2)]
    assert pool.queue.num_empty == 2
    assert {(0, 0), (0, 1)} <= set(pool.cached) and not set(pool.left) & set(pool.cached)
    pool.take(2)
    assert len(pool.left) == 3
    pool.take(1)
    assert pool.left[3:] == [(0, 1), (0, 0), (1, 4)]


def test_a_second_copy_goes_before_the_first() -> None:
    pool = Pool()
    one, two = pool.take(2)
    one.block_hash = two.block_hash = "same"
    pool.cached["same"] = one
    pool.queue.append_n([one])
    pool.queue.append(two)
    assert pool.queue.num_empty == NUM_BLOCKS - 1
    pool.queue.popleft_n(NUM_BLOCKS - 1)
    assert pool.queue.popleft() is one


def test_room_for_what_is_loaded_ahead() -> None:
    pool = Pool()
    for agent, soon in ((0, 30.0), (1, 10.0), (2, 20.0)):
        held = pool.open(agent, [(agent, depth) for depth in range(3)])
        pool.board.expect({agent: soon})
        pool.close(agent, held)
    pool.board.expect({3: 15.0})
    pool.board.begin("3", 3)
    pool.board.used("3", ["new"])
    pool.cached["new"] = pool.blocks[0]  # held elsewhere: its owner stays
    pool.board.end("3")
    pool.board.expect({3: 15.0})
    room = pool.queue.num_leaving_before("new", 99)
    assert room == 3 + 6  # the empty ones, and those of agents that call later
    assert pool.queue.num_leaving_before("new", 5) == 5
    assert pool.queue.peek_key() == (0, 2)  # asking changes nothing


def test_what_only_reads_the_queue_reads_vllms() -> None:
    pool = Pool()
    assert pool.queue.fake_free_list_head == "the head"
    with pytest.raises(RuntimeError, match="invalid block"):
        pool.queue.remove(Block(99))
    block = pool.queue.popleft()
    pool.queue.prepend_n([block])
    assert pool.queue.popleft() is block


@pytest.mark.parametrize("seed", range(3))
def test_the_order_follows_hints_that_come_late(seed: int) -> None:
    rng, pool = random.Random(seed), Pool()
    for agent in range(4):
        pool.close(agent, pool.open(agent, [(agent, depth) for depth in range(3)]))
    times = {agent: float(rng.randrange(1, 100)) for agent in range(4)}
    pool.board.expect(dict.fromkeys(range(4), 50.0))
    pool.board.expect(times)
    pool.take(12)
    order = [agent for agent, _ in pool.left]  # type: ignore[misc]
    assert [times[agent] for agent in order] == sorted(
        (times[agent] for agent in order), reverse=True
    )
