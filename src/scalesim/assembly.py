"""Puts an engine's parts together for a model folder: sizes the pools, loads weights, wires the
seams."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from scalesim_kernels import KernelSet, select

from scalesim.config import EngineConfig, SchedulerConfig, parse_bytes
from scalesim.core import Runner
from scalesim.errors import ConfigError
from scalesim.loop import Parts
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.links import ThreadLink, Timeline
from scalesim.memory.manager import MemoryManager
from scalesim.memory.policies import Policy, policy_named
from scalesim.memory.source_link import SourceLink
from scalesim.memory.storage import allocate_pages, writer
from scalesim.model.adapters.folder import AdapterFolders
from scalesim.model.adapters.layout import LayoutTable, max_adapter_pages
from scalesim.model.chat import CHATML, ChatTemplate, load_chat_template
from scalesim.model.loader import LoadedModel, load_model
from scalesim.model.openmp import release_idle_workers
from scalesim.model.runner import ModelRunner
from scalesim.model.tokenizer import Tokenizer, load_tokenizer
from scalesim.requests import TextModel
from scalesim.scheduler.scheduler import Scheduler

_RESIDENT_SHARE = 0.7  # of the memory that is available
_RESIDENT_MAX_PAGES = 1 << 18


def with_settings(config: EngineConfig | None, settings: Mapping[str, Any]) -> EngineConfig:
    """``config`` with fields replaced by name, those of its parts included."""
    config = config or EngineConfig()
    own = {field.name for field in fields(EngineConfig)}
    scheduling = {field.name for field in fields(SchedulerConfig)}
    unknown = settings.keys() - own - scheduling
    if unknown:
        known = ", ".join(sorted(own | scheduling))
        raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}; settings are: {known}")
    inner = {name: value for name, value in settings.items() if name in scheduling}
    outer = {name: value for name, value in settings.items() if name in own}
    if inner:
        outer["scheduler"] = replace(outer.get("scheduler", config.scheduler), **inner)
    return replace(config, **outer)


def build_parts(
    model: str | Path,
    config: EngineConfig,
    dummy_weights: bool = False,
    kernels: KernelSet | None = None,
) -> Parts:
    """Everything for ``Engine``: raises what the loader raises, and ``ConfigError`` for sizes."""
    return parts_for(load_model(model, dummy_weights=dummy_weights), config, kernels)


def parts_for(
    loaded: LoadedModel,
    config: EngineConfig,
    kernels: KernelSet | None = None,
    tokenizer: Tokenizer | None = None,
) -> Parts:
    """Parts for a model that is loaded already; several engines may share one."""
    shape = loaded.config
    geometry = PageGeometry.choose(
        shape.num_layers,
        shape.num_kv_heads,
        shape.head_dim,
        loaded.model.dtype.itemsize,
        config.block_size,
    )
    policy = policy_named(config.policy)
    device_pages = num_device_pages(config, policy, geometry.page_bytes)
    host_pages = parse_bytes(config.host_memory, "host_memory") // geometry.page_bytes
    pool_len = (device_pages - 1) * geometry.block_size
    model_len = config.max_model_len or shape.max_position
    if config.max_model_len is not None:
        check_model_len(config.max_model_len, shape.max_position, pool_len)
    max_len = min(model_len, pool_len)
    num_rows = 2 * config.scheduler.max_num_seqs + 1
    device = allocate_pages(device_pages, geometry.page_bytes)
    host = allocate_pages(host_pages if policy.host else 0, geometry.page_bytes)
    timeline = Timeline()
    link = SourceLink(ThreadLink(device, host, timeline), writer(device), writer(host), timeline)
    memory = MemoryManager(
        block_size=geometry.block_size,
        page_bytes=geometry.page_bytes,
        device_pages=device_pages,
        host_pages=host_pages,
        num_rows=num_rows,
        policy=policy,
        link=link,
        planner=config.planner,
    )
    layouts = LayoutTable()
    largest = max_adapter_pages(shape, geometry.page_bytes, loaded.model.dtype.itemsize)
    kernels = kernels or select("cpu")
    runner: Runner = ModelRunner(
        loaded.model.packed(kernels),
        kernels,
        device,
        geometry,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_rows=num_rows,
        max_blocks_per_row=min(device_pages, max(geometry.blocks_for(max_len), largest)),
        reproducible=config.reproducible,
        digests=config.digests,
        timeline=timeline,
        layouts=layouts,
    )
    tokenizer = tokenizer or text_of(loaded.folder)
    template = None
    if tokenizer is not None:
        template = load_chat_template(loaded.folder, tokenizer.special_tokens)
        template = template or ChatTemplate(CHATML, tokenizer.special_tokens)
    eos = frozenset(shape.eos_token_ids)
    if tokenizer is not None and not eos:
        eos = frozenset(tokenizer.eos_token_ids)
    text = TextModel(shape.vocab_size, eos, model_len, pool_len, tokenizer, template)
    return Parts(
        runner=runner,
        memory=memory,
        scheduler=Scheduler(memory, config.scheduler, max_len),
        link=link,
        model=text,
        seed=config.seed,
        before_wait=release_idle_workers,
        read_adapter=AdapterFolders(
            loaded.config, loaded.model.dtype, geometry.page_bytes, layouts
        ),
    )


def text_of(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; plain bytes where its config says so; ``None`` where it has none."""
    if (folder / "tokenizer.json").exists():
        return load_tokenizer(folder)
    return None


def num_device_pages(config: EngineConfig, policy: Policy, page_bytes: int) -> int:
    """Pages of the device pool, the null page included."""
    if policy.limited:
        pages = parse_bytes(config.device_memory, "device_memory") // page_bytes
    else:
        pages = min(int(available_bytes() * _RESIDENT_SHARE) // page_bytes, _RESIDENT_MAX_PAGES)
    if pages < 2:
        raise ConfigError(
            f"device_memory={config.device_memory} holds {pages} pages of {page_bytes} bytes; one "
            f"is kept empty and a request needs one at least: give {2 * page_bytes} bytes or more"
        )
    return pages


def check_model_len(max_model_len: int, max_position: int, pool_len: int) -> None:
    """Raise ``ConfigError`` where ``max_model_len`` is more than the model or the pool takes."""
    if max_model_len > max_position:
        raise ConfigError(
            f"max_model_len={max_model_len} is more than the model's {max_position} positions"
        )
    if max_model_len > pool_len:
        raise ConfigError(
            f"max_model_len={max_model_len} tokens, but the device pool holds {pool_len}: the pool "
            "is smaller than one request; raise device_memory or lower max_model_len"
        )


def available_bytes() -> int:
    """Memory that can be had without swapping; all there is where the system does not say."""
    known = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(known) * os.sysconf("SC_PAGE_SIZE")
