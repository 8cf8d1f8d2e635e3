"""Settings of an engine, as frozen dataclasses. The command line is built from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from scalesim.checks import (
    flag,
    instance,
    number,
    one_of,
    path_of,
    place_of,
    refuse,
    shown,
    text,
    whole,
)
from scalesim.errors import ConfigError
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.geometry import BLOCK_SIZES
from scalesim.memory.prefetch.config import PlannerConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

INTEGRITY = ("quarantine", "raise", "off")
WHEN_FULL = ("wait", "error")
ORDERS = ("longest", "arrival")
DTYPES = ("auto", "float32", "float16", "bfloat16")
KV_DTYPES = ("auto", "fp8")
MODEL_IMPLS = ("auto", "native", "transformers")
SCHEMES = ("int8", "float8")
MAX_NUM_SEQS = 1 << 16
MAX_THREADS = 1 << 12
_INT32 = 2**31 - 1
_PREFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_PREFIXES |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_UNITS = {prefix + byte: size for prefix, size in _PREFIXES.items() for byte in ("", "B")}
_AMOUNT = re.compile(r"\s*(\d+|\d*\.\d+|\d+\.)\s*([A-Za-z]*)\s*", re.ASCII)
_MOST_BYTES = 2**63 - 1
MIN_POOL_BYTES = 512
"""No page of any model is smaller: a caller who writes 4 means 4 GB."""


def parse_bytes(text: str | int | float, name: str) -> int:
    """The number of bytes in ``"20GB"``, ``"500G"``, ``"1.5 GiB"`` or a number. K, M, G and T are
    powers of 1000, Ki, Mi, Gi and Ti of 1024; the B may be missing. Raises ``ConfigError`` with the
    name of the setting."""
    if isinstance(text, str):
        text = str.__str__(text)  # without the methods of a subclass
        match = _AMOUNT.fullmatch(text) if len(text) < 64 else None
        unit = match[2].upper() if match else ""
        if match is None or unit not in _UNITS:
            refuse(name, text, _SPELLING, ConfigError)
        figure = int(match[1]) if match[1].isdecimal() else float(match[1])
        amount = figure * _UNITS[unit]
    elif isinstance(text, bool) or not isinstance(text, (int, float, np.integer, np.floating)):
        refuse(name, text, _SPELLING, ConfigError)
    else:
        amount = text if isinstance(text, int) else number(name, text, error=ConfigError)
    if not 0 <= amount <= _MOST_BYTES:
        refuse(name, text, "must lie between 0 and 2**63 bytes", ConfigError)
    return int(amount)


_SPELLING = "is no amount of memory; write it like 20GB or 512MiB, or as a number of bytes"


def memory_bytes(text: str | int | float, name: str) -> int | None:
    """The size of a pool in bytes; ``None`` for ``"auto"``. Raises ``ConfigError``, also for a size
    above 0 that is less than a page of any model."""
    if isinstance(text, str) and text == "auto":
        return None
    found = parse_bytes(text, name)
    if 0 < found < MIN_POOL_BYTES:
        count = str(text).strip()
        meant = f"; for gigabytes write {name}='{count}GB'" if count.isdecimal() else ""
        refuse(name, text, f"is {found} bytes, less than one page of any model{meant}", ConfigError)
    return found


Rule = Callable[[str, Any], Any]
"""A function from the name and value of a setting to the plain value. Raises ``ConfigError``."""


def setting(default: T, rule: Rule) -> T:
    """A field of a frozen dataclass that ``settle`` checks by ``rule``."""
    found: T = field(default=default, metadata={"rule": rule})
    return found


def settle(config: DataclassInstance) -> None:
    """Check the settings of a dataclass that is being made, and store them as plain values. A field
    without a rule holds a dataclass of further settings."""
    for setting in fields(config):
        rule = setting.metadata.get("rule") or partial(_instance, setting.default_factory)
        object.__setattr__(config, setting.name, rule(setting.name, getattr(config, setting.name)))


def _instance(kind: Any, name: str, value: object) -> object:
    instance(name, value, kind, f"{name}={kind.__name__}(...)", ConfigError)
    return value


def _from(minimum: int, maximum: int = _INT32) -> Rule:
    return partial(whole, minimum=minimum, maximum=maximum, error=ConfigError)


def _among(names: tuple[str, ...]) -> Rule:
    return partial(one_of, choices=names, error=ConfigError)


def _or_none(rule: Rule) -> Rule:
    return lambda name, value: None if value is None else rule(name, value)


def _policy(name: str, value: Any) -> str:
    return policy_named(value).name


def _device(name: str, value: object) -> str:
    named = text(name, value, ConfigError)
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", named):
        raise ConfigError(
            f"device={shown(named)}; it is one of auto, cpu, cuda, cuda:0, cuda:1 and so on"
        )
    return named


def _memory(name: str, value: Any) -> str | int:
    """The size as it was written if it is a text, else in bytes."""
    written = text(name, value, ConfigError) if isinstance(value, str) else None
    found = memory_bytes(value if written is None else written, name)
    return found if written is None else written  # type: ignore[return-value]


def _bandwidth(name: str, value: Any) -> str | int:
    """Bytes a second, as written if it is a text."""
    written = text(name, value, ConfigError) if isinstance(value, str) else None
    found = parse_bytes(value if written is None else written, name)
    if found < MIN_POOL_BYTES:
        refuse(name, value, "is less than a page a second; write it like 2GB", ConfigError)
    return found if written is None else written


def _store(name: str, value: object) -> str:
    """A folder, or the URL of an object store."""
    return str(place_of(name, value, ConfigError))


def _utilization(name: str, value: object) -> float:
    return number(name, value, 0.0, 1.0, ConfigError, above=True)


def _chat_template(name: str, value: object) -> str:
    named = value if isinstance(value, str) else str(path_of(name, value, ConfigError))
    return text(name, named, ConfigError, empty=False)


def _block_size(name: str, value: object) -> int:
    found = _from(1)(name, value)
    if found not in BLOCK_SIZES:
        refuse(name, value, f"must be one of {', '.join(map(str, BLOCK_SIZES))}", ConfigError)
    return int(found)


_from_one = _from(1)
_flag = partial(flag, error=ConfigError)


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of scheduling. Raises ``ConfigError``.

    ``max_num_seqs``: the most requests that run at once. ``max_num_batched_tokens``: the most query
    tokens of a step, in prefill chunks and decodes. ``safe_point_tokens``: the tokens for which
    pages are reserved when a sequence grows. ``lookahead_window``: the number of waiting requests
    among which a request with state on the device is searched. ``max_skips``: how often a request
    is overtaken before it goes first. ``order``: of equal priorities, which request goes first:
    ``"longest"``, the one whose agent has the most to generate in this tick, once the clock moves;
    or ``"arrival"``, the oldest.
    """

    max_num_seqs: int = setting(64, _from(1, MAX_NUM_SEQS))
    max_num_batched_tokens: int = setting(1024, _from_one)
    safe_point_tokens: int = setting(64, _from_one)
    lookahead_window: int = setting(32, _from(0))
    max_skips: int = setting(256, _from(0))
    order: Literal["longest", "arrival"] = setting("longest", _among(ORDERS))

    def __post_init__(self) -> None:
        settle(self)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than "
                f"max_num_seqs={self.max_num_seqs}; every running sequence decodes a token a step"
            )


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of open requests. Raises ``ConfigError``.

    ``max_open_requests``: the most requests that are handed in and not ended. ``when_full``:
    whether further calls ``"wait"``, or raise ``EngineFullError`` (``"error"``).
    """

    max_open_requests: int = setting(16384, _from_one)
    when_full: Literal["wait", "error"] = setting("wait", _among(WHEN_FULL))

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, slots=True)
class StructureConfig:
    """Limits of structured output. A structure beyond a limit is refused, or ends its request with
    an error. Raises ``ConfigError``.

    ``max_chars``: the most characters of a schema, expression or grammar. ``compile_fuel``,
    ``step_fuel`` and ``step_items`` bound time, in units of llguidance's work that are the same on
    any machine (about 50 000, 14 000 and 20 000 a millisecond). ``max_states`` (1 to 2 kB each) and
    ``max_symbols`` bound the memory of a structure. ``max_cached``: the most compiled structures
    that are kept. ``max_checks``: the most pairs of a schema and a value that the check of a
    finished text may take.
    """

    max_chars: int = setting(1 << 17, _from_one)
    compile_fuel: int = setting(1_000_000, _from_one)
    step_fuel: int = setting(200_000, _from_one)
    step_items: int = setting(50_000, _from_one)
    max_states: int = setting(50_000, _from_one)
    max_symbols: int = setting(500_000, _from_one)
    max_cached: int = setting(256, _from_one)
    max_checks: int = setting(100_000, _from_one)

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """``device``: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``: a GPU if there is one.
    ``device_memory``, ``host_memory``: sizes of the two pools, like ``"20GB"``, ``"500G"`` or
    ``"1.5GiB"``, or in bytes (0: no host pool); ``"auto"`` is 1 GB
    and 4 GB on a CPU; beside a GPU, what its memory leaves and 70 % of the host's that is
    available. ``disk``: a folder for state that the host pool has no room for, or the URL of an
    object store, like ``"s3://bucket/prefix"``; ``None``: neither.
    ``disk_memory``: the most bytes that it takes there; ``"auto"`` is 80 % of what is free in the
    folder, and is not known of an object store.
    ``disk_bandwidth``: the most bytes a second to and from the disk, each; ``None``: as fast as it
    goes. ``gpu_memory_utilization``: with ``"auto"``, the share of a GPU's memory that
    weights, workspace and device pool may take together. ``link_bandwidth``: on a CPU, the most
    bytes a second that copies between the pools take in each direction, like ``"2GB"``: what
    moving state costs on slower links, in real time. ``policy``: how the planner orders and
    looks ahead. ``block_size``: tokens a page of the engine's own model; chosen
    for it if ``None``.
    ``max_model_len``: tokens of prompt and output; the model's own limit if ``None``.
    ``reproducible``: the same text whatever the batch, the policy and the pool sizes. ``seed``: of
    all sampling that is not given one. ``graphs``: capture decode steps as CUDA graphs.
    ``generation_config``: what the model's ``generation_config.json`` says of sampling is the
    default of calls that do not say it. ``chat_template``: jinja2 source, the path of a file of it,
    or ``"chatml"``; the model's own if ``None``. ``structure``: limits of structured output.
    ``dtype``: of weights and KV, ``"float32"``, ``"float16"`` or ``"bfloat16"``; ``"auto"`` is
    float32 on a CPU, else what the model's config says. ``kv_dtype``: ``"fp8"`` keeps KV in a byte
    an element (e4m3), on the device, on the host and on the link between. ``model_impl``:
    ``"native"``, ``"transformers"``, or ``"auto"``: native where the model is. ``quantize``:
    weights in ``"int8"`` or ``"float8"`` (needs torchao).
    ``threads``: how many a CPU computes with, in this process; ``None``: as many as torch takes,
    and no more than the physical cores that affinity and container allow.
    ``integrity``: what follows when memory's books do not add up, or something breaks inside:
    ``"quarantine"`` takes the pages in question out of use, ends the requests on them with
    ``InternalError`` and computes the state of all others anew; ``"raise"`` ends the engine;
    ``"off"`` does not look, and ends the engine at what breaks.
    Raises ``ConfigError``.
    """

    device: str = setting("auto", _device)
    device_memory: str | int = setting("auto", _memory)
    host_memory: str | int = setting("auto", _memory)
    disk: str | None = setting(None, _or_none(_store))
    disk_memory: str | int = setting("auto", _memory)
    disk_bandwidth: str | int | None = setting(None, _or_none(_bandwidth))
    gpu_memory_utilization: float | None = setting(None, _or_none(_utilization))
    link_bandwidth: str | int | None = setting(None, _or_none(_bandwidth))
    policy: str = setting("deadline", _policy)
    block_size: int | None = setting(None, _or_none(_block_size))
    max_model_len: int | None = setting(None, _or_none(_from_one))
    reproducible: bool = setting(True, _flag)
    digests: bool = setting(False, _flag)  # replies have a hash over their logits
    graphs: bool = setting(True, _flag)
    generation_config: bool = setting(True, _flag)
    chat_template: str | None = setting(None, _or_none(_chat_template))
    dtype: str = setting("auto", _among(DTYPES))
    kv_dtype: str = setting("auto", _among(KV_DTYPES))
    model_impl: str = setting("auto", _among(MODEL_IMPLS))
    quantize: str | None = setting(None, _or_none(_among(SCHEMES)))
    threads: int | None = setting(None, _or_none(_from(1, MAX_THREADS)))
    seed: int = setting(0, _from(-(2**63), 2**63 - 1))
    integrity: Literal["quarantine", "raise", "off"] = setting("quarantine", _among(INTEGRITY))
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)  # fields by name, too
    planner: PlannerConfig = field(default_factory=PlannerConfig)  # when loads start
    limits: CallLimits = field(default_factory=CallLimits)
    structure: StructureConfig = field(default_factory=StructureConfig)

    def __post_init__(self) -> None:
        settle(self)
        if policy_named(self.policy).foresight:
            raise ConfigError(
                f"policy={self.policy!r} must know what comes; an engine does not: use it in "
                "scalesim replay, or another policy"
            )
