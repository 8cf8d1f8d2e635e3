"""What differs between devices: how large pools may be, what computes, what copies.

``engine.build`` picks one by where a model's weights lie and asks it for a runner and a link that
share two pools. Nothing else of an engine knows what it runs on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from scalesim_kernels import KernelSet

from scalesim.batch import Runner
from scalesim.config import EngineConfig
from scalesim.device.streams import Device, Fences
from scalesim.errors import ConfigError
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.links.link import Timeline
from scalesim.memory.links.source_link import SourceLink, num_bounce_pages
from scalesim.memory.links.thread_link import ThreadLink
from scalesim.memory.pools.storage import allocate_pages, writer
from scalesim.model.adapters.layout import MAX_RANK, LayoutTable
from scalesim.model.checkpoint.loader import LoadedModel
from scalesim.model.runner.cpu_runner import ModelRunner
from scalesim.model.runner.settings import RunnerSettings

_RESIDENT_SHARE = 0.7  # of a CPU's memory that is available
_GPU_SHARE = 0.95  # of a GPU's memory that is left beside weights and workspace
_WORKSPACE_BYTES = 1 << 30  # the driver's, the libraries' and the graphs'
_WARM_UP_TOKENS = (2, 16, 17, 100)
MAX_RESIDENT_PAGES = 1 << 18


@dataclass(frozen=True, slots=True)
class Capacity:
    """Sizes of an engine's parts. ``device_pages`` counts the null page. Behind the host pool's own
    pages lie those that adapters pass through when they are read (``bounce``)."""

    geometry: PageGeometry
    device_pages: int
    host_pages: int
    num_rows: int
    max_blocks_per_row: int

    @property
    def bounce(self) -> range:
        return range(self.host_pages, self.all_host_pages)

    @property
    def all_host_pages(self) -> int:
        return self.host_pages + num_bounce_pages(self.geometry.page_bytes)


class Backend(Protocol):
    """``name`` picks the kernel set. ``default_*_bytes`` are what ``"auto"`` means;
    ``resident_bytes`` is what a device pool without a limit may take."""

    name: str

    def default_device_bytes(self) -> int: ...

    def resident_bytes(self) -> int: ...

    def default_host_bytes(self) -> int: ...

    def check(self, device_bytes: int, host_bytes: int) -> None:
        """Raise ``ConfigError`` where there is no such memory."""

    def build(
        self,
        loaded: LoadedModel,
        kernels: KernelSet,
        config: EngineConfig,
        plan: Capacity,
        layouts: LayoutTable,
    ) -> tuple[Runner, SourceLink]: ...


class CpuBackend:
    """Both pools in the system's memory, a thread that copies."""

    name = "cpu"

    def default_device_bytes(self) -> int:
        return 10**9

    def resident_bytes(self) -> int:
        return int(available_bytes() * _RESIDENT_SHARE)

    def default_host_bytes(self) -> int:
        return 4 * 10**9

    def check(self, device_bytes: int, host_bytes: int) -> None:
        """Memory is given when it is first touched: what is too much shows then."""

    def build(
        self,
        loaded: LoadedModel,
        kernels: KernelSet,
        config: EngineConfig,
        plan: Capacity,
        layouts: LayoutTable,
    ) -> tuple[Runner, SourceLink]:
        page_bytes, timeline = plan.geometry.page_bytes, Timeline()
        device = allocate_pages(plan.device_pages, page_bytes, "device_memory")
        host = allocate_pages(plan.all_host_pages, page_bytes, "host_memory")
        model, settings = loaded.model.packed(kernels), runner_settings(config, plan)
        runner = ModelRunner(model, kernels, device, plan.geometry, settings, timeline, layouts)
        return runner, SourceLink(ThreadLink(device, host, timeline), writer(host), plan.bounce)


