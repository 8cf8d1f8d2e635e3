"""AgentSociety (``agentsociety2``): a name for each agent's calls, and the order of a step.

All agents of a Ray worker share one client, whose requests name nobody. ``NamedCalls`` is a mix-in
for an agent's class that adds ``agent_id`` to each request; as it is part of the class, it is there
in every worker. ``announce`` says who calls in a step, and in which order. The package is not
imported.

Two of its environment variables matter (docs/integrations.md): its own timeout of 60 s, and a cut
of its concurrency when calls become slower, which a queue looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scalesim.integrations.telling import done, in_order

ENVIRONMENT: Mapping[str, str] = {
    "AGENTSOCIETY_LLM_REQUEST_TIMEOUT": "600",
    "AGENTSOCIETY_LLM_LATENCY_DEGRADE_FACTOR": "inf",
}
"""Set these before ``agentsociety2`` is imported, where a server of one's own answers."""


class NamedDispatcher:
    """Calls of one agent through ``dispatcher``, each with the agent's ``name``. A caller's own
    ``extra_body`` is kept beside it, and so is that of the dispatcher's role."""

    def __init__(self, dispatcher: Any, name: str) -> None:
        self._dispatcher, self._name = dispatcher, name

    async def call(self, *args: Any, **kwargs: Any) -> Any:
        """The dispatcher's ``call``."""
        body = kwargs.pop("extra_body", None)
        if body is None and kwargs.get("thinking", "inherit") != "off":
            thinking = getattr(self._dispatcher, "thinking", None)
            role = thinking.request_kwargs() if thinking is not None else {}
            body = role.get("extra_body")  # which any extra_body of a caller replaces
        body = {**(body or {}), "agent_id": self._name}
        return await self._dispatcher.call(*args, extra_body=body, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._dispatcher, name)


class NamedCalls:
    """A mix-in: ``class Citizen(NamedCalls, PersonAgent)`` names its calls by ``id``."""

    _dispatcher: Any
    id: Any

    def _bind_services(self, service_proxy: Any) -> None:
        super()._bind_services(service_proxy)  # type: ignore[misc]
        self._dispatcher = NamedDispatcher(self._dispatcher, str(self.id))


def announce(society: Any, engine: Any) -> Any:
    """Have ``society`` say before each step who calls in it, and return ``society``. ``engine`` is
    a client of a server, ``Client`` or ``AsyncClient``; its clock goes on by a tick at each step.

    Every agent acts in every step, in the order of their ids: after a step, each is a step away.
    """
    step = society.step

    async def announced_step(*args: Any, **kwargs: Any) -> Any:
        names = [str(id) for id in society._agent_ids]
        await done(engine.expect(in_order(engine, names)))
        try:
            return await step(*args, **kwargs)
        finally:
            await done(engine.tick())

    society.step = announced_step
    return society
