"""Settings: frozen dataclasses, composed and never mutated. The command line is built from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Literal

from scalesim.errors import ConfigError
from scalesim.memory.look_ahead import PlannerConfig
from scalesim.memory.policies import policy_named

INTEGRITY = ("quarantine", "raise", "off")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str | int, name: str) -> int:
    """``"20GB"``, ``"512MiB"`` or a number of bytes; raises ``ConfigError`` naming the setting."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = match.group(2).upper() if match else ""
    if match is None or unit not in _UNITS:
        raise ConfigError(f"{name}={text!r} is no amount of memory; write it like 20GB or 512MiB")
    return int(float(match.group(1)) * _UNITS[unit])


def memory_bytes(text: str | int, name: str) -> int | None:
    """``parse_bytes``; ``None`` for ``"auto"``."""
    return None if text == "auto" else parse_bytes(text, name)


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
        for name in ("max_num_seqs", "max_num_batched_tokens", "safe_point_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1")
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
        if self.max_open_requests < 1:
            raise ConfigError(f"max_open_requests={self.max_open_requests}; it must be at least 1")
        if self.when_full not in ("wait", "error"):
            raise ConfigError(f"when_full={self.when_full!r}; it is 'wait' or 'error'")


@dataclass(frozen=True, slots=True)
class StructureConfig:
    """Limits of structured output; a structure that passes one is refused, or ends its request.

    ``max_chars``: of a schema, expression or grammar. ``compile_fuel``, ``step_fuel`` and
    ``step_items`` bound time in llguidance's units of work, the same on any machine (it gives
    about 50 000, 14 000 and 20 000 a millisecond). ``max_states`` (1 to 2 kB each) and
    ``max_symbols`` bound a structure's memory. ``max_cached``: structures kept compiled.
    Raises ``ConfigError``.
    """

    max_chars: int = 1 << 17
    compile_fuel: int = 1_000_000
    step_fuel: int = 200_000
    step_items: int = 50_000
    max_states: int = 50_000
    max_symbols: int = 500_000
    max_cached: int = 256

    def __post_init__(self) -> None:
        for field_ in fields(self):
            if getattr(self, field_.name) < 1:
                value = getattr(self, field_.name)
                raise ConfigError(f"{field_.name}={value}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """``device``: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``: a GPU if there is one.
    ``device_memory``, ``host_memory``: sizes of the two pools, like ``"20GB"``; ``"auto"`` is 1 GB
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
        if policy_named(self.policy).foresight:
            raise ConfigError(
                f"policy={self.policy!r} must know what comes; an engine does not: use it in "
                "scalesim replay, or another policy"
            )
        if self.integrity not in INTEGRITY:
            raise ConfigError(f"integrity={self.integrity!r}; it is one of: {', '.join(INTEGRITY)}")
        memory_bytes(self.device_memory, "device_memory")
        memory_bytes(self.host_memory, "host_memory")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(
                f"device={self.device!r}; it is one of auto, cpu, cuda, cuda:0, cuda:1 and so on"
            )
