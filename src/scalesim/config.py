"""Settings: frozen dataclasses, composed and never mutated. The command line is built from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

import numpy as np

from scalesim.checks import flag, instance, number, one_of, path_of, refuse, shown, text, whole
from scalesim.errors import ConfigError
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.geometry import BLOCK_SIZES
from scalesim.memory.prefetch.config import PlannerConfig

INTEGRITY = ("quarantine", "raise", "off")
WHEN_FULL = ("wait", "error")
DTYPES = ("auto", "float32", "float16", "bfloat16")
MODEL_IMPLS = ("auto", "native", "transformers")
SCHEMES = ("int8", "float8")
MAX_NUM_SEQS = 1 << 16
_INT32 = 2**31 - 1
_PREFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_PREFIXES |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_UNITS = {prefix + byte: size for prefix, size in _PREFIXES.items() for byte in ("", "B")}
_AMOUNT = re.compile(r"\s*(\d+|\d*\.\d+|\d+\.)\s*([A-Za-z]*)\s*", re.ASCII)
_MOST_BYTES = 2**63 - 1
MIN_POOL_BYTES = 512
"""Less than a page of any model: who writes 4 means 4 GB."""


def parse_bytes(text: str | int | float, name: str) -> int:
    """``"20GB"``, ``"500G"``, ``"1.5 GiB"`` or a number of bytes. K, M, G and T are powers of 1000,
    Ki, Mi, Gi and Ti of 1024; the B may be missing. Raises ``ConfigError`` naming the setting."""
    if isinstance(text, str):
        text = str.__str__(text)  # of a subclass, without methods of its own
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
    """The size of a pool, ``parse_bytes``; ``None`` for ``"auto"``. A pool is 0 or holds a page at
    least, and no page is smaller than 512 bytes."""
    if isinstance(text, str) and text == "auto":
        return None
    found = parse_bytes(text, name)
    if 0 < found < MIN_POOL_BYTES:
        count = str(text).strip()
        meant = f"; for gigabytes write {name}='{count}GB'" if count.isdecimal() else ""
        refuse(name, text, f"is {found} bytes, less than one page of any model{meant}", ConfigError)
    return found


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """``max_num_seqs``: requests that run at once. ``max_num_batched_tokens``: query tokens of a
    step, prefill chunks and decodes together. ``safe_point_tokens``: decode growth reserved at a
    time. ``lookahead_window``: how many waiting requests are looked through for one whose state is
    on the device. ``max_skips``: how often a request is overtaken before it goes first.
    Raises ``ConfigError``.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 1024
    safe_point_tokens: int = 64
    lookahead_window: int = 32
    max_skips: int = 256

    def __post_init__(self) -> None:
        settle(self, _SCHEDULER)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than "
                f"max_num_seqs={self.max_num_seqs}; every running sequence decodes a token a step"
            )


@dataclass(frozen=True, slots=True)
class CallLimits:
    """``max_open_requests``: handed in and not ended. ``when_full``: calls that find so many open
    wait for their turn, or raise ``EngineFullError``. Raises ``ConfigError``."""

    max_open_requests: int = 16384
    when_full: Literal["wait", "error"] = "wait"

    def __post_init__(self) -> None:
        settle(self, _LIMITS)


