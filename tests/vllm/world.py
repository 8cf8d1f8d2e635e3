"""vLLM around the plug-in's scheduler side, small enough to be looked through: a pool of blocks, a
manager of host memory, requests that run a step at a time, and workers that copy contents.

Memory is what it holds: a block or chunk has the key whose content was written last. A worker does
what the step's metadata says, in vLLM's order: what must end before the step, then the step's
writes and the loads, then the stores of the step before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scalesim.vllm import compat
from scalesim.vllm.host_tier import HostTier
from scalesim.vllm.scheduler_side import SchedulerSide
from scalesim.vllm.settings import PluginSettings
from tests.vllm.doubles import Block, Chunk, Context, ListQueue


@dataclass
class DeviceSpec:
    block_ids: Any
    group_sizes: list[int]
    block_indices: list[int]

    def __post_init__(self) -> None:
        self.block_ids = np.array(self.block_ids)


@dataclass
class Job:
    req_id: str
    src_spec: Any
    dst_spec: Any


def use_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put this file's classes in the place of vLLM's."""
    monkeypatch.setitem(vars(compat), "GPULoadStoreSpec", DeviceSpec)
    monkeypatch.setitem(vars(compat), "TransferJob", Job)
    monkeypatch.setitem(vars(compat), "ReqContext", Context)


@dataclass(eq=False)
class PoolBlock(Block):
    refs: int = 0

    def set_block_hash(self, key: Any, num_tokens: int) -> None:
        assert self.block_hash is None and num_tokens > 0
        self.block_hash = key


class Pool:
    """As vLLM's ``BlockPool``."""

    hash_block_size = 16

    def __init__(self, count: int) -> None:
        self.blocks = [PoolBlock(number) for number in range(count)]
        self.free_block_queue: Any = ListQueue(list(self.blocks))
        self.found: dict[Any, PoolBlock] = {}
        self.cached_block_hash_to_block = SimpleNamespace(
            _cache=self.found, get_one_block=self.found.get, insert=self.found.__setitem__
        )

    def get_new_blocks(self, count: int) -> list[PoolBlock]:
        blocks: list[PoolBlock] = self.free_block_queue.popleft_n(count)
        for block in blocks:
            assert not block.refs
            if self.found.get(block.block_hash) is block:
                del self.found[block.block_hash]
            block.block_hash, block.refs = None, 1
        return blocks

    def evict_blocks(self, block_ids: set[int]) -> None:
        for number in block_ids:
            block = self.blocks[number]
            assert not block.refs
            if self.found.get(block.block_hash) is block:
                del self.found[block.block_hash]
            block.block_hash = None

    def touch(self, blocks: list[PoolBlock]) -> None:
        for block in blocks:
            if not block.refs:
                self.free_block_queue.remove(block)
            block.refs += 1

    def free_blocks(self, blocks: Any) -> None:
        freed = []
        for block in blocks:
            block.refs -= 1
            if not block.refs:
                freed.append(block)
        self.free_block_queue.prepend_n([block for block in freed if block.block_hash is None])
        self.free_block_queue.append_n([block for block in freed if block.block_hash is not None])

    def reset(self) -> None:
        assert self.free_block_queue.num_free_blocks == len(self.blocks)
        self.found.clear()
        for block in self.blocks:
            block.block_hash = None


class HostManager:
    """As vLLM's ``CPUOffloadingManager``."""

    def __init__(self, tier: HostTier) -> None:
        self.tier = tier
        self.free = list(range(tier.cache_capacity))

    def prepare_store(self, keys: list[Any], context: Any) -> Any:
        keys = self.tier.admitted(list(keys), context)
        new = [key for key in keys if self.tier.get(key) is None]
        if new:
            self.tier.on_store_miss(new, context)
        if (short := len(new) - len(self.free)) > 0:
            evicted = self.tier.evict(short, set(keys))
            if evicted is None:
                return None
            self.free += [chunk.chunk_id for _, chunk in evicted]
        chunks = [Chunk(self.free.pop()) for _ in new]
        for key, chunk in zip(new, chunks, strict=True):
            self.tier.insert(key, chunk)
        spec = SimpleNamespace(block_ids=np.array([chunk.chunk_id for chunk in chunks]))
        return SimpleNamespace(keys_to_store=new, store_spec=spec)

    def complete_store(self, keys: list[Any], context: Any) -> None:
        for key in keys:
            self.tier.get(key).ref_cnt = 0
            self.tier.mark_evictable(key)

    def prepare_load(self, keys: list[Any], context: Any) -> Any:
        chunks = [self.tier.get(key) for key in keys]
        for key, chunk in zip(keys, chunks, strict=True):
            assert chunk.ref_cnt >= 0
            if not chunk.ref_cnt:
                self.tier.mark_non_evictable(key)
            chunk.ref_cnt += 1
        return SimpleNamespace(block_ids=np.array([chunk.chunk_id for chunk in chunks]))

    def complete_load(self, keys: list[Any], context: Any) -> None:
        for key in keys:
            chunk = self.tier.get(key)
            chunk.ref_cnt -= 1
            if not chunk.ref_cnt:
                self.tier.mark_evictable(key)

    def reset(self) -> None:
        self.tier.clear()
        self.free = list(range(self.tier.cache_capacity))


