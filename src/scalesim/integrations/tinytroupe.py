"""TinyTroupe: a name for each person's calls, and the order of a step.

TinyTroupe takes its server's URL from ``OPENAI_BASE_URL``. Its one client sends no name:
``NamedClient`` is that client with the name of the person who acts, and ``identify`` notes who
does. ``announce`` says in which order people act. TinyTroupe (0.6, from its repository; the package
index has a placeholder) is not imported.
"""

from __future__ import annotations

import copy
import random
from contextvars import ContextVar
from functools import wraps
from typing import Any

from scalesim.integrations.telling import in_order

_acting: ContextVar[str | None] = ContextVar("scalesim_acting_person", default=None)


def named_client(client_class: type) -> type:
    """A subclass of TinyTroupe's OpenAIClient that names whoever acts. Register one::

    register_client("openai", named_client(OpenAIClient)())
    """

    class NamedClient(client_class):  # type: ignore[misc]
        def _raw_model_call(self, model: Any, chat_api_params: dict[str, Any]) -> Any:
            name = _acting.get()
            if name is not None:
                body = chat_api_params.get("extra_body") or {}
                chat_api_params = {**chat_api_params, "extra_body": {**body, "agent_id": name}}
            return super()._raw_model_call(model, chat_api_params)

    return NamedClient


def identify(person_class: type) -> None:
    """Note who acts, for all people of ``person_class``, which is TinyPerson."""
    act = person_class.act  # type: ignore[attr-defined]
    if getattr(act, "is_noted", False):
        return

    @wraps(act)
    def noted_act(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = _acting.set(self.name)
        try:
            return act(self, *args, **kwargs)
        finally:
            _acting.reset(before)

    noted_act.is_noted = True  # type: ignore[attr-defined]
    person_class.act = noted_act  # type: ignore[attr-defined]


def announce(world: Any, engine: Any) -> Any:
    """Have a TinyWorld say before each step who acts and in which order, and return the world.
    The clock of ``engine``, an engine or a ``Client``, goes on by a tick at each step.

    A random order is drawn here, from the same generator and by the same call as TinyTroupe's own.
    """
    sequentially, in_parallel = world._step_sequentially, world._step_in_parallel

    def step_sequentially(
        timedelta_per_step: Any = None, randomize_agents_order: bool = True
    ) -> Any:
        agents = world.agents
        order = copy.copy(agents)
        if randomize_agents_order:
            random.shuffle(order)
        engine.expect(in_order(engine, [person.name for person in order]))
        world.agents = order
        try:
            return sequentially(timedelta_per_step=timedelta_per_step, randomize_agents_order=False)
        finally:
            world.agents = agents
            engine.tick()

    def step_in_parallel(timedelta_per_step: Any = None) -> Any:
        engine.expect(in_order(engine, [person.name for person in world.agents]))
        try:
            return in_parallel(timedelta_per_step=timedelta_per_step)
        finally:
            engine.tick()

    world._step_sequentially, world._step_in_parallel = step_sequentially, step_in_parallel
    return world
