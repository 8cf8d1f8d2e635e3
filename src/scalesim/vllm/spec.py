"""vLLM's offloading to host memory with the host tier by next use: the spec, the manager, and a
worker that copies memory where the platform is a CPU, so that all of it can be tested there."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

from scalesim.vllm.compat import (
    CPUOffloadingManager,
    CPUOffloadingSpec,
    OffloadingWorker,
    TransferResult,
    platform_copies,
    policy_of,
)
from scalesim.vllm.host_tier import HostTier

POLICY = "NextUseCachePolicy"
POLICY_MODULE = "scalesim.vllm.policy"


class NextUseOffloadingManager(CPUOffloadingManager):
    """vLLM's manager of host memory, which offers the host tier only what is worth its room.

    vLLM counts a store that its policy refuses as a failure and logs it; here it is left out."""

    @property
    def tier(self) -> HostTier:
        """The policy."""
        tier: HostTier = policy_of(self)
        return tier

    def prepare_store(self, keys: Collection[Any], req_context: Any) -> Any:
        return super().prepare_store(self.tier.admitted(list(keys), req_context), req_context)


class ScaleSimOffloadingSpec(CPUOffloadingSpec):
    """``CPUOffloadingSpec`` with ``eviction_policy`` by next use unless another is named."""

    _manager: Any  # vLLM's class makes both when they are asked for
    _worker: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if "eviction_policy" not in self.extra_config:
            self.eviction_policy, self.cache_policy_module_path = POLICY, POLICY_MODULE

    def get_manager(self) -> Any:
        if self._manager is None and self.eviction_policy == POLICY:
            self._manager = NextUseOffloadingManager(
                num_chunks=self.num_chunks,
                cache_policy=self.eviction_policy,
                cache_policy_module_path=self.cache_policy_module_path,
                enable_events=self.kv_events_config.enable_kv_cache_events,
                store_threshold=int(self.extra_config.get("store_threshold", 0)),
            )
        return super().get_manager()

    def get_worker(self, kv_caches: Any) -> Any:
        if platform_copies():
            return super().get_worker(kv_caches)
        if self._worker is None:
            self._worker = CopyWorker(kv_caches, self.blocks_per_chunk, self.num_chunks)
        return self._worker


class CopyWorker(OffloadingWorker):
    """Copies between device and host memory where both are a CPU's: at once, in order."""

    def __init__(self, kv_caches: Any, blocks_per_chunk: int, num_chunks: int) -> None:
        self._blocks_per_chunk = blocks_per_chunk
        self._device = [each.tensor for each in kv_caches.tensors]  # [num_blocks, bytes of a page]
        self._host = [
            tensor.new_zeros((num_chunks * blocks_per_chunk, tensor.shape[1]))
            for tensor in self._device
        ]
        self._tensors_of = [
            sorted({ref.tensor_idx for ref in refs}) for refs in kv_caches.group_data_refs
        ]
        self._finished: list[Any] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self._copy(job_id, src_spec, dst_spec.block_ids.tolist(), store=True)
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self._copy(job_id, dst_spec, src_spec.block_ids.tolist(), store=False)
        return True

    def _copy(self, job_id: int, device: Any, chunks: Sequence[int], *, store: bool) -> None:
        begin, num_bytes, block, chunk = time.perf_counter(), 0, 0, 0
        blocks, per_chunk = device.block_ids.tolist(), self._blocks_per_chunk
        for tensors, size, first in zip(
            self._tensors_of, device.group_sizes, device.block_indices, strict=True
        ):
            skip = first % per_chunk  # the first block may stand within its chunk
            num_chunks = -(-(skip + size) // per_chunk) if size else 0
            rows = [
                each * per_chunk + within
                for each in chunks[chunk : chunk + num_chunks]
                for within in range(per_chunk)
            ][skip : skip + size]
            ids = blocks[block : block + size]
            block, chunk = block + size, chunk + num_chunks
            for index in tensors if size else ():
                if store:
                    self._host[index][rows] = self._device[index][ids]
                else:
                    self._device[index][ids] = self._host[index][rows]
                num_bytes += size * self._device[index].shape[1]
        took = time.perf_counter() - begin
        self._finished.append(TransferResult(job_id, True, num_bytes, took))

    def get_finished(self) -> list[Any]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Nothing is ever under way."""
