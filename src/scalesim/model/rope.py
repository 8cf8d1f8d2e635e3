"""Rotary position embeddings: their settings, frequencies and the table of cosines and sines.

Torch-free. Types: default, linear (positions divided by a factor) and llama3 (Meta's Llama 3.1:
long wavelengths divided, short ones kept, a ramp between).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from scalesim.errors import UnsupportedModelError

Floats: TypeAlias = npt.NDArray[np.float32]
RopeType = Literal["default", "linear", "llama3"]
NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    theta: float = 10000.0
    type: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192

    @staticmethod
    def from_json(raw: Mapping[str, Any], max_position: int) -> RopeConfig:
        """From ``rope_parameters`` or the older ``rope_theta`` and ``rope_scaling``."""
        settings = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind not in NEEDED:
            raise UnsupportedModelError(
                f"rope type {kind!r} is not supported; supported are {', '.join(NEEDED)}"
            )
        if settings.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
            raise UnsupportedModelError("partial_rotary_factor is not 1: not supported")
        if missing := [key for key in NEEDED[kind] if key not in settings]:
            raise UnsupportedModelError(f"rope type {kind!r} needs {', '.join(missing)}")
        rope = RopeConfig(
            theta=float(settings.get("rope_theta", raw.get("rope_theta", 10000.0))),
            type=cast(RopeType, kind),
        )
        if kind == "default":
            return rope
        rope = replace(rope, factor=float(settings["factor"]))
        if kind == "linear":
            return rope
        return replace(
            rope,
            low_freq_factor=float(settings["low_freq_factor"]),
            high_freq_factor=float(settings["high_freq_factor"]),
            original_max_position=int(
                settings.get("original_max_position_embeddings") or max_position
            ),
        )


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Floats:
    """Radians per position of each pair, ``[head_dim / 2]``, in fp32 as models are trained with."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    freqs: Floats = (1.0 / np.power(np.float32(rope.theta), exponents)).astype(np.float32)
    if rope.type == "linear":
        freqs = freqs / np.float32(rope.factor)
    elif rope.type == "llama3":
        freqs = _llama3(rope, freqs)
    return freqs


def _llama3(rope: RopeConfig, freqs: Floats) -> Floats:
    turns = rope.original_max_position * freqs / np.float32(2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    keep = np.clip((turns - rope.low_freq_factor) / span, 0, 1)
    ramped: Floats = ((1 - keep) * freqs / rope.factor + keep * freqs).astype(np.float32)
    return ramped


def cos_sin_table(rope: RopeConfig, head_dim: int, num_positions: int) -> Floats:
    """``[num_positions, head_dim]``: cosines, then sines.

    Angles are rounded to fp32 (as models are trained with); their cosines come from fp64, so that a
    row does not depend on the table's length through the rounding of a vectorized fp32 cosine.
    """
    positions = np.arange(num_positions, dtype=np.float32)
    angles = (positions[:, None] * inverse_frequencies(rope, head_dim)).astype(np.float64)
    return np.concatenate((np.cos(angles), np.sin(angles)), axis=1, dtype=np.float32)
