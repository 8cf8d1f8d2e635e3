"""Settings of the plug-in: entries of ``kv_connector_extra_config`` beside vLLM's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scalesim.checks import flag, whole
from scalesim.errors import ConfigError

MAX_PREFETCH_AGENTS = 1024
MAX_PREFETCH_ADAPTERS = 64


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """``prefetch_agents``: state is loaded ahead for so many of the agents that call next.
    ``prefetch_adapters``: so many LoRA adapters may be read from disk at a hint or tick out of
    band, while the engine waits. ``learn``: without hints, next calls are predicted from the calls
    so far, and each call is one tick of the clock."""

    prefetch_agents: int = 4
    learn: bool = False
    prefetch_adapters: int = 0

    @staticmethod
    def of(extra: Mapping[str, Any]) -> PluginSettings:
        """The settings in ``extra``. Raises ``ConfigError``."""

        def count(name: str, default: int, most: int) -> int:
            return whole(name, extra.get(name, default), 0, most, ConfigError)

        return PluginSettings(
            count("prefetch_agents", 4, MAX_PREFETCH_AGENTS),
            flag("learn", extra.get("learn", False), ConfigError),
            count("prefetch_adapters", 0, MAX_PREFETCH_ADAPTERS),
        )
