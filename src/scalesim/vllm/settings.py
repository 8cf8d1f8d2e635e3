"""Settings of the plug-in: entries of ``kv_connector_extra_config`` beside vLLM's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scalesim.checks import flag, whole
from scalesim.errors import ConfigError

MAX_PREFETCH_AGENTS = 1024


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """``prefetch_agents``: state is loaded ahead for so many of the agents that call next.
    ``learn``: without hints, next calls are predicted from the calls so far, and each call is one
    tick of the clock."""

    prefetch_agents: int = 4
    learn: bool = False

    @staticmethod
    def of(extra: Mapping[str, Any]) -> PluginSettings:
        """The settings in ``extra``. Raises ``ConfigError``."""
        prefetch = whole(
            "prefetch_agents", extra.get("prefetch_agents", 4), 0, MAX_PREFETCH_AGENTS, ConfigError
        )
        return PluginSettings(prefetch, flag("learn", extra.get("learn", False), ConfigError))
