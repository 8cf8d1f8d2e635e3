"""The plug-in's own copies between device and host, beside those of vLLM's requests.

They travel to vLLM's workers as its transfer jobs do, by numbers far above vLLM's, and never reach
vLLM's own bookkeeping of jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scalesim.vllm import compat
from scalesim.vllm.compat import group_of

FIRST_JOB = 1 << 40  # vLLM counts its own from 0
OWN_REQUEST = "scalesim:"  # begins the name that such a job has instead of a request's


@dataclass(slots=True)
class OwnCopy:
    """A copy: what the manager of the host tier knows it by, its keys, and the device's blocks.
    ``pending`` counts the workers that have not reported; ``is_stale``: the caches were emptied
    meanwhile."""

    context: Any
    keys: list[Any]
    blocks: list[Any]
    is_store: bool
    pending: int
    is_stale: bool = False


class OwnCopies:
    """Copies under way, and which copies must end before the next step: those that read a block
    which that step, or a load, overwrites."""

    def __init__(self, groups: Sequence[int], num_workers: int) -> None:
        self._groups, self._num_workers = groups, num_workers
        self._copies: dict[int, OwnCopy] = {}
        self._next_job = FIRST_JOB
        self._readers: dict[int, set[int]] = {}  # by device block: vLLM's stores that read it
        self._stores: dict[int, list[int]] = {}  # vLLM's stores under way, and their blocks
        self.to_flush: set[int] = set()  # jobs, before the next step

    def __len__(self) -> int:
        return len(self._copies)

    def has_work(self) -> bool:
        """Whether something is under way, or must be told to the workers."""
        return bool(self._copies or self.to_flush)

    def note_stores(self, jobs: dict[int, Any]) -> None:
        """vLLM's stores of this step."""
        for job_id, job in jobs.items():
            blocks = self._stores[job_id] = job.src_spec.block_ids.tolist()
            for block_id in blocks:
                self._readers.setdefault(block_id, set()).add(job_id)

    def save(self, meta: Any, context: Any, keys: list[Any], blocks: list[Any], host: Any) -> None:
        """Copy ``blocks``, which this step overwrites, to ``host`` before."""
        copy = OwnCopy(context, keys, blocks, True, self._num_workers)
        job_id = self._number(copy)
        device = self._device_spec(keys, blocks)
        meta.store_jobs[job_id] = compat.TransferJob(OWN_REQUEST + str(job_id), device, host)
        self.to_flush.add(job_id)

    def load(self, meta: Any, context: Any, keys: list[Any], blocks: list[Any], host: Any) -> None:
        """Copy from ``host`` into ``blocks``, once nothing reads them any more."""
        for block in blocks:
            self.to_flush.update(self._readers.get(block.block_id, ()))
        job_id = self._number(OwnCopy(context, keys, blocks, False, self._num_workers))
        device = self._device_spec(keys, blocks)
        meta.load_jobs[job_id] = compat.TransferJob(OWN_REQUEST + str(job_id), host, device)

    def flush_into(self, meta: Any) -> None:
        """Tell the workers what must end before this step."""
        meta.jobs_to_flush.update(self.to_flush)
        self.to_flush.clear()

    def completed(self, jobs: dict[int, int]) -> list[OwnCopy]:
        """Take out of ``jobs`` (how many workers have ended a copy) what is not vLLM's, and return
        the copies that all workers have ended."""
        ended = []
        for job_id in [job_id for job_id in jobs if job_id >= FIRST_JOB]:
            count, copy = jobs.pop(job_id), self._copies.get(job_id)
            if copy is not None:
                copy.pending -= count
                if not copy.pending:
                    ended.append(self._copies.pop(job_id))
        for job_id in jobs:
            for block_id in self._stores.pop(job_id, ()):
                readers = self._readers[block_id]
                readers.discard(job_id)
                if not readers:
                    del self._readers[block_id]
        return ended

    def reset(self) -> None:
        """The caches are emptied: what is under way brings nothing any more. Loads stay until they
        have ended, since their blocks are taken."""
        self.to_flush.update(self._copies)
        self._copies = {job: copy for job, copy in self._copies.items() if not copy.is_store}
        for copy in self._copies.values():
            copy.is_stale = True

    def _number(self, copy: OwnCopy) -> int:
        job_id, self._next_job = self._next_job, self._next_job + 1
        self._copies[job_id] = copy
        return job_id

    def _device_spec(self, keys: list[Any], blocks: list[Any]) -> Any:
        """``blocks`` of one cache group, as vLLM's workers read it: where a chunk is one block, the
        place in the prompt does not matter."""
        sizes = [len(keys) if group == group_of(keys[0]) else 0 for group in self._groups]
        ids = [block.block_id for block in blocks]
        return compat.GPULoadStoreSpec(ids, group_sizes=sizes, block_indices=[0] * len(sizes))
