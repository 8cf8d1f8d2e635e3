"""OASIS (``camel-oasis``): a name for each agent's calls, and the active set before it calls.

OASIS's agents share one CAMEL model, whose requests name nobody: ``identify`` gives each agent a
copy that does. OasisEnv.step(actions) holds who is active before the recommender runs, which
takes long: ``announce`` says so in time. Neither package is imported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from scalesim.integrations.telling import done, in_order


def name_of(agent: Any) -> str:
    """An agent's name on the engine: its ``social_agent_id``."""
    return str(agent.social_agent_id)


def identify(agents: Iterable[Any], name: Callable[[Any], str] = name_of) -> None:
    """Name the calls of ``agents``, which are all in AgentGraph.get_agents(). The copies of a
    model share its connections."""
    for agent in agents:
        manager = agent.model_backend
        agent.model_backend = type(manager)(
            [_named(model, name(agent)) for model in manager.models],
            scheduling_strategy=manager.scheduling_strategy.__name__,
        )


def _named(model: Any, name: str) -> Any:
    named = copy.copy(model)
    body = model.model_config_dict.get("extra_body") or {}
    named.model_config_dict = {**model.model_config_dict, "extra_body": {**body, "agent_id": name}}
    return named


def announce(env: Any, engine: Any, name: Callable[[Any], str] = name_of) -> Any:
    """Have ``env`` say before each step who is active in it, and return ``env``. ``engine`` is an
    ``Engine``, or a client of a server, ``Client`` or ``AsyncClient``; its clock goes on by a tick
    at each step.

    Agents are expected in the order of ``actions``, in which the environment starts them.
    """
    step = env.step

    async def announced_step(actions: Mapping[Any, Any]) -> Any:
        names = [name(agent) for agent, action in actions.items() if calls_model(action)]
        await done(engine.expect(in_order(engine, names)))
        try:
            return await step(actions)
        finally:
            await done(engine.tick())

    env.step = announced_step
    return env


def calls_model(action: Any) -> bool:
    """Whether an action, or one of a list of them, makes its agent call the model: LLMAction,
    and a ManualAction that is an interview."""
    if isinstance(action, list):
        return any(map(calls_model, action))
    kind = getattr(action, "action_type", None)
    return kind is None or getattr(kind, "value", kind) == "interview"
