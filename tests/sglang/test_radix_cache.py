"""SGLang's own radix cache, on a CPU, with the modules that only a GPU has stubbed: what it finds
with ``next-use`` and with ``lru``.

Needs the files of SGLang's wheel on the path, and torch: ``nox -s plugins`` unpacks them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from array import array
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from benchmarks.plugin_vllm import groups_of
from scalesim.sglang.plugin import POLICY, queued, register, released

pytestmark = [
    pytest.mark.plugin,
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="needs SGLang"),
    pytest.mark.filterwarnings("default"),
]
AGENTS, ROOM, TOKENS, ROUNDS = 40, 10, 64, 4
CACHE = "sglang.srt.mem_cache.unified_radix_cache"
OLD_CACHE = "sglang.srt.mem_cache.radix_cache"


class Stub(ModuleType):
    """A module of which everything is there and nothing works."""

    def __init__(self, name: str, path: Sequence[str] = ()) -> None:
        super().__init__(name)
        self.__path__ = list(path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


def load(name: str, tries: int = 200) -> Any:
    """Import ``name``, with a stub for each module that is missing, and without what SGLang imports
    for its whole server."""
    if "sglang" not in sys.modules:
        spec = importlib.util.find_spec("sglang")
        assert spec is not None and spec.submodule_search_locations is not None
        sys.modules["sglang"] = Stub("sglang", spec.submodule_search_locations)
    for _ in range(tries):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            assert missing.name is not None and not missing.name.startswith("sglang.srt.mem_cache")
            parts = missing.name.split(".")
            for end in range(1, len(parts) + 1):
                part = ".".join(parts[:end])
                sys.modules.setdefault(part, Stub(part))
    raise AssertionError(f"{name} needs more than {tries} modules that are not there")


class Slots:
    """An allocator that hands out numbers."""

    device = "cpu"

    def __init__(self, count: int) -> None:
        import torch

        self._torch = torch
        self.free_slots = list(range(count))

    def alloc(self, count: int) -> Any:
        taken, self.free_slots = self.free_slots[:count], self.free_slots[count:]
        return self._torch.tensor(taken, dtype=self._torch.int64)

    def free(self, slots: Any) -> None:
        self.free_slots += slots.tolist()

    def free_segment(self, slots: Any, **where: Any) -> None:
        self.free(slots)

    def available_size(self) -> int:
        return len(self.free_slots)


class Rows:
    """The rows of running requests, of which there is one."""

    def __init__(self) -> None:
        import torch

        self.req_to_token = torch.zeros((1, TOKENS), dtype=torch.int64)

    def write(self, where: Any, slots: Any) -> None:
        self.req_to_token[where] = slots


@pytest.fixture(scope="module", autouse=True)
def hooks() -> None:
    load(CACHE)
    load("sglang.srt.lora.eviction_policy")
    register()
    # the scheduler needs a GPU: its hook cannot be applied, which is logged
    importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry.apply_hooks()


def make_old_cache(policy: str, slots: Slots) -> Any:
    params = importlib.import_module("sglang.srt.mem_cache.cache_init_params").CacheInitParams
    return load(OLD_CACHE).RadixCache(
        params(
            disable=False, req_to_token_pool=Rows(), token_to_kv_pool_allocator=slots, page_size=1,
            eviction_policy=policy,
        )
    )  # fmt: skip


def make_cache(policy: str, core: str | None, slots: Slots) -> Any:
    params = importlib.import_module("sglang.srt.mem_cache.cache_init_params").CacheInitParams
    components = importlib.import_module("sglang.srt.mem_cache.unified_cache.components")
    return load(CACHE).UnifiedRadixCache(
        params(
            disable=False, req_to_token_pool=MagicMock(), token_to_kv_pool_allocator=slots,
            page_size=1, eviction_policy=policy, tree_core_backend=core,
            tree_components=(components.ComponentType.FULL,),
        )
    )  # fmt: skip


def insert(cache: Any, request: Any, tokens: Any, value: Any, protected: int) -> None:
    """As SGLang does when a request has computed its prompt."""
    base = importlib.import_module("sglang.srt.mem_cache.base_prefix_cache")
    key_of = importlib.import_module("sglang.srt.mem_cache.radix_cache").RadixKey
    if hasattr(cache, "tree_core"):
        params = base.InsertParams(key=key_of(tokens), value=value, session_id=request.session_id)
        cache.insert(params)
        return
    cache.req_to_token_pool.req_to_token[0, : len(value)] = value
    request.kv = SimpleNamespace(
        req_pool_idx=0, swa_evict_floor=0, cache_inserted_len=0, cache_protected_len=protected
    )
    request.full_untruncated_fill_ids = request.origin_input_ids = tokens
    request.extra_key = request.cache_salt = request.lock = request.priority = None
    cache.checkpoint(request, up_to=len(tokens))
    cache.unlock(request.lock)


def share_found(policy: str, calls: list[int], *, old: bool = False) -> float:
    """The share of the tokens that were found, of those that had been there."""
    base = importlib.import_module("sglang.srt.mem_cache.base_prefix_cache")
    key_of = importlib.import_module("sglang.srt.mem_cache.radix_cache").RadixKey
    slots = Slots(ROOM * TOKENS)
    cache = make_old_cache(policy, slots) if old else make_cache(policy, "python", slots)
    found = 0
    for now, agent in enumerate(calls):
        later = calls[now + 1 :]
        soon = now + 1 + later.index(agent) if agent in later else 1e6
        said = {"now": now, "next": soon}
        request = SimpleNamespace(
            rid=f"r{now}", session_id=f"agent {agent}",
            sampling_params=SimpleNamespace(custom_params={"scalesim": said}), lora_id=None,
        )  # fmt: skip
        queued(SimpleNamespace(tree_cache=cache), request)
        tokens = array("q", [agent * 1000 + number for number in range(TOKENS)])
        match = cache.match_prefix(base.MatchPrefixParams(key=key_of(tokens)))
        hit, node = match.device_prefix_len, match.last_device_node
        found += hit
        if (short := TOKENS - hit - slots.available_size()) > 0:
            lock = cache.lock(node)
            cache.evict(base.EvictParams(num_tokens=short))
            cache.unlock(lock)
        torch = importlib.import_module("torch")
        value = torch.cat([cache.path_device_indices(node), slots.alloc(TOKENS - hit)])
        insert(cache, request, tokens, value, hit)
        released(None, cache, request, checkpointed=True)
    return found / ((len(calls) - AGENTS) * TOKENS)


def belady(calls: list[int]) -> float:
    """The same for the choice that looks ahead; whole agents, tokens from the end."""
    held: dict[int, int] = {}
    found = 0
    for now, agent in enumerate(calls):
        found += held.get(agent, 0)
        held[agent] = TOKENS
        later = calls[now + 1 :]
        while (over := sum(held.values()) - ROOM * TOKENS) > 0:
            last = max(
                (one for one in held if one != agent),
                key=lambda one: later.index(one) if one in later else 1 << 30,
            )
            held[last] -= min(over, held[last])
            if not held[last]:
                del held[last]
    return found / ((len(calls) - AGENTS) * TOKENS)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("order", ["cycle", "permutations", "w1"])
def test_next_use_finds_what_belady_finds(order: str, old: bool) -> None:
    rounds = 1 if order == "w1" else ROUNDS
    groups = groups_of(order, AGENTS, rounds, together=1, seed=3)
    calls = [agent for group in groups for agent, _, _ in group]
    best = belady(calls)
    assert share_found(POLICY, calls, old=old) >= 0.95 * best
    if order != "w1":  # where LRU does well too
        assert share_found("lru", calls, old=old) < 0.7 * best


def adapter_loads(policy: str) -> int:
    """Loads of six adapters in a cycle by SGLang's LRU of adapters, with slots for three."""
    module = importlib.import_module("sglang.srt.lora.eviction_policy")
    lru, held = module.get_eviction_policy("lru"), set[str]()
    cache, loads = make_cache(policy, "python", Slots(ROOM)), 0
    for now in range(48):
        adapter = f"adapter {now % 6}"
        params = SimpleNamespace(custom_params={"scalesim": {"now": now, "next": now + 6}})
        request = SimpleNamespace(
            rid=f"r{now}", session_id=adapter, lora_id=adapter, sampling_params=params
        )
        queued(SimpleNamespace(tree_cache=cache), request)
        lru.mark_used(adapter)
        if adapter not in held:
            loads += 1
            if len(held) == 3:
                gone = lru.select_victim({*held})
                held.remove(gone)
                lru.remove(gone)
            held.add(adapter)
        released(None, cache, request, checkpointed=True)
    return loads


def test_adapters_leave_by_next_use() -> None:
    assert adapter_loads("lru") == 48
    assert adapter_loads(POLICY) <= 31  # two of five are found, once all have been there
