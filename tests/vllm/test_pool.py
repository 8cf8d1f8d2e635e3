"""vLLM's own block pool with the plug-in's queue: no block is lost, none is given out twice."""

from __future__ import annotations

import importlib.util
import random
from typing import Any

import pytest

from scalesim.order.board import CallBoard
from scalesim.vllm.device_tier import NextUseQueue
from scalesim.vllm.plugin import register

pytestmark = [
    pytest.mark.plugin,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.filterwarnings("default"),
]
NUM_BLOCKS = 24


@pytest.mark.parametrize("seed", range(20))
def test_no_block_is_lost(seed: int) -> None:
    from vllm.v1.core.block_pool import BlockPool

    from scalesim.vllm.compat import cache_block, keys_in

    rng, board = random.Random(seed), CallBoard()
    pool = BlockPool(NUM_BLOCKS, True, 16)
    left: list[Any] = []
    pool.free_block_queue = NextUseQueue(
        pool.free_block_queue, board.keys, left.extend, pool.evict_blocks, ahead=seed % 4
    )
    board.keys.watch(lambda: keys_in(pool))
    calls: dict[str, list[Any]] = {}
    for number in range(300):
        act = rng.choice(["open", "open", "close", "expect", "tick", "evict", "reset"])
        agent = rng.randrange(8)
        if act == "open" and pool.get_num_free_blocks() >= 5:
            keys = [f"{depth}/{agent // 2 if depth < 2 else agent}".encode() for depth in range(4)]
            board.begin(f"{number}", agent)
            board.used(f"{number}", keys)
            held = []
            for key in keys:
                if key not in keys_in(pool):
                    break
                held.append(pool.cached_block_hash_to_block.get_one_block(key))
            pool.touch(held)
            fresh = pool.get_new_blocks(5 - len(held))
            for depth, (key, block) in enumerate(zip(keys[len(held) :], fresh, strict=False)):
                cache_block(pool, block, key, 16 * (len(held) + depth + 1))
            calls[f"{number}"] = [*held, *fresh]
        elif act == "close" and calls:
            name = rng.choice(list(calls))
            board.end(name)
            pool.free_blocks(reversed(calls.pop(name)))
        elif act == "expect":
            board.expect({agent: rng.random() * 50}, absolute=False)
        elif act == "tick":
            board.tick()
        elif act == "evict":
            pool.evict_blocks({rng.randrange(1, NUM_BLOCKS)})
        elif act == "reset" and not calls:
            assert pool.reset_prefix_cache()
        for key in left:
            board.keys.left([key])
        left.clear()
        free = {block.block_id for block in pool.free_block_queue.get_all_free_blocks()}
        used = {block.block_id for blocks in calls.values() for block in blocks}
        assert not free & used and len(free | used) == NUM_BLOCKS - 1  # without the null block
        assert len(free) == pool.get_num_free_blocks()
    for name, blocks in calls.items():
        board.end(name)
        pool.free_blocks(reversed(blocks))
    assert len(set(map(id, pool.get_new_blocks(NUM_BLOCKS - 1)))) == NUM_BLOCKS - 1
    for key in left:
        board.keys.left([key])
    assert len(board.keys) == 0


def test_the_names_are_known_after_register_and_twice_is_once() -> None:
    from vllm.config import KVTransferConfig
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory
    from vllm.v1.kv_offload.factory import OffloadingSpecFactory

    for _ in range(2):
        register()
    config = KVTransferConfig(kv_connector="ScaleSimConnector", kv_role="kv_both")
    assert KVConnectorFactory.get_connector_class(config).__name__ == "ScaleSimConnector"
    assert CachePolicyFactory.get_cache_policy_cls("NextUseCachePolicy") is (
        CachePolicyFactory.get_cache_policy_cls("NextUseCachePolicy", "scalesim.vllm.policy")
    )
    found = OffloadingSpecFactory.get_spec_cls({"spec_name": "ScaleSimOffloadingSpec"})
    assert found.__name__ == "ScaleSimOffloadingSpec"
    assert callable(EngineCore.scalesim_expect)
