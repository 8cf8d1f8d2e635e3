"""Rotary position embeddings: their settings, frequencies and the table of cosines and sines.

Torch-free. Cached keys stay rotated as they were, so only rotations that do not depend on a
sequence's length are run: ``dynamic`` up to where it begins to change (below that it is the
default), ``longrope`` up to where it changes from short to long factors.
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
RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """``attention_factor`` multiplies cosines and sines (yarn, longrope). ``beta_fast`` and
    ``beta_slow``: turns within the original context above and below which yarn keeps a frequency,
    and divides it; ``truncate`` rounds the ramp's ends. ``short_factors``: longrope's."""

    theta: float = 10000.0
    type: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()

    @staticmethod
    def from_json(raw: Mapping[str, Any], max_position: int) -> RopeConfig:
        """From ``rope_parameters`` or the older ``rope_theta`` and ``rope_scaling``."""
        settings = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
        kind = settings.get("rope_type", settings.get("type", "default"))
        if "short_factor" in settings:  # Phi-3's older names for it: su, yarn
            kind = "longrope"
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
        if kind in ("linear", "dynamic"):
            return replace(rope, factor=float(settings["factor"]))
        original = int(
            raw.get("original_max_position_embeddings")
            or settings.get("original_max_position_embeddings")
            or max_position
        )
        factor = float(settings.get("factor") or max_position / original)
        rope = replace(rope, factor=factor, original_max_position=original)
        return _DETAILS[rope.type](rope, settings)

    def max_position(self, stated: int) -> int:
        """How many positions this rotation is right for, where the config states so many."""
        if self.type == "longrope":
            return min(stated, self.original_max_position)
        if self.type == "yarn":  # often stated without the extension
            return max(stated, int(self.original_max_position * self.factor))
        return stated


def _llama3_details(rope: RopeConfig, settings: Mapping[str, Any]) -> RopeConfig:
    return replace(
        rope,
        low_freq_factor=float(settings["low_freq_factor"]),
        high_freq_factor=float(settings["high_freq_factor"]),
    )


def _yarn_details(rope: RopeConfig, settings: Mapping[str, Any]) -> RopeConfig:
    return replace(
        rope,
        attention_factor=_yarn_attention(rope.factor, settings),
        beta_fast=float(settings.get("beta_fast") or 32),
        beta_slow=float(settings.get("beta_slow") or 1),
        truncate=bool(settings.get("truncate", True)),
    )


def _yarn_attention(factor: float, settings: Mapping[str, Any]) -> float:
    """Peng et al., YaRN (2023), section 3.4; DeepSeek's ``mscale`` and ``mscale_all_dim``."""
    if (given := settings.get("attention_factor")) is not None:
        return float(given)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    above, below = settings.get("mscale"), settings.get("mscale_all_dim")
    return scale(above) / scale(below) if above and below else scale(1.0)


def _longrope_details(rope: RopeConfig, settings: Mapping[str, Any]) -> RopeConfig:
    """Ding et al., LongRoPE (2024)."""
    attention = settings.get("attention_factor")
    if attention is None:
        growth = math.log(max(1.0, rope.factor)) / math.log(rope.original_max_position)
        attention = math.sqrt(1 + growth)
    short = tuple(float(value) for value in settings["short_factor"])
    return replace(rope, attention_factor=float(attention), short_factors=short)


_DETAILS = {"llama3": _llama3_details, "yarn": _yarn_details, "longrope": _longrope_details}


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Floats:
    """Radians per position of each pair, ``[head_dim / 2]``, in fp32 as models are trained with."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    freqs: Floats = (1.0 / np.power(np.float32(rope.theta), exponents)).astype(np.float32)
    if rope.type == "linear":
        freqs = freqs / np.float32(rope.factor)
    elif rope.type == "llama3":
        freqs = _llama3(rope, freqs)
    elif rope.type == "yarn":
        freqs = _yarn(rope, freqs)
    elif rope.type == "longrope":
        if len(rope.short_factors) != len(freqs):
            raise UnsupportedModelError(
                f"short_factor has {len(rope.short_factors)} numbers; head_dim {head_dim} wants "
                f"{len(freqs)}"
            )
        freqs = (freqs / np.array(rope.short_factors, np.float32)).astype(np.float32)
    return freqs


def _llama3(rope: RopeConfig, freqs: Floats) -> Floats:
    turns = rope.original_max_position * freqs / np.float32(2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    keep = np.clip((turns - rope.low_freq_factor) / span, 0, 1)
    ramped: Floats = ((1 - keep) * freqs / rope.factor + keep * freqs).astype(np.float32)
    return ramped


def _yarn(rope: RopeConfig, freqs: Floats) -> Floats:
    """Pairs that turn often keep their frequency, slow ones are divided, a ramp between."""
    dim = 2 * len(freqs)

    def pair_of(turns: float) -> float:
        ratio = rope.original_max_position / (turns * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low or 0.001
    ramp = np.clip((np.arange(len(freqs), dtype=np.float32) - low) / np.float32(span), 0, 1)
    ramped: Floats = (freqs / rope.factor * ramp + freqs * (1 - ramp)).astype(np.float32)
    return ramped


def cos_sin_table(rope: RopeConfig, head_dim: int, num_positions: int) -> Floats:
    """``[num_positions, head_dim]``: cosines, then sines.

    Angles are rounded to fp32 (as models are trained with); their cosines come from fp64, so that a
    row does not depend on the table's length through the rounding of a vectorized fp32 cosine.
    """
    positions = np.arange(num_positions, dtype=np.float32)
    angles = (positions[:, None] * inverse_frequencies(rope, head_dim)).astype(np.float64)
    table = np.concatenate((np.cos(angles), np.sin(angles)), axis=1)
    return (table * rope.attention_factor).astype(np.float32)
