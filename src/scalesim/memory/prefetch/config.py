"""The configuration of the planner of loads."""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.checks import number
from scalesim.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PlannerConfig:
    """Settings of the planner of loads, ``Prefetcher``.

    ``clean_fraction``: dirty segments are saved ahead of their eviction while less than this share
    of the device pool is free. Raises ``ConfigError``.
    """

    clean_fraction: float = 0.25

    def __post_init__(self) -> None:
        share = number("clean_fraction", self.clean_fraction, 0.0, 1.0, ConfigError)
        object.__setattr__(self, "clean_fraction", share)
