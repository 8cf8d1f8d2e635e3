"""Backends: the sizes of pools, the runner and the link of a CPU or a GPU.

``engine.build`` chooses the backend by the device of a model's weights, and asks it for a runner
and a link that share two pools. No other part of an engine depends on the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from scalesim_kernels import KernelSet, select

from scalesim.batch import Runner
from scalesim.config import EngineConfig
from scalesim.device.streams import Device, Fences
from scalesim.engine.join_models import AddRunner
from scalesim.errors import ConfigError, ModelError
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.links.link import Timeline
from scalesim.memory.links.source_link import SourceLink, num_bounce_pages
from scalesim.memory.links.thread_link import ThreadLink
from scalesim.memory.pools.page_access import ArrayPages, PageAccess, TensorPages
from scalesim.memory.pools.storage import allocate_pages, writer
from scalesim.model.adapters.layout import MAX_RANK, LayoutTable
from scalesim.model.checkpoint.config import ModelShape
from scalesim.model.checkpoint.loader import LoadedModel
from scalesim.model.layers.decoder import Decoder
from scalesim.model.paged_weights import PagedModel, WeightLayout
from scalesim.model.runner.cpu_runner import ModelRunner
from scalesim.model.runner.pool_view import pool_view
from scalesim.model.runner.settings import RunnerSettings
from scalesim.model.runner.several_models import ModelRunners

_RESIDENT_SHARE = 0.7  # of a CPU's memory that is available
_GPU_SHARE = 0.95  # of a GPU's memory that is left beside weights and workspace
_WORKSPACE_BYTES = 1 << 30  # the driver's, the libraries' and the graphs'
_WARM_UP_TOKENS = (2, 16, 17, 100)
MAX_RESIDENT_PAGES = 1 << 18


@dataclass(frozen=True, slots=True)
class Capacity:
    """Sizes of an engine's parts, and what else its runner is made with. ``device_pages`` counts
    the null page. Behind the host pool's own pages lie those that adapters pass through when they
    are read (``bounce``)."""

    geometry: PageGeometry
    device_pages: int
    host_pages: int
    settings: RunnerSettings
    layouts: LayoutTable

    @property
    def bounce(self) -> range:
        return range(self.host_pages, self.all_host_pages)

    @property
    def all_host_pages(self) -> int:
        return self.host_pages + num_bounce_pages(self.geometry.page_bytes)


class Built(NamedTuple):
    """What a backend builds. ``add_runner`` makes a further model known to the runner; ``None``
    where there is one model."""

    runner: Runner
    link: SourceLink
    pages: PageAccess
    add_runner: AddRunner | None = None


class Backend(Protocol):
    """A place to run, and its two pools. ``name`` chooses the kernel set. ``default_*_bytes`` are
    the sizes that ``"auto"`` means; ``resident_bytes`` is the most that a device pool without a
    limit takes."""

    name: str

    def default_device_bytes(self) -> int: ...

    def resident_bytes(self) -> int: ...

    def default_host_bytes(self) -> int: ...

    def check(self, device_bytes: int, host_bytes: int) -> None:
        """Raise ``ConfigError`` if there is not so much memory."""

    def build(self, model: Decoder, kernels: KernelSet, plan: Capacity) -> Built:
        """The runner, the link between its pools, and access to their pages."""
        ...


class CpuBackend:
    """Runs on the CPU: both pools are in the system's memory, and a thread copies, at most
    ``link_bandwidth`` bytes a second each way."""

    name = "cpu"

    def __init__(self, link_bandwidth: float | None = None) -> None:
        self._link_bandwidth = link_bandwidth

    def default_device_bytes(self) -> int:
        return 10**9

    def resident_bytes(self) -> int:
        return int(available_bytes() * _RESIDENT_SHARE)

    def default_host_bytes(self) -> int:
        return 4 * 10**9

    def check(self, device_bytes: int, host_bytes: int) -> None:
        """Accept any size: the system provides memory when it is first touched."""

    def build(self, model: Decoder, kernels: KernelSet, plan: Capacity) -> Built:
        geometry, timeline = plan.geometry, Timeline()
        device = allocate_pages(plan.device_pages, geometry.page_bytes, "device_memory")
        host = allocate_pages(plan.all_host_pages, geometry.page_bytes, "host_memory")
        own = ModelRunner(model, kernels, device, geometry, plan.settings, timeline, plan.layouts)
        runners = ModelRunners(own)

        def add_runner(
            number: int, weights: WeightLayout, geometry: PageGeometry, layouts: LayoutTable
        ) -> Callable[[], None]:
            paged = PagedModel(weights, device)
            kernels = select(self.name, plan.settings.reproducible)
            runner = ModelRunner(
                paged.model, kernels, device, geometry, plan.settings, layouts=layouts,
                table=own.table,
            )  # fmt: skip
            runners.add(number, runner, paged)
            return partial(runners.remove, number)

        link = SourceLink(
            ThreadLink(device, host, timeline, self._link_bandwidth), writer(host), plan.bounce
        )
        return Built(runners, link, ArrayPages(device, host), add_runner)


class CudaBackend:
    """Runs on a GPU: the device pool is in its memory, the host pool is pinned, and copies are by
    DMA. The weights are on the GPU already."""

    name = "cuda"

    def __init__(self, device: Device, loaded: LoadedModel, config: EngineConfig) -> None:
        from scalesim.model.runner.cuda_runner import check_dtype

        check_dtype(loaded.model.dtype)
        self._device = device
        self._config = config
        step = step_bytes(loaded.config, loaded.model.dtype.itemsize, config)
        self._workspace = step + _WORKSPACE_BYTES

    def default_device_bytes(self) -> int:
        left = self._left_bytes()
        utilization = self._config.gpu_memory_utilization
        if utilization is None:
            return int(_GPU_SHARE * left)
        _, total = self._device.free_bytes()
        return min(left, left - int((1.0 - utilization) * total))

    def resident_bytes(self) -> int:
        return self.default_device_bytes()

    def _left_bytes(self) -> int:
        free, total = self._device.free_bytes()
        if free <= self._workspace:
            raise ConfigError(
                f"{self._device.place} has {free} of {total} bytes free beside the weights; a step "
                f"needs {self._workspace}: lower max_num_batched_tokens, max_num_seqs or "
                "max_model_len, or run a smaller model"
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

    def build(self, model: Decoder, kernels: KernelSet, plan: Capacity) -> Built:
        from scalesim.memory.links.cuda_link import CudaLink
        from scalesim.memory.pools.pinned import PinnedPages
        from scalesim.memory.pools.storage import allocate_device_pages
        from scalesim.model.runner.cuda_branch import CudaBranch
        from scalesim.model.runner.cuda_runner import CudaRunner

        geometry, settings, fences = plan.geometry, plan.settings, Fences()
        pages = allocate_device_pages(plan.device_pages, geometry.page_bytes, self._device.place)
        pool = pool_view(pages, geometry, model.dtype)
        own = CudaRunner(model, kernels, pool, self._device, fences, settings, plan.layouts)
        token_counts = (*_WARM_UP_TOKENS, settings.max_num_tokens)
        own.warm_up(token_counts)
        runners = ModelRunners(own)

        def add_runner(
            number: int, weights: WeightLayout, geometry: PageGeometry, layouts: LayoutTable
        ) -> Callable[[], None]:
            self._check_room(weights)
            pool = pool_view(pages, geometry, weights.dtype)
            paged = PagedModel(weights, pages)
            kernels = select(self.name, settings.reproducible)
            runner = CudaBranch(
                paged.model, kernels, pool, self._device, settings, own.device_table, layouts
            )
            runner.warm_up(token_counts)
            runners.add(number, runner, paged)
            return partial(runners.remove, number)

        host = PinnedPages(plan.all_host_pages, geometry.page_bytes, self._device.registrar())
        link, rows = CudaLink(self._device, pages, host, fences), host.pages.numpy()
        return Built(
            runners,
            SourceLink(link, writer(rows), plan.bounce),
            TensorPages(pages, rows, self._device),
            add_runner,
        )

    def _check_room(self, weights: WeightLayout) -> None:
        """Raise ``ModelError`` if there is no memory for steps of a further model."""
        needed = step_bytes(weights.config, weights.dtype.itemsize, self._config)
        free, total = self._device.free_bytes()
        if needed > free:
            raise ModelError(
                f"{self._device.place} has {free} of {total} bytes free beside the pool; steps of "
                f"this model need {needed}: lower device_memory, max_num_batched_tokens or "
                "max_num_seqs"
            )


def step_bytes(shape: ModelShape, itemsize: int, config: EngineConfig) -> int:
    """An upper estimate of the memory that steps of a model need beside weights and pool: for
    activations of ``itemsize`` bytes an element, for logits and their sorting, and for partial
    results of decodes (once in steps that are captured, once in others)."""
    from scalesim_kernels.paged_decode import scratch_bytes

    scheduling = config.scheduler
    wide = 8 * shape.hidden_size + 3 * shape.intermediate_size
    activations = scheduling.max_num_batched_tokens * wide * itemsize
    logits = 6 * 4 * scheduling.max_num_seqs * shape.vocab_size
    # the products of adapters' A with the inputs of q, k and v, in fp32
    shrunk = 3 * 4 * MAX_RANK * (scheduling.max_num_batched_tokens + scheduling.max_num_seqs)
    max_len = config.max_model_len or shape.max_position
    splits = scratch_bytes(scheduling.max_num_seqs, max_len, shape.num_heads, shape.head_dim)
    return activations + logits + shrunk + 2 * splits


def available_bytes() -> int:
    """The memory that is available without swapping. The system's file cache counts as available:
    the system gives it back, and its size depends on other programs. If the system does not say
    what is available, all memory counts."""
    from scalesim.memory.pools.pinned import available_host_bytes

    try:
        return available_host_bytes()
    except (OSError, KeyError, ValueError):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
