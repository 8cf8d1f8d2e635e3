"""Who is calling: the agent that a request is taken to come from, and what named the agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scalesim.checks import agent_id
from scalesim.core import AgentId


@dataclass(frozen=True, slots=True)
class Caller:
    """``rung``: what said so; ``"none"`` of a caller that nothing names."""

    agent: AgentId | None
    rung: str


def who_calls(
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    path_agent: str | None = None,
    model_alias: str | None = None,
) -> Caller:
    """The caller of a request. Raises ``RequestError`` for what can name no agent."""
    named = body.get("agent_id")
    if named is not None:
        return Caller(agent_id(named), "agent_id")
    if path_agent is not None:
        return Caller(agent_id(path_agent), "path")
    if model_alias is not None:
        return Caller(agent_id(model_alias), "model")
    return Caller(None, "none")
