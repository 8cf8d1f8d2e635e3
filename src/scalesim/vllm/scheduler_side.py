"""The scheduler's side of the plug-in: hints, the order of the device's blocks, what is saved when
it leaves the device, and what is loaded before a request asks.

The tiers are exclusive where room is short: a block that leaves the device is copied to the host
before it is overwritten, if something there is used later.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from scalesim.core import AgentId
from scalesim.distance.learned.learned import Learned
from scalesim.order.board import CallBoard
from scalesim.order.owners import Key
from scalesim.order.request_hints import HintReader
from scalesim.vllm import compat
from scalesim.vllm.adapters import AgentAdapters
from scalesim.vllm.compat import by_group, cache_block, keys_in, make_keys
from scalesim.vllm.device_tier import NextUseQueue
from scalesim.vllm.host_tier import HostTier
from scalesim.vllm.own_copies import OWN_REQUEST, OwnCopies, OwnCopy
from scalesim.vllm.settings import PluginSettings

BLOCKS_PER_AHEAD = 32
"""Of so many blocks of the device, one is emptied ahead: room that holds nothing is little."""
MAX_AHEAD = 8


@dataclass(slots=True)
class PluginCounts:
    """What the plug-in has done. Tokens of prompts are counted once a request, when it is first
    scheduled; chunks are blocks of the device's size."""

    requests: int = 0
    prompt_tokens: int = 0
    device_hit_tokens: int = 0
    host_hit_tokens: int = 0
    evicted_blocks: int = 0
    saved_blocks: int = 0
    prefetched_blocks: int = 0


class OpenRequest:
    """A request that has come in: the ``keys`` of its full blocks so far, block after block with
    those of all cache groups; the tokens ``found`` on device and host, until they are ``counted``;
    and how many of its first keys were ``held`` on the device whenever it asked. ``adapter`` is its
    LoRA adapter, or ``None``."""

    __slots__ = ("adapter", "counted", "found", "held", "keys")

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.keys: list[bytes] = []
        self.found: tuple[int, int] | None = None
        self.counted = False
        self.held: int | None = None


