"""The entry point ``sglang.srt.plugins``: makes ``--radix-eviction-policy next-use`` known.

SGLang runs ``register`` in each of its processes. What depends on SGLang's release is in this file.
"""

from __future__ import annotations

import logging
from typing import Any

from scalesim.sglang.strategy import NextUseStrategy, add_owner, split_owners

POLICY = "next-use"
SUPPORTED = ("0.5.23",)
"""SGLang's releases whose radix cache the policy is tested with."""
CORE_VARIABLE = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"
RUST_REFUSED = (
    f"the eviction policy {POLICY} needs SGLang's tree core in Python, and this is the one in "
    f"Rust, which knows no policy but its own; set {CORE_VARIABLE}=python"
)
_CORE = "sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore"
_CACHE = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"
_OLD_CACHE = "sglang.srt.mem_cache.radix_cache.RadixCache"  # what storage back-ends still build on
_ANY_CACHE = "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache"
_ADAPTERS = "sglang.srt.lora.eviction_policy.LRUEvictionPolicy"
_log = logging.getLogger(__name__)
_done = False
_heard: NextUseStrategy | None = None  # of the process's one scheduler


def register() -> None:
    """Make the policy known, and hook in what it needs to hear of. Once per process; what goes
    wrong is logged, and SGLang starts without the policy."""
    global _done
    if _done:
        return
    _done = True
    try:
        _register()
    except Exception:
        _log.exception("the ScaleSim plug-in is off: this SGLang is not one that it knows")


def _register() -> None:
    from sglang.srt.arg_groups.choices import add_radix_eviction_policy_choices
    from sglang.srt.mem_cache import utils
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    # SGLang takes new names by a public function, and has none for what they stand for
    utils._EVICTION_POLICY_FACTORIES[POLICY] = NextUseStrategy
    add_radix_eviction_policy_choices([POLICY])
    for target, hook, kind in (
        ("sglang.srt.managers.scheduler.Scheduler._add_request_to_queue", queued, HookType.BEFORE),
        (f"{_CACHE}.on_release", released, HookType.AFTER),
        (f"{_ANY_CACHE}.on_release", released, HookType.AFTER),
        (f"{_OLD_CACHE}._insert_cache", inserted, HookType.AFTER),
        (f"{_OLD_CACHE}._split_node", old_node_split, HookType.AFTER),
        (f"{_CORE}._add_new_node", node_added, HookType.AFTER),
        (f"{_CORE}._split_node", node_split, HookType.AFTER),
        (f"{_ADAPTERS}.select_victim", adapter_chosen, HookType.AFTER),
        (
            "sglang.srt.mem_cache.unified_cache.tree_core_registry.resolve_tree_core_backend",
            core_chosen,
            HookType.AFTER,
        ),
    ):
        HookRegistry.register(target, hook, kind)


def strategy_of(core: Any) -> NextUseStrategy | None:
    """The strategy of a tree core, or of a cache with one; ``None`` if it is another policy's."""
    found = getattr(getattr(core, "tree_core", core), "eviction_strategy", None)
    return found if isinstance(found, NextUseStrategy) else None


# -- hooks: before a call of SGLang's with its arguments, after one with its result first ---------


def queued(scheduler: Any, req: Any, *more: Any, **named: Any) -> None:
    """A request is about to be queued."""
    global _heard
    _heard = strategy_of(scheduler.tree_cache)
    if _heard is not None:
        _heard.begin(req)


def released(result: Any, cache: Any, req: Any, **named: Any) -> None:
    """A request has let go of its memory."""
    strategy = strategy_of(cache)
    if strategy is not None:
        strategy.end(req)


def node_added(node: Any, core: Any, *args: Any, **named: Any) -> None:
    """A request has made a node."""
    if strategy_of(core) is not None:
        add_owner(node, named.get("session_id"))


def node_split(result: Any, core: Any, key: Any, child: Any, split_len: int) -> None:
    """A node was split in two."""
    if strategy_of(core) is not None:
        split_owners(result[0], child)


def inserted(result: Any, cache: Any, req: Any, *args: Any, **named: Any) -> None:
    """A request's tokens are in an old cache, which is not told whose they are."""
    if strategy_of(cache) is not None:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams

        found = cache.match_prefix(MatchPrefixParams(key=result[0]))
        add_owner(found.last_device_node, req.session_id)


def old_node_split(upper: Any, cache: Any, key: Any, child: Any, split_len: int) -> None:
    """A node of an old cache was split in two."""
    if strategy_of(cache) is not None:
        split_owners(upper, child)


def adapter_chosen(victim: str | None, lru: Any, candidates: set[str | None]) -> str | None:
    """A LoRA adapter is to leave the device: the one that is used last. SGLang offers the base
    model, ``None``, only where nothing else can leave."""
    if _heard is None or victim is None:
        return victim
    return _heard.first_adapter([name for name in lru.access_order if name in candidates])


def core_chosen(name: str, asked: str, params: Any) -> None:
    """A tree core was chosen. Raises ``ValueError`` for the one in Rust, with what to set."""
    if name == "rust" and str(params.eviction_policy).lower() == POLICY:
        raise ValueError(RUST_REFUSED)
