"""Settings: frozen dataclasses, composed and never mutated. The command line is built from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from scalesim.errors import ConfigError
from scalesim.memory.look_ahead import PlannerConfig
from scalesim.memory.policies import policy_named

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str | int, name: str) -> int:
    """``"20GB"``, ``"512MiB"`` or a number of bytes; raises ``ConfigError`` naming the setting."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = match.group(2).upper() if match else ""
    if match is None or unit not in _UNITS:
        raise ConfigError(f"{name}={text!r} is no amount of memory; write it like 20GB or 512MiB")
    return int(float(match.group(1)) * _UNITS[unit])


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """``max_num_seqs``: requests that run at once. ``max_num_batched_tokens``: query tokens of a
    step, prefill chunks and decodes together. ``safe_point_tokens``: decode growth reserved at a
    time. ``lookahead_window``: how many waiting requests are looked through for one whose state is
    on the device. ``max_skips``: how often a request is overtaken before it goes first.
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
class EngineConfig:
    """``device_memory``, ``host_memory``: sizes of the two pools, like ``"20GB"``. ``policy``: how
    the planner orders and looks ahead. ``block_size``: tokens a page; chosen for the model if
    ``None``. ``max_model_len``: tokens of prompt and output; the model's own limit if ``None``.
    ``reproducible``: the same text whatever the batch, the policy and the pool sizes. ``seed``: of
    all sampling that is not given one.
    """

    device_memory: str | int = "1GB"
    host_memory: str | int = "4GB"
    policy: str = "deadline"
    block_size: int | None = None
    max_model_len: int | None = None
    reproducible: bool = True
    digests: bool = False
    seed: int = 0
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)

    def __post_init__(self) -> None:
        if policy_named(self.policy).foresight:
            raise ConfigError(
                f"policy={self.policy!r} must know what comes; an engine does not: use it in "
                "scalesim replay, or another policy"
            )
        parse_bytes(self.device_memory, "device_memory")
        parse_bytes(self.host_memory, "host_memory")
