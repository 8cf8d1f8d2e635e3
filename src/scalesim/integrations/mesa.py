"""mesa-llm and Mesa: a name for each agent's calls, and hints from Mesa's list of events.

mesa-llm's requests say nothing of the agent. ``identify`` puts the agent's id behind the model's
name, as in ``openai/model@7``, which a ScaleSim server takes apart. ``announce`` says before each
moment of the simulation's time which agents Mesa has events for, and when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import MethodType
from typing import Any
from weakref import ReferenceType

_LOOK_AHEAD = 256  # events


def name_of(agent: Any) -> str:
    """An agent's name on the engine: its ``unique_id``."""
    return str(agent.unique_id)


def identify(agents: Iterable[Any], name: Callable[[Any], str] = name_of) -> None:
    """Name the calls of mesa-llm's ``agents``, and of their memories. Call it again for agents that
    are made later; naming an agent twice changes nothing."""
    for agent in agents:
        for owner in (agent, getattr(agent, "memory", None)):
            llm = getattr(owner, "llm", None)
            if llm is not None:
                llm.llm_model = f"{llm.llm_model.partition('@')[0]}@{name(agent)}"


def announce(
    model: Any, engine: Any, name: Callable[[Any], str] = name_of, look_ahead: int = _LOOK_AHEAD
) -> Announcer:
    """Tell ``engine`` (a ``scalesim.Engine``, or a ``Client`` of a server) of ``model``'s events:
    of the next ``look_ahead`` whenever the model's time moves. The engine's clock is the model's.

    An event of the model itself, whose class defines ``step``, stands for all its agents. The model
    keeps the announcer; ``close`` ends it.
    """
    from mesa import Model
    from mesa.experimental.mesa_signals import ObservableSignals

    steps_all = type(model).step is not Model.step
    announcer = Announcer(model, engine, name, look_ahead, steps_all=steps_all)
    model.scalesim_announcer = announcer  # Mesa itself holds its listeners weakly
    model.observe("time", ObservableSignals.CHANGED, announcer.moved)
    announcer.tell()
    return announcer


class Announcer:
    """Says when Mesa's events call which agents; what was said before is not said again."""

    def __init__(
        self,
        model: Any,
        engine: Any,
        name: Callable[[Any], str] = name_of,
        look_ahead: int = _LOOK_AHEAD,
        *,
        steps_all: bool = True,
    ) -> None:
        self._model, self._engine, self._name = model, engine, name
        self._look_ahead, self._steps_all = look_ahead, steps_all
        self._told: dict[str, float] = {}
        self._now = float(model.time)

    def moved(self, change: Any) -> None:
        """Mesa's signal that the model's time has moved."""
        now = float(self._model.time)
        if now > self._now:
            self._engine.tick(now - self._now)
            self._now = now
        self.tell()

    def tell(self) -> None:
        """Say what is new in the list of events."""
        times = self.times()
        new = {name: at for name, at in times.items() if self._told.get(name) != at}
        self._told = times
        for name in new:
            self._engine.agent(name)
        if new:
            self._engine.expect({name: at - self._now for name, at in new.items()})

    def times(self) -> dict[str, float]:
        """When each agent's next event is, of those in sight."""
        found: dict[str, float] = {}
        events = self._model._event_list
        for event in [] if events.is_empty() else events.peek_ahead(self._look_ahead):
            for agent in self._called_by(event):
                found.setdefault(self._name(agent), float(event.time))
        return found

    def close(self) -> None:
        """Say nothing any more."""
        self._model.unobserve("time", "changed", self.moved)

    def _called_by(self, event: Any) -> Iterable[Any]:
        owner = owner_of(event.fn())
        if owner is self._model:
            return list(owner.agents) if self._steps_all else ()
        return [owner] if hasattr(owner, "unique_id") else ()


def owner_of(function: Any) -> Any:
    """The object whose method an event calls; ``None`` if it calls none. Recurring events call
    their generator, which calls the method."""
    while isinstance(function, partial):
        function = function.func
    if not isinstance(function, MethodType):
        return None
    owner = function.__self__
    if not (hasattr(owner, "schedule") and hasattr(owner, "function")):
        return owner
    inner = owner.function  # Mesa 3.5 has the method itself, others a weak reference
    return owner_of(inner() if isinstance(inner, ReferenceType) else inner)
