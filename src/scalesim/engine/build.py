"""Builds the parts of an engine for a model's folder: loads the weights, sizes the pools, and
connects the parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from scalesim_kernels import KernelSet, select

from scalesim.checks import instance, unknown_option
from scalesim.config import (
    CallLimits,
    EngineConfig,
    SchedulerConfig,
    memory_bytes,
    parse_bytes,
)
from scalesim.device.streams import Device
from scalesim.engine.backends import MAX_RESIDENT_PAGES, Backend, Capacity, CpuBackend, CudaBackend
from scalesim.engine.disk_tier import num_disk_pages, store_for, with_store
from scalesim.engine.given_kernels import given_kernels
from scalesim.engine.join_models import MIN_ROW_BLOCKS, AddRunner, JoinModels
from scalesim.engine.parts import EngineParts
from scalesim.errors import ConfigError, RequestError
from scalesim.memory.eviction.policies import Policy, policy_named
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.links.link import Link
from scalesim.memory.manager import MemoryManager
from scalesim.model.adapters.folder import AdapterFolders
from scalesim.model.adapters.layout import LayoutTable, max_adapter_pages
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.digest import kv_identity
from scalesim.model.checkpoint.loader import LoadedModel, load_model
from scalesim.model.checkpoint.quantize import with_quantized
from scalesim.model.layers.hosted import no_adapters
from scalesim.model.runner.openmp import release_idle_workers
from scalesim.model.runner.settings import RunnerSettings
from scalesim.model.runner.threads import choose_threads
from scalesim.model.text.chat import chosen_chat_template
from scalesim.model.text.tokenizer import Tokenizer, load_tokenizer
from scalesim.requests.adapter_home import PackAdapter, ReadAdapter, RebuildAdapter
from scalesim.requests.prompt import TextModel
from scalesim.sampling.check_params import check_params
from scalesim.sampling.grammar import Structures
from scalesim.sampling.model_defaults import sampling_defaults
from scalesim.sampling.params import SamplingParams
from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.step_costs import MeasuredCosts


def with_settings(config: EngineConfig | None, settings: Mapping[str, Any]) -> EngineConfig:
    """``config`` with the fields in ``settings`` replaced, also fields of the scheduler's settings
    and of the limits."""
    if config is None:
        config = EngineConfig()
    hint = "give EngineConfig(...), or its fields by name"
    instance("config", config, EngineConfig, hint, ConfigError)
    own = {field.name for field in fields(EngineConfig)}
    inner = {
        name: {field.name for field in fields(part)}
        for name, part in (("scheduler", SchedulerConfig), ("limits", CallLimits))
    }
    known = own.union(*inner.values())
    for name in settings:
        if name not in known:
            raise ConfigError(unknown_option(name, known, "setting"))
    config = replace(config, **{name: settings[name] for name in own & settings.keys()})
    for part, names in inner.items():
        if changes := {name: settings[name] for name in names & settings.keys()}:
            config = replace(config, **{part: replace(getattr(config, part), **changes)})
    return config


def build_parts(
    model: str | Path,
    config: EngineConfig,
    dummy_weights: bool = False,
    kernels: KernelSet | None = None,
) -> EngineParts:
    """The parts of an engine for the model in a folder. Raises what ``load_model`` raises, and
    ``ConfigError`` for sizes that do not fit."""
    place = resolve_device(config.device)
    loaded = load_model(
        model, dtype=config.dtype, dummy_weights=dummy_weights, place=place,
        model_impl=config.model_impl, quantize=config.quantize,
    )  # fmt: skip
    return parts_for(loaded, config, kernels)


def parts_for(
    loaded: LoadedModel,
    config: EngineConfig,
    kernels: KernelSet | None = None,
    tokenizer: Tokenizer | None = None,
    device: Device | None = None,
    around: Callable[[Link], Link] | None = None,
) -> EngineParts:
    """The parts of an engine for a loaded model, which several engines may share. The engine runs
    where the weights are, on the streams of ``device`` if it is given. ``around`` puts another link
    around the engine's."""
    shape = loaded.config
    backend = backend_for(loaded, config, device)
    if backend.name == "cpu":
        choose_threads(config.threads)
    geometry = PageGeometry.choose(
        shape.num_layers,
        shape.num_kv_heads,
        shape.head_dim,
        kv_bytes(config, loaded),
        config.block_size,
    )
    policy = policy_named(config.policy)
    device_pages = num_device_pages(config, policy, geometry.page_bytes, backend)
    host_pages = num_host_pages(config, policy, geometry.page_bytes, backend)
    disk_pages = num_disk_pages(config, policy, geometry.page_bytes, host_pages)
    backend.check(device_pages * geometry.page_bytes, host_pages * geometry.page_bytes)
    pool_len = (device_pages - 1) * geometry.block_size
    model_len = config.max_model_len or shape.max_position
    if config.max_model_len is not None:
        check_model_len(config.max_model_len, shape.max_position, pool_len)
    max_len = min(model_len, pool_len)
    num_rows = 3 * config.scheduler.max_num_seqs + 1  # of a path, an adapter and weights each
    layouts, row_blocks = LayoutTable(), max(MIN_ROW_BLOCKS, geometry.blocks_for(max_len))
    read_adapter: ReadAdapter = no_adapters
    pack_adapter: PackAdapter | None = None
    rebuild_adapter: RebuildAdapter | None = None
    if isinstance(shape, ModelConfig):
        largest = max_adapter_pages(shape, geometry.page_bytes, loaded.model.dtype.itemsize)
        row_blocks = max(MIN_ROW_BLOCKS, min(device_pages, max(row_blocks, largest)))
        folders = AdapterFolders(shape, loaded.model.dtype, geometry.page_bytes, layouts)
        read_adapter, pack_adapter, rebuild_adapter = folders, folders.updated, folders.rebuilt
    settings = RunnerSettings(
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_tokens=config.scheduler.max_num_batched_tokens,
        max_num_rows=num_rows,
        max_blocks_per_row=row_blocks,
        reproducible=config.reproducible,
        digests=config.digests,
        graphs=config.graphs,
    )
    plan = Capacity(geometry, device_pages, host_pages, settings, layouts)
    if kernels is None:
        kernels = select(backend.name, config.reproducible)
    else:
        kernels = given_kernels(kernels, loaded, config.kv_dtype)
    if loaded.quantize is not None:
        kernels = with_quantized(kernels)
    text = text_model(loaded, config, tokenizer, model_len, pool_len)
    # Last, as it starts threads: whatever a folder or a setting may be refused for comes before.
    store = store_for(config, geometry.page_bytes, disk_pages)
    with ExitStack() as taken:
        if store is not None:
            taken.callback(store.close)  # where there is no memory for the pools
        built = backend.build(loaded.model.packed(kernels), kernels, plan)
        taken.pop_all()
    runner, sources, pages = built.runner, built.link, built.pages
    link = with_store(sources, store, pages.host, config)
    if around is not None:
        link = around(link)
    memory = MemoryManager(
        block_size=geometry.block_size,
        page_bytes=geometry.page_bytes,
        device_pages=device_pages,
        host_pages=host_pages,
        num_rows=num_rows,
        policy=policy,
        link=link,
        planner_config=config.planner,
        read_rate=lambda: sources.read_rate,
        disk_pages=disk_pages,
        move_pages=pages.move,
    )
    return EngineParts(
        runner=runner,
        memory=memory,
        scheduler=Scheduler(
            memory,
            config.scheduler,
            max_len,
            MeasuredCosts() if runner.steps_in_flight > 1 else None,
        ),
        link=link,
        model=text,
        seed=config.seed,
        before_wait=release_idle_workers,
        device=str(loaded.place),
        integrity=config.integrity,
        limits=config.limits,
        read_adapter=read_adapter,
        pack_adapter=pack_adapter,
        rebuild_adapter=rebuild_adapter,
        join_model=_join_models(loaded, config, backend.name, plan, max_len, built.add_runner),
        pages=pages,
        store=store,
        kv_identity=kv_identity(loaded, geometry, backend.name, config.reproducible),
    )