class SchedulerSide:
    """One per engine, on the scheduler's thread. ``tier`` is the host tier, or ``None`` where
    another policy than next use was chosen for it: then only the device's order is this side's."""

    def __init__(
        self,
        manager: Any,
        tier: HostTier | None,
        settings: PluginSettings,
        groups: Sequence[int],
        num_workers: int,
    ) -> None:
        self.manager, self.tier, self.settings = manager, tier, settings
        self.board = CallBoard()
        self.counts = PluginCounts()
        self._hints = HintReader()
        self._groups = groups
        self._copies = OwnCopies(groups, num_workers)
        self._pool: Any = None
        self._on_device: Callable[[], Container[Key]] = tuple
        self._queue: NextUseQueue | None = None
        self._evicted: dict[Any, Any] = {}  # given out in this step: keys, and their blocks
        self._loading: set[Any] = set()  # keys of loads under way
        self._requests: dict[str, OpenRequest] = {}
        self.adapters = AgentAdapters(self.board)
        self._prefetches = tier is not None and settings.prefetch_agents > 0
        self._may_prefetch = False  # something changed since loads were planned last
        self._lacks_room = False  # these left something out
        if settings.learn:
            self.board.listen(Learned())

    def bind(self, pool: Any) -> None:
        """Order the free blocks of ``pool`` from now on."""
        self._pool, self._on_device = pool, partial(keys_in, pool)
        self.board.keys.watch(self._on_device)
        if self.tier is not None:
            self.tier.join(self.board, self._on_device)
        queue = pool.free_block_queue
        ahead = min(MAX_AHEAD, queue.num_free_blocks // BLOCKS_PER_AHEAD)
        self._queue = pool.free_block_queue = NextUseQueue(
            queue, self.board.keys, self._note_evictions, pool.evict_blocks, ahead
        )

    def _note_evictions(self, blocks: Mapping[Key, Any]) -> None:
        for key, block in blocks.items():
            self._evicted[key] = block if block.block_hash == key else None  # vLLM emptied it

    # -- requests --------------------------------------------------------------------------------

    def begin(self, request: Any) -> None:
        """A request has come in."""
        hint = self._hints.hint(request.kv_transfer_params, request.session_id)
        expect = self._hints.actions(request.kv_hints, self.board.clock.now)
        if self.settings.learn:
            self.board.tick()
        hint.tell(self.board, request.request_id)
        if expect:
            self.board.expect(expect)
        if hint.agent is not None and (request.lora_request is not None or self.adapters):
            self.adapters.note(hint.agent, request.lora_request)
        self._use(request)
        self._may_prefetch = self._prefetches

    def end(self, request: Any) -> None:
        """A request is over; its blocks are not yet free."""
        self._use(request)
        self.board.end(request.request_id)
        known = self._requests.pop(request.request_id)
        if self.tier is not None and known.held is not None:
            self.tier.device_changed(known.keys[known.held :])
        self._may_prefetch = self._may_prefetch or self._lacks_room

    def _known(self, request: Any) -> OpenRequest:
        known = self._requests.get(request.request_id)
        if known is None:
            known = self._requests[request.request_id] = OpenRequest(request.lora_request)
        return known

    def _use(self, request: Any) -> None:
        """The request uses the blocks of its tokens so far, those of all cache groups."""
        keys, hashes = self._known(request).keys, request.block_hashes
        count = len(self._groups)
        named = len(keys) // count
        if named and (named > len(hashes) or not keys[-1].startswith(hashes[named - 1])):
            keys.clear()  # vLLM has taken tokens back: a session that goes on from elsewhere
            named = 0
        if named < len(hashes):
            news = make_keys(hashes[named:], self._groups)
            depths: Sequence[int] = range(named, len(hashes))
            if count > 1:
                depths = [depth for depth in depths for _ in self._groups]
            keys += news
            self.board.used(request.request_id, news, depths)

    def waits_for_load(self, request: Any) -> bool:
        """Whether a load under way brings something that the request needs: what is asked for
        again would be loaded twice."""
        if not self._loading:
            return False
        return any(key in self._loading for key in self._known(request).keys)

    def matched(self, request: Any, on_device: int, on_host: int | None) -> None:
        """So many tokens of the request were found, behind each other."""
        if on_host is None:
            return
        known = self._known(request)
        held = on_device // self._pool.hash_block_size * len(self._groups)
        known.held = held if known.held is None else min(held, known.held)
        known.found = on_device, on_host

    def admitted(self, request: Any) -> None:
        """The request has its blocks."""
        known = self._known(request)
        if known.counted or known.found is None:  # a preempted one comes again
            return
        known.counted = True
        self.counts.requests += 1
        self.counts.prompt_tokens += request.num_prompt_tokens
        self.counts.device_hit_tokens += known.found[0]
        self.counts.host_hit_tokens += known.found[1]

    # -- what is told from outside ---------------------------------------------------------------

    def expect(
        self,
        times: Mapping[AgentId, float],
        *,
        absolute: bool,
        confidence: float | Mapping[AgentId, float] = 1.0,
    ) -> None:
        """Agents call next at these times, or in so many ticks."""
        self.board.expect(times, confidence, absolute=absolute)
        self._may_prefetch = self._prefetches

    def tick(self, n: float, to: float | None) -> None:
        """Move the clock."""
        self.board.tick(n, to=to)
        self._may_prefetch = self._prefetches

    def forget(self, agents: Sequence[AgentId]) -> int:
        """These agents will not call again. Returns how many of them there were."""
        self.adapters.forget(agents)
        return self.board.forget(agents)

    def arrange_adapters(self, core: Any) -> None:
        """Put vLLM's LoRA adapters into the order of next use, with ``core``, its engine core."""
        if self.adapters:
            running = [each.adapter for each in self._requests.values() if each.adapter is not None]
            self.adapters.arrange(core, running, self.settings.prefetch_adapters)

    def stats(self) -> dict[str, float]:
        """The counts, the clock, and how much the board knows."""
        board = self.board
        known = {"now": board.clock.now, "agents": board.num_agents, "keys": len(board.keys)}
        tier = {} if self.tier is None else self.tier.stats()
        own = {"copies": len(self._copies), "prefetched_adapters": self.adapters.num_loaded_ahead}
        own["malformed_hints"] = self._hints.num_malformed
        return {**tier, **known, **own, **asdict(self.counts)}

    # -- a step ----------------------------------------------------------------------------------

    def after_schedule(self, meta: Any) -> None:
        """Add this side's jobs to ``meta``, which the workers get: the step's blocks are chosen,
        and nothing is overwritten yet."""
        if meta.store_jobs:
            self._copies.note_stores(meta.store_jobs)
        if self._may_prefetch:
            self._prefetch(meta)
        if self._evicted:
            self._save(meta)
        if self._copies.to_flush:
            self._copies.flush_into(meta)

    def has_work(self) -> bool:
        """Whether the engine must go on stepping although nothing runs."""
        return self._may_prefetch or self._copies.has_work()

    def completed(self, jobs: dict[int, int]) -> None:
        """Take out of ``jobs`` (how many workers have ended a copy) what is this side's."""
        for copy in self._copies.completed(jobs):
            if copy.is_store:
                self.manager.complete_store(copy.keys, copy.context)
            else:
                self._loaded(copy)

    def reset(self) -> None:
        """The caches are emptied: copies under way bring nothing any more."""
        self._copies.reset()
        self._loading.clear()
        self._evicted = dict.fromkeys(self._evicted)  # nothing is saved of what is given up

    # -- saves -----------------------------------------------------------------------------------

    def _save(self, meta: Any) -> None:
        """Copy to the host what the step takes from the device, as far as the host has room for it
        or keeps something that is used later."""
        evicted, self._evicted = self._evicted, {}
        self.counts.evicted_blocks += len(evicted)
        tier, on_device = self.tier, self._on_device()
        lost = {key: block for key, block in evicted.items() if key not in on_device}
        if tier is not None:
            there = [key for key in lost if key in tier.chunks]
            if there:
                tier.device_changed(there)
                for key in there:
                    del lost[key]
            keys = [key for key, block in lost.items() if block is not None]
            for part in by_group(keys[::-1], self._groups):
                self._offer(tier, meta, part, lost)
        self.board.keys.left(lost)

    def _offer(self, tier: HostTier, meta: Any, keys: list[Any], blocks: dict[Any, Any]) -> None:
        """Save of ``keys``, the soonest first, what is worth its room on the host."""
        keys = tier.make_room(keys)
        if not keys:
            return
        context = compat.ReqContext(req_id=OWN_REQUEST)
        output = self.manager.prepare_store(keys, context)
        tier.put_back()
        if output is None:
            return
        keys = list(output.keys_to_store)
        host = output.store_spec
        self._copies.save(meta, context, keys, [blocks[key] for key in keys], host)
        self.counts.saved_blocks += len(keys)

    # -- loads -----------------------------------------------------------------------------------

    def _prefetch(self, meta: Any) -> None:
        """Load what the agents that call next lack on the device, the soonest first, as far as that
        displaces nothing that is used sooner."""
        self._may_prefetch = self._lacks_room = False
        assert self.tier is not None and self._queue is not None
        for owner in self.board.soonest(self.settings.prefetch_agents):
            keys = self._missing(owner.expected)
            if not keys:
                continue
            # a block is taken while it is loaded: those that run must find some meanwhile
            limit = min(len(keys), self._queue.num_free_blocks // 2)
            room = self._queue.num_leaving_before(keys[0], limit)
            for part in by_group(keys[:room], self._groups):
                self._load(meta, part)
            if room < len(keys):
                self._lacks_room = True
                return

    def _missing(self, path: Sequence[Any]) -> list[Any]:
        """The first keys of ``path`` that the host has and the device has not; nothing if a key
        before them is nowhere, or on its way."""
        assert self.tier is not None
        found: list[Any] = []
        on_device, find = self._on_device(), self.tier.chunks.get
        for key in path:
            if key in on_device:
                if found:
                    break
                continue
            chunk = find(key)
            if chunk is None or chunk.ref_cnt < 0 or key in self._loading:
                break
            found.append(key)
        return found

    def _load(self, meta: Any, keys: list[Any]) -> None:
        if not keys:
            return
        blocks = self._pool.get_new_blocks(len(keys))
        context = compat.ReqContext(req_id=OWN_REQUEST)
        host = self.manager.prepare_load(keys, context)
        self._copies.load(meta, context, keys, blocks, host)
        self._loading.update(keys)
        self.counts.prefetched_blocks += len(keys)

    def _loaded(self, copy: OwnCopy) -> None:
        """A load has ended: its blocks are free, and found by what they hold."""
        if not copy.is_stale:
            self._loading.difference_update(copy.keys)
            for key, block in zip(copy.keys, copy.blocks, strict=True):
                num_tokens = (self.board.keys.owned(key).depth + 1) * self._pool.hash_block_size
                cache_block(self._pool, block, key, num_tokens)
            self.manager.complete_load(copy.keys, copy.context)
        self._pool.free_blocks(reversed(copy.blocks))
        self._may_prefetch = self._may_prefetch or self._lacks_room