@dataclass(frozen=True, slots=True)
class StructureConfig:
    """Limits of structured output; a structure that passes one is refused, or ends its request.

    ``max_chars``: of a schema, expression or grammar. ``compile_fuel``, ``step_fuel`` and
    ``step_items`` bound time in llguidance's units of work, the same on any machine (it gives
    about 50 000, 14 000 and 20 000 a millisecond). ``max_states`` (1 to 2 kB each) and
    ``max_symbols`` bound a structure's memory. ``max_cached``: structures kept compiled.
    ``max_checks``: pairs of (schema, value) that are looked at when a finished text is checked.
    Raises ``ConfigError``.
    """

    max_chars: int = 1 << 17
    compile_fuel: int = 1_000_000
    step_fuel: int = 200_000
    step_items: int = 50_000
    max_states: int = 50_000
    max_symbols: int = 500_000
    max_cached: int = 256
    max_checks: int = 100_000

    def __post_init__(self) -> None:
        settle(self, dict.fromkeys((field.name for field in fields(self)), _from_one))


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """``device``: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``: a GPU if there is one.
    ``device_memory``, ``host_memory``: sizes of the two pools, like ``"20GB"``, ``"500G"`` or
    ``"1.5GiB"``, or in bytes (0: no host pool); ``"auto"`` is 1 GB
    and 4 GB on a CPU; beside a GPU, what its memory leaves and 70 % of the host's that is
    available. ``policy``: how the planner orders and looks ahead. ``block_size``: tokens a page;
    chosen for the model if ``None``. ``max_model_len``: tokens of prompt and output; the model's
    own limit if ``None``.
    ``reproducible``: the same text whatever the batch, the policy and the pool sizes. ``seed``: of
    all sampling that is not given one. ``graphs``: capture decode steps as CUDA graphs.
    ``generation_config``: what the model's ``generation_config.json`` says of sampling is the
    default of calls that do not say it. ``chat_template``: jinja2 source, the path of a file of it,
    or ``"chatml"``; the model's own if ``None``. ``structure``: limits of structured output.
    ``dtype``: of weights and KV, ``"float32"``, ``"float16"`` or ``"bfloat16"``; ``"auto"`` is
    float32 on a CPU, else what the model's config says. ``model_impl``: ``"native"``,
    ``"transformers"``, or ``"auto"``: native where the model is. ``quantize``: weights in
    ``"int8"`` or ``"float8"`` (needs torchao).
    ``integrity``: what follows when memory's books do not add up, or something breaks inside:
    ``"quarantine"`` takes the pages in question out of use, ends the requests on them with
    ``InternalError`` and computes the state of all others anew; ``"raise"`` ends the engine;
    ``"off"`` does not look, and ends the engine at what breaks.
    Raises ``ConfigError``.
    """

    device: str = "auto"
    device_memory: str | int = "auto"
    host_memory: str | int = "auto"
    policy: str = "deadline"
    block_size: int | None = None
    max_model_len: int | None = None
    reproducible: bool = True
    digests: bool = False  # replies carry a hash over their logits
    graphs: bool = True
    generation_config: bool = True
    chat_template: str | None = None
    dtype: str = "auto"
    model_impl: str = "auto"
    quantize: str | None = None
    seed: int = 0
    integrity: Literal["quarantine", "raise", "off"] = "quarantine"
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)  # fields by name, too
    planner: PlannerConfig = field(default_factory=PlannerConfig)  # when loads start
    limits: CallLimits = field(default_factory=CallLimits)
    structure: StructureConfig = field(default_factory=StructureConfig)

    def __post_init__(self) -> None:
        settle(self, _ENGINE)
        if policy_named(self.policy).foresight:
            raise ConfigError(
                f"policy={self.policy!r} must know what comes; an engine does not: use it in "
                "scalesim replay, or another policy"
            )


Rule = Callable[[str, Any], Any]
"""(name, value) to the value as a plain one. Raises ``ConfigError``."""


def settle(config: object, rules: Mapping[str, Rule]) -> None:
    """Check the fields of a frozen dataclass that is being made, and keep them as plain values."""
    for name, rule in rules.items():
        object.__setattr__(config, name, rule(name, getattr(config, name)))


def _from(minimum: int, maximum: int = _INT32) -> Rule:
    return partial(whole, minimum=minimum, maximum=maximum, error=ConfigError)


def _among(names: tuple[str, ...]) -> Rule:
    return partial(one_of, choices=names, error=ConfigError)


def _or_none(rule: Rule) -> Rule:
    return lambda name, value: None if value is None else rule(name, value)


def _part(kind: type) -> Rule:
    def rule(name: str, value: object) -> object:
        instance(name, value, kind, f"{name}={kind.__name__}(...)", ConfigError)
        return value

    return rule


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
    """As it was written, where that is a text."""
    written = text(name, value, ConfigError) if isinstance(value, str) else None
    found = memory_bytes(value if written is None else written, name)
    return found if written is None else written  # type: ignore[return-value]


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
_SCHEDULER: dict[str, Rule] = {
    "max_num_seqs": _from(1, MAX_NUM_SEQS),
    "max_num_batched_tokens": _from_one,
    "safe_point_tokens": _from_one,
    "lookahead_window": _from(0),
    "max_skips": _from(0),
}
_LIMITS: dict[str, Rule] = {"max_open_requests": _from_one, "when_full": _among(WHEN_FULL)}
_ENGINE: dict[str, Rule] = {
    "device": _device,
    "device_memory": _memory,
    "host_memory": _memory,
    "policy": _policy,
    "block_size": _or_none(_block_size),
    "max_model_len": _or_none(_from_one),
    "chat_template": _or_none(_chat_template),
    "dtype": _among(DTYPES),
    "model_impl": _among(MODEL_IMPLS),
    "quantize": _or_none(_among(SCHEMES)),
    "seed": _from(-(2**63), 2**63 - 1),
    "integrity": _among(INTEGRITY),
    "scheduler": _part(SchedulerConfig),
    "planner": _part(PlannerConfig),
    "limits": _part(CallLimits),
    "structure": _part(StructureConfig),
    **dict.fromkeys(("reproducible", "digests", "graphs", "generation_config"), _flag),
}