def _join_models(
    own: LoadedModel, config: EngineConfig, backend: str, plan: Capacity, max_len: int,
    add_runner: AddRunner | None,
) -> JoinModels | None:  # fmt: skip
    if add_runner is None:
        return None

    def text(loaded: LoadedModel, model_len: int, pool_len: int) -> TextModel:
        return text_model(loaded, config, None, model_len, pool_len)

    geometry, dtype = plan.geometry, str(own.model.dtype).removeprefix("torch.")
    return JoinModels(
        backend, dtype, config.reproducible, geometry.page_bytes, geometry.dtype_bytes,
        plan.device_pages - 1, max_len, plan.settings.max_blocks_per_row, text, add_runner,
    )  # fmt: skip


def text_model(
    loaded: LoadedModel,
    config: EngineConfig,
    tokenizer: Tokenizer | None,
    model_len: int,
    pool_len: int,
) -> TextModel:
    """The text model that requests are checked against, with the folder's tokenizer unless another
    is given."""
    shape = loaded.config
    tokenizer = tokenizer or text_of(loaded.folder)
    template = None
    if tokenizer is not None:
        template = chosen_chat_template(
            config.chat_template, loaded.folder, tokenizer.special_tokens
        )
    eos = frozenset(shape.eos_token_ids)
    if tokenizer is not None and not eos:
        eos = frozenset(tokenizer.eos_token_ids)
    return TextModel(
        shape.vocab_size,
        eos,
        model_len,
        pool_len,
        tokenizer,
        template,
        has_logits=True,
        defaults=checked_defaults(loaded, config),
        structures=None
        if tokenizer is None
        else Structures(tokenizer, shape.vocab_size, eos, config.structure),
    )


