"""The configuration of the planner of loads."""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.checks import number
from scalesim.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PlannerConfig:
    """Settings of the planner of loads, ``Prefetcher``.

    ``margin``: slack of the start window as a share of the transfer time; the slack grows up to
    ``max_margin`` while loads come late. ``jitter_s``: seconds added to every window.
    ``clean_fraction``: dirty segments are saved ahead of their eviction while less than this share
    of the device pool is free. Raises ``ConfigError``.
    """

    margin: float = 0.25
    max_margin: float = 4.0
    jitter_s: float = 0.005
    clean_fraction: float = 0.25

    def __post_init__(self) -> None:
        for name, maximum in (
            ("margin", 1e6), ("max_margin", 1e6), ("jitter_s", 1e6), ("clean_fraction", 1.0),
        ):  # fmt: skip
            object.__setattr__(
                self, name, number(name, getattr(self, name), 0.0, maximum, ConfigError)
            )
