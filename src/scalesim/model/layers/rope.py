"""Rotary position embeddings: settings, frequencies and the table of cosines and sines.

Cached keys keep their rotation, so only rotations that do not depend on a sequence's length are
supported: ``dynamic`` up to the length at which it begins to change (below that it is the default),
``longrope`` up to the length at which it changes from short to long factors. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from scalesim.core import Floats
from scalesim.errors import UnsupportedModelError
from scalesim.model.checkpoint.fields import MOST_WHOLE, Fields

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
    """Settings of a rotation.

    ``attention_factor`` multiplies cosines and sines (yarn, longrope). Yarn keeps frequencies with
    more than ``beta_fast`` turns within the original context, divides those with fewer than
    ``beta_slow``, and ramps between; ``truncate`` rounds the ramp's ends. ``short_factors`` are
    longrope's.
    """

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
        """Parse ``rope_parameters``, or the older ``rope_theta`` and ``rope_scaling``. Raises
        ``UnsupportedModelError``."""
        fields = Fields("config.json", raw)
        given = {**fields.table("rope_scaling").raw, **fields.table("rope_parameters").raw}
        settings = Fields("config.json: rope_parameters", given)
        kind = settings.name("rope_type" if "rope_type" in settings else "type", "default")
        if "short_factor" in settings:  # Phi-3 called longrope su and yarn before
            kind = "longrope"
        if kind not in NEEDED:
            raise UnsupportedModelError(
                f"rope type {kind!r} is not supported; supported are {', '.join(NEEDED)}"
            )
        whole = fields.number("partial_rotary_factor", 1.0, null=True)
        if settings.number("partial_rotary_factor", whole, null=True) != 1.0:
            raise UnsupportedModelError("partial_rotary_factor is not 1: not supported")
        if missing := [key for key in NEEDED[kind] if key not in settings]:
            raise UnsupportedModelError(f"rope type {kind!r} needs {', '.join(missing)}")
        outer_theta = fields.number("rope_theta", 10000.0, above=1, null=True)
        rope = RopeConfig(
            theta=settings.number("rope_theta", outer_theta, above=1, null=True),
            type=cast(RopeType, kind),
        )
        if kind == "default":
            return rope
        if kind in ("linear", "dynamic"):
            return replace(rope, factor=settings.number("factor", above=0))
        key = "original_max_position_embeddings"
        original = settings.whole(key, max_position, minimum=2, null=True)
        original = fields.whole(key, original, minimum=2, null=True)
        factor = settings.number("factor", max_position / original, above=0, null=True)
        rope = replace(rope, factor=factor, original_max_position=original)
        return _DETAILS[rope.type](rope, settings)

    def max_position(self, stated: int) -> int:
        """The number of positions for which this rotation is valid, given the config's ``stated``
        number."""
        if self.type == "longrope":
            return min(stated, self.original_max_position)
        if self.type == "yarn":  # configs often state the length without the extension
            return min(max(stated, int(self.original_max_position * self.factor)), MOST_WHOLE)
        return stated


def _llama3_details(rope: RopeConfig, settings: Fields) -> RopeConfig:
    low = settings.number("low_freq_factor", above=0)
    high = settings.number("high_freq_factor", above=0)
    if high <= low:
        raise settings.wrong("high_freq_factor", high, f"above low_freq_factor, {low:g}")
    return replace(rope, low_freq_factor=low, high_freq_factor=high)


def _yarn_details(rope: RopeConfig, settings: Fields) -> RopeConfig:
    return replace(
        rope,
        attention_factor=_yarn_attention(rope.factor, settings),
        beta_fast=settings.number("beta_fast", 0.0, minimum=0, null=True) or 32.0,
        beta_slow=settings.number("beta_slow", 0.0, minimum=0, null=True) or 1.0,
        truncate=settings.flag("truncate", True),
    )


def _yarn_attention(factor: float, settings: Fields) -> float:
    """Yarn's attention factor: Peng et al., YaRN (2023), section 3.4; DeepSeek's ``mscale`` and
    ``mscale_all_dim``."""
    given: float | None = settings.number("attention_factor", None, above=0, null=True)
    if given is not None:
        return given

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    above = settings.number("mscale", 0.0, minimum=0, null=True)
    below = settings.number("mscale_all_dim", 0.0, minimum=0, null=True)
    return scale(above) / scale(below) if above and below else scale(1.0)


def _longrope_details(rope: RopeConfig, settings: Fields) -> RopeConfig:
    """Longrope's settings: Ding et al., LongRoPE (2024)."""
    growth = math.log(max(1.0, rope.factor)) / math.log(rope.original_max_position)
    attention = settings.number("attention_factor", math.sqrt(1 + growth), above=0, null=True)
    settings.numbers("long_factor", above=0)
    short = settings.numbers("short_factor", above=0)
    return replace(rope, attention_factor=attention, short_factors=short)


_DETAILS = {"llama3": _llama3_details, "yarn": _yarn_details, "longrope": _longrope_details}


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Floats:
    """The frequency of each pair, in radians per position, ``[head_dim / 2]``, in fp32 as in
    models' training."""
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
    """Yarn's frequencies: fast pairs keep theirs, slow ones are divided, with a ramp between."""
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
    """The rotary table, ``[num_positions, head_dim]``: cosines, then sines.

    Angles are rounded to fp32, as in models' training. Their cosines are computed in fp64: the
    rounding of a vectorized fp32 cosine could make a row depend on the table's length.
    """
    positions = np.arange(num_positions, dtype=np.float32)
    angles = (positions[:, None] * inverse_frequencies(rope, head_dim)).astype(np.float64)
    table = np.concatenate((np.cos(angles), np.sin(angles)), axis=1)
    return (table * rope.attention_factor).astype(np.float32)