def checked_defaults(loaded: LoadedModel, config: EngineConfig) -> dict[str, Any]:
    """The sampling parameters in the model's generation_config.json. Raises ``ConfigError`` for
    values that no request may have."""
    if not config.generation_config:
        return {}
    defaults = sampling_defaults(loaded.folder)
    try:
        check_params(SamplingParams(**defaults), loaded.config.vocab_size)
    except RequestError as error:
        raise ConfigError(
            f"{loaded.folder / 'generation_config.json'}: {error}; correct it, or leave it out "
            "with generation_config=False"
        ) from error
    return defaults


def text_of(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder; ``None`` if the folder has none."""
    if os.path.lexists(folder / "tokenizer.json"):
        return load_tokenizer(folder)
    return None


def resolve_device(name: str) -> str:
    """``"cpu"`` or ``"cuda:N"``; ``"auto"`` is the first GPU, if torch sees one."""
    if name == "cpu":
        return name
    from scalesim.device.cuda import CudaDevice, sees_gpu

    if name == "auto":
        return "cuda:0" if sees_gpu() else "cpu"
    return CudaDevice.named(name).place


def backend_for(loaded: LoadedModel, config: EngineConfig, device: Device | None) -> Backend:
    """The backend of the device on which the weights are, or of ``device``. Raises ``ConfigError``
    for settings that it does not have."""
    if device is None and loaded.place.startswith("cuda"):
        from scalesim.device.cuda import CudaDevice

        device = CudaDevice.named(loaded.place)
    paced = config.link_bandwidth
    if device is None:
        return CpuBackend(None if paced is None else parse_bytes(paced, "link_bandwidth"))
    if paced is not None:
        raise ConfigError(
            f"link_bandwidth={paced} slows the copies of device='cpu'; beside a GPU they go at the "
            "link's own rate: leave it out"
        )
    if config.threads is not None:
        raise ConfigError(
            f"threads={config.threads} is for device='cpu'; a GPU computes by itself: leave it out"
        )
    return CudaBackend(device, loaded, config)


def kv_bytes(config: EngineConfig, loaded: LoadedModel) -> int:
    """The bytes of an element of K or V. Raises ``ConfigError`` if the model's heads do not fit a
    pool in fp8."""
    itemsize, head_dim = loaded.model.dtype.itemsize, loaded.config.head_dim
    if config.kv_dtype != "fp8":
        return itemsize
    if head_dim % itemsize:
        raise ConfigError(
            f"kv_dtype='fp8' with heads of {head_dim} elements: adapters of {itemsize} bytes an "
            f"element share the pages, so it must be a multiple of {itemsize}; use kv_dtype='auto'"
        )
    return 1


def num_host_pages(config: EngineConfig, policy: Policy, page_bytes: int, backend: Backend) -> int:
    """The pages of the host pool; 0 under a policy without a host pool."""
    if not policy.host:
        return 0
    asked = memory_bytes(config.host_memory, "host_memory")
    if asked and asked < page_bytes:
        raise ConfigError(
            f"host_memory={config.host_memory} is {asked} bytes, and a page has {page_bytes}: give "
            "more, or 0 for no host pool"
        )
    return (backend.default_host_bytes() if asked is None else asked) // page_bytes


def num_device_pages(
    config: EngineConfig, policy: Policy, page_bytes: int, backend: Backend
) -> int:
    """The pages of the device pool, with the null page."""
    if policy.limited:
        asked = memory_bytes(config.device_memory, "device_memory")
        pages = (backend.default_device_bytes() if asked is None else asked) // page_bytes
    else:
        pages = min(backend.resident_bytes() // page_bytes, MAX_RESIDENT_PAGES)
    if pages < 2:
        raise ConfigError(
            f"device_memory={config.device_memory} holds {pages} pages of {page_bytes} bytes; one "
            f"is kept empty and a request needs one at least: give {2 * page_bytes} bytes or more"
        )
    return pages


def check_model_len(max_model_len: int, max_position: int, pool_len: int) -> None:
    """Raise ``ConfigError`` if ``max_model_len`` is more than the model or the pool takes."""
    if max_model_len > max_position:
        raise ConfigError(
            f"max_model_len={max_model_len} is more than the model's {max_position} positions"
        )
    if max_model_len > pool_len:
        raise ConfigError(
            f"max_model_len={max_model_len} tokens, but the device pool holds {pool_len}: the pool "
            "is smaller than one request; raise device_memory or lower max_model_len"
        )
