"""What the plug-in's hooks cost an engine: the board, the queue and the host tier as vLLM calls
them, without vLLM."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scalesim.order.board import CallBoard
from scalesim.vllm.device_tier import NextUseQueue

BLOCKS_A_PROMPT = 32
RESIDENT = 0.25  # share of the agents whose blocks are on the device
REPEATS = 200


@dataclass(eq=False)
class _Block:
    block_id: int
    block_hash: Any = None


class _Queue:
    """A queue that costs nothing but what any queue must do."""

    def __init__(self, blocks: list[_Block]) -> None:
        self._blocks = dict.fromkeys(blocks)

    @property
    def num_free_blocks(self) -> int:
        return len(self._blocks)

    def get_all_free_blocks(self) -> list[_Block]:
        return list(self._blocks)

    def remove(self, block: _Block) -> None:
        del self._blocks[block]

    def append_n(self, blocks: list[_Block]) -> None:
        self._blocks.update(dict.fromkeys(blocks))


def hook_costs(num_agents: int) -> dict[str, float]:
    """Microseconds, medians: of a request from its arrival to its end, of a block given out, of a
    hint for one agent and for all, and of a tick of the clock."""
    board = CallBoard()
    resident = max(4, int(num_agents * RESIDENT))
    blocks = [_Block(number) for number in range(resident * BLOCKS_A_PROMPT)]
    cached: dict[object, _Block] = {}
    left: list[object] = []
    queue = NextUseQueue(_Queue(blocks), board.keys, left.extend)
    board.keys.watch(lambda: cached)
    calls: list[float] = []
    taking: list[float] = []
    clock = time.perf_counter

    def call(agent: int) -> None:
        keys = [(agent, depth) for depth in range(BLOCKS_A_PROMPT)]
        begin = clock()
        board.begin("call", agent)
        board.used("call", keys)
        middle = clock()
        held = [cached.get(key) for key in keys]
        for block in held:
            if block is not None:
                queue.remove(block)
        fresh = queue.popleft_n(held.count(None))
        for key in left:
            del cached[key]
        board.keys.left(left)
        left.clear()
        took = clock()
        for key, block in zip(keys, [block or fresh.pop() for block in held], strict=True):
            block.block_hash, cached[key] = key, block
        again = clock()
        board.expect({agent: board.clock.now + num_agents})
        board.end("call")
        queue.append_n([cached[key] for key in reversed(keys)])
        calls.append(clock() - again + middle - begin)
        taking.append((took - middle) / BLOCKS_A_PROMPT)

    for agent in range(num_agents):
        call(agent)
        board.tick(to=float(agent))
    calls.clear()
    taking.clear()
    gc.collect()
    for number in range(REPEATS):
        call(number * 37 % num_agents)
    everyone = {agent: board.clock.now + (agent * 7) % num_agents for agent in range(num_agents)}
    return {
        f"a request of {BLOCKS_A_PROMPT} blocks": 1e6 * _median(calls),
        "a block given out": 1e6 * _median(taking),
        "a hint for one agent": _cost(lambda: board.expect({3: board.clock.now + 5.0}), 50),
        "a tick of the clock": _cost(board.tick, 50),
        f"hints for all {num_agents} agents": _cost(
            lambda: board.expect({agent: time + 1.0 for agent, time in everyone.items()}), 3
        ),
    }


def _cost(action: Callable[[], None], repeats: int) -> float:
    took = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        took.append(time.perf_counter() - begin)
    return 1e6 * _median(took)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