@dataclass(eq=False)
class Running:
    """A request with its blocks; ``waits`` for a load of its own before it computes."""

    request: Any
    blocks: list[PoolBlock]
    num_found: int
    waits: bool = False


@dataclass
class Meta:
    load_jobs: dict[int, Any] = field(default_factory=dict)
    store_jobs: dict[int, Any] = field(default_factory=dict)
    jobs_to_flush: set[int] = field(default_factory=set)


class World:
    """An engine with the plug-in; ``slow``: a copy that nobody waits for ends a step later. Each
    of the cache ``groups`` has a block for each part of a prompt."""

    def __init__(
        self,
        device: int,
        host: int,
        *,
        prefetch_agents: int = 0,
        learn: bool = False,
        slow: bool = False,
        groups: Sequence[int] = (0,),
    ) -> None:
        self.pool, self.tier = Pool(device), HostTier(host)
        self.manager = HostManager(self.tier)
        settings = PluginSettings(prefetch_agents, learn)
        self.side = SchedulerSide(self.manager, self.tier, settings, groups, 1)
        self.side.bind(self.pool)
        self.device: dict[int, Any] = {}  # what memory holds, by block and by chunk
        self.host: dict[int, Any] = {}
        self.slow, self.groups = slow, groups
        self.device_hits = self.host_hits = 0
        self._jobs: dict[int, tuple[Any, list[Any], bool]] = {}  # vLLM's own: job, keys, is load
        self._next = 0
        self._late: dict[int, tuple[Any, bool]] = {}  # copies that the workers have not done
        self._meta = Meta()
        self._writes: dict[int, Any] = {}

    # -- requests --------------------------------------------------------------------------------

    def arrive(self, name: str, agent: Any, prompt: list[bytes], **said: Any) -> Any:
        """A request, of which the plug-in hears."""
        params = {"scalesim": {"agent": agent, **said}} if agent is not None else None
        request = SimpleNamespace(
            request_id=name, block_hashes=prompt, kv_transfer_params=params, session_id=None,
            kv_hints=None, lora_request=None, num_prompt_tokens=16 * len(prompt) + 1,
        )  # fmt: skip
        self.side.begin(request)
        return request

    def admit(self, request: Any) -> Running | None:
        """Give ``request`` its blocks, and start what it loads; ``None`` if it must wait."""
        if self.side.waits_for_load(request):
            return None
        keys, count = compat.make_keys(request.block_hashes, self.groups), len(self.groups)
        held: list[PoolBlock] = []
        for key in keys:
            if key not in self.pool.found:
                break
            held.append(self.pool.found[key])
        del held[len(held) // count * count :]  # found is what all groups have
        loaded: list[Any] = []
        for key in keys[len(held) :]:
            chunk = self.tier.get(key)
            if chunk is None or chunk.ref_cnt < 0:
                break
            loaded.append(key)
        del loaded[len(loaded) // count * count :]
        self.side.matched(request, 16 * len(held) // count, 16 * len(loaded) // count)
        if len(keys) + 1 - len(held) > self.pool.free_block_queue.num_free_blocks - sum(
            not block.refs for block in held
        ):
            return None
        self.pool.touch(held)
        blocks = [*held, *self.pool.get_new_blocks(len(keys) + 1 - len(held))]
        for block, key in zip(held, keys, strict=False):
            assert self.device[block.block_id] == key, "a hit on what another has overwritten"
        self.device_hits, self.host_hits = (
            self.device_hits + len(held),
            self.host_hits + len(loaded),
        )
        running = Running(request, blocks, len(held) + len(loaded), waits=bool(loaded))
        if loaded:
            source = self.manager.prepare_load(loaded, None)
            ids = [block.block_id for block in blocks[len(held) : running.num_found]]
            self._job(
                Job(request.request_id, source, DeviceSpec(ids, [len(ids)], [0])), loaded, True
            )
        self.side.admitted(request)
        return running

    def compute(self, running: Running) -> None:
        """The step computes what was not found; full blocks are found from now on and stored."""
        keys = compat.make_keys(running.request.block_hashes, self.groups)
        for block, key in zip(running.blocks, keys, strict=False):
            if running.waits:  # its own load has just ended
                assert block.block_hash is not None or self.device.get(block.block_id) == key or (
                    block not in running.blocks[: running.num_found]
                )  # fmt: skip
        fresh = keys[running.num_found :]
        for block, key in zip(running.blocks[running.num_found :], fresh, strict=False):
            self._writes[block.block_id] = key
        for block, key in zip(running.blocks, keys, strict=False):
            if block.block_hash is None and key not in self.pool.found:
                block.set_block_hash(key, 16)
                self.pool.found[key] = block
        self._writes[running.blocks[-1].block_id] = "the rest"
        output = self.manager.prepare_store(fresh, Context(running.request.request_id))
        if output is not None and output.keys_to_store:
            by_key = dict(zip(keys, running.blocks, strict=False))
            ids = [by_key[key].block_id for key in output.keys_to_store]
            spec = DeviceSpec(ids, [len(ids)], [0])
            job = Job(running.request.request_id, spec, output.store_spec)
            self._job(job, output.keys_to_store, False)

    def finish(self, running: Running) -> None:
        self.side.end(running.request)
        self.pool.free_blocks(reversed(running.blocks))

    # -- steps -----------------------------------------------------------------------------------

    def _job(self, job: Job, keys: list[Any], is_load: bool) -> None:
        jobs = self._meta.load_jobs if is_load else self._meta.store_jobs
        jobs[self._next] = job
        self._jobs[self._next] = job, keys, is_load
        self._next += 1

    def step(self) -> None:
        """The workers do a step: ``admit`` and ``compute`` have said what."""
        meta, self._meta = self._meta, Meta()
        taken = set(self._writes) | {
            int(number) for job in meta.load_jobs.values() for number in job.dst_spec.block_ids
        }
        for job_id, (job, is_load) in self._late.items():  # as vLLM flushes its own stores
            if not is_load and taken & set(job.src_spec.block_ids.tolist()):
                meta.jobs_to_flush.add(job_id)
        self.side.after_schedule(meta)
        done: list[int] = []
        for job_id in list(self._late):
            if job_id in meta.jobs_to_flush or not self.slow:
                done.append(self._copy(job_id, *self._late.pop(job_id)))
        for job_id in [job_id for job_id in meta.store_jobs if job_id in meta.jobs_to_flush]:
            done.append(self._copy(job_id, meta.store_jobs.pop(job_id), False))
        self.device.update(self._writes)
        self._writes = {}
        if self.slow:
            done += [self._copy(job_id, *self._late.pop(job_id)) for job_id in list(self._late)]
        for job_id, job in meta.load_jobs.items():
            if self.slow:
                self._late[job_id] = job, True
            else:
                done.append(self._copy(job_id, job, True))
        self._late.update({job_id: (job, False) for job_id, job in meta.store_jobs.items()})
        ended = dict.fromkeys(done, 1)
        self.side.completed(ended)
        for job_id in ended:
            _, keys, is_load = self._jobs.pop(job_id)
            (self.manager.complete_load if is_load else self.manager.complete_store)(keys, None)

    def _copy(self, job_id: int, job: Any, is_load: bool) -> int:
        source = (self.host if is_load else self.device, job.src_spec.block_ids.tolist())
        target = (self.device if is_load else self.host, job.dst_spec.block_ids.tolist())
        for here, there in zip(source[1], target[1], strict=True):
            target[0][there] = source[0][here]
        return job_id

    @property
    def is_loading(self) -> bool:
        """Whether a load of a request is under way."""
        return any(is_load for _, _, is_load in self._jobs.values())

    def settle(self) -> None:
        """Steps until nothing is under way."""
        while self.side.has_work() or self._jobs:
            self.step()

    def check(self) -> None:
        """What the books say is what memory holds."""
        for key, block in self.pool.found.items():
            if block.block_id not in self._writes:
                assert self.device[block.block_id] == key, f"block {block.block_id}"
        for key, chunk in self.tier.chunks.items():
            if chunk.ref_cnt >= 0:
                assert self.host[chunk.chunk_id] == key, f"chunk {chunk.chunk_id}"
        chunks = [chunk.chunk_id for chunk in self.tier.chunks.values()]
        assert sorted([*chunks, *self.manager.free]) == list(range(self.tier.cache_capacity))