class CudaBackend:
    """The device pool on a GPU, the host pool pinned, copies by DMA. The weights are there
    already."""

    name = "cuda"

    def __init__(self, device: Device, loaded: LoadedModel, config: EngineConfig) -> None:
        from scalesim.model.runner.cuda_runner import check_dtype

        check_dtype(loaded.model.dtype)
        self._device = device
        self._workspace = workspace_bytes(loaded, config)
        self._utilization = config.gpu_memory_utilization

    def default_device_bytes(self) -> int:
        left = self._left_bytes()
        if self._utilization is None:
            return int(_GPU_SHARE * left)
        _, total = self._device.free_bytes()
        return min(left, left - int((1.0 - self._utilization) * total))

    def resident_bytes(self) -> int:
        return self.default_device_bytes()

    def _left_bytes(self) -> int:
        free, total = self._device.free_bytes()
        if free <= self._workspace:
            raise ConfigError(
                f"{self._device.place} has {free} of {total} bytes free beside the weights; a step "
                f"needs {self._workspace}: lower max_num_batched_tokens or max_num_seqs, or run a "
                "smaller model"
            )
        return free - self._workspace

    def default_host_bytes(self) -> int:
        from scalesim.memory.pools.pinned import default_host_bytes

        return default_host_bytes()

    def check(self, device_bytes: int, host_bytes: int) -> None:
        from scalesim.memory.pools.pinned import available_host_bytes, check_host_bytes

        max_bytes = self._left_bytes()
        if device_bytes > max_bytes:
            raise ConfigError(
                f"device_memory is {device_bytes} bytes; {self._device.place} has {max_bytes} left "
                f"beside the weights and {self._workspace} of workspace: lower device_memory"
            )
        check_host_bytes(host_bytes, available_host_bytes())

    def build(
        self,
        loaded: LoadedModel,
        kernels: KernelSet,
        config: EngineConfig,
        plan: Capacity,
        layouts: LayoutTable,
    ) -> tuple[Runner, SourceLink]:
        from scalesim.memory.links.cuda_link import CudaLink
        from scalesim.memory.pools.pinned import PinnedPages
        from scalesim.memory.pools.storage import allocate_device_pages
        from scalesim.model.runner.cuda_runner import CudaRunner

        geometry, fences = plan.geometry, Fences()
        pages = allocate_device_pages(plan.device_pages, geometry.page_bytes, self._device.place)
        pool = pages.view(loaded.model.dtype).view(len(pages), *geometry.shape)
        model, settings = loaded.model.packed(kernels), runner_settings(config, plan)
        runner = CudaRunner(model, kernels, pool, self._device, fences, settings, layouts)
        runner.warm_up((*_WARM_UP_TOKENS, config.scheduler.max_num_batched_tokens))
        host = PinnedPages(plan.all_host_pages, geometry.page_bytes, self._device.registrar())
        link = CudaLink(self._device, pages, host, fences)
        return runner, SourceLink(link, writer(host.pages.numpy()), plan.bounce)


def runner_settings(config: EngineConfig, plan: Capacity) -> RunnerSettings:
    return RunnerSettings(
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_tokens=config.scheduler.max_num_batched_tokens,
        max_num_rows=plan.num_rows,
        max_blocks_per_row=plan.max_blocks_per_row,
        reproducible=config.reproducible,
        digests=config.digests,
        graphs=config.graphs,
    )


def workspace_bytes(loaded: LoadedModel, config: EngineConfig) -> int:
    """What a step may need beside weights and pool: its activations, logits and their sorting, and
    what libraries and graphs keep. An upper estimate, not a measured one."""
    shape, scheduling = loaded.config, config.scheduler
    wide = 8 * shape.hidden_size + 3 * shape.intermediate_size
    activations = scheduling.max_num_batched_tokens * wide * loaded.model.dtype.itemsize
    logits = 6 * 4 * scheduling.max_num_seqs * shape.vocab_size
    # what adapters' A made of q, k and v, in fp32
    shrunk = 3 * 4 * MAX_RANK * (scheduling.max_num_batched_tokens + scheduling.max_num_seqs)
    return activations + logits + shrunk + _WORKSPACE_BYTES


def available_bytes() -> int:
    """Memory that can be had without swapping. What the system's file cache holds counts: it gives
    that back, and how much it holds depends on what other programs read last. All there is where
    the system does not say."""
    from scalesim.memory.pools.pinned import available_host_bytes

    try:
        return available_host_bytes()
    except (OSError, KeyError, ValueError):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
