"""Sources for agents that call one after another: along a graph, or in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scalesim.checks import agent_id, agent_ids, flag, number, reading, refuse, shown, whole
from scalesim.core import AgentId
from scalesim.distance.estimates import DatedSource, Estimates, Source
from scalesim.errors import ConfigError


class Graph(Source):
    """Agents whose calls lead to calls of their successors: a workflow, an event bus, the spread of
    a message (the ScaleSim paper's breadth-first distance).

    ``edges`` maps an agent to its successors, or to {successor: probability}. When an agent calls,
    its successors are expected ``delay`` ticks later, theirs after another ``delay``, and so on.
    Without probabilities, all of ``n`` successors are expected with ``fan_out``, else one of them,
    so each with probability 1/n (times 0.9 in both cases). Probabilities multiply along hops. At
    most ``max_hops`` hops and ``max_reached`` agents are followed, and no path that is less likely
    than ``least``. Raises ``ConfigError`` for wrong arguments.
    """

    def __init__(
        self,
        edges: Mapping[AgentId, Sequence[AgentId] | Mapping[AgentId, float]],
        *,
        delay: float = 1.0,
        fan_out: bool = True,
        max_hops: int = 3,
        least: float = 0.1,
        max_reached: int = 256,
        name: str = "graph",
    ) -> None:
        super().__init__(name)
        self._delay = number("delay", delay, 0.0, error=ConfigError, above=True)
        self._fan_out = flag("fan_out", fan_out, ConfigError)
        self._max_hops = whole("max_hops", max_hops, 1, error=ConfigError)
        self._least = number("least", least, 0.0, 1.0, ConfigError)
        self._max_reached = whole("max_reached", max_reached, 0, error=ConfigError)
        if not isinstance(edges, Mapping):
            refuse("edges", edges, "must map an agent to its successors", ConfigError)
        with reading("edges", ConfigError):
            listed = list(edges.items())
        self._edges = {
            agent_id(agent, ConfigError): self._weighed(agent, after) for agent, after in listed
        }
        self._changed: dict[AgentId, tuple[float, float]] = {}

    def connect(
        self, agent: AgentId, successors: Sequence[AgentId] | Mapping[AgentId, float]
    ) -> None:
        """Replace the successors of ``agent``. Raises ``ConfigError`` for wrong arguments."""
        agent = agent_id(agent, ConfigError)
        weighed = self._weighed(agent, successors)
        self._tell(lambda now: self._edges.update({agent: weighed}))

    def called(self, agent: AgentId, now: float) -> None:
        reached = {agent}
        front = {agent: 1.0}
        for hop in range(1, self._max_hops + 1):
            found: dict[AgentId, float] = {}
            for follower, likely in front.items():
                for other, share in self._edges.get(follower, {}).items():
                    if other not in reached:
                        found[other] = max(found.get(other, 0.0), likely * share)
            front = {other: likely for other, likely in found.items() if likely >= self._least}
            for other, likely in front.items():
                if len(reached) > self._max_reached:
                    return
                reached.add(other)
                self._changed[other] = (now + hop * self._delay, likely)

    def forget(self, agents: Sequence[AgentId]) -> None:
        gone = set(agents)
        edges = self._edges
        self._edges = {
            agent: {other: share for other, share in after.items() if other not in gone}
            for agent, after in edges.items()
            if agent not in gone
        }
        for agent in agents:
            self._changed.pop(agent, None)

    def changes(self, now: float) -> Estimates:
        self._read_mail(now)
        changed, self._changed = self._changed, {}
        at, likely = zip(*changed.values(), strict=True) if changed else ((), ())
        return Estimates(tuple(changed), at, likely)

    def _weighed(
        self, agent: AgentId, successors: Sequence[AgentId] | Mapping[AgentId, float]
    ) -> dict[AgentId, float]:
        if not isinstance(successors, Mapping):
            others = agent_ids("successors", successors, ConfigError)
            share = 0.9 if self._fan_out else 0.9 / max(1, len(others))
            return dict.fromkeys(others, share)
        with reading("successors", ConfigError):
            listed = list(successors.items())
        return {
            agent_id(other, ConfigError): _share(agent, other, given) for other, given in listed
        }


def _share(agent: AgentId, other: AgentId, value: object) -> float:
    edge = f"edge {shown(agent)} → {shown(other)}: probability"
    return number(edge, value, 0.0, 1.0, ConfigError)


class Turns(DatedSource):
    """Agents that call in a known order: round-robin, or in an order that is announced each time.

    With ``order``, each agent calls once per ``period`` ticks, for ever. ``announce`` gives an
    order for one period. The order is exact within a tick as well: agent i of n is expected i/n
    into the period. Raises ``ConfigError`` for wrong arguments.
    """

    def __init__(
        self,
        order: Sequence[AgentId] = (),
        *,
        period: float = 1.0,
        name: str = "turns",
        confidence: float = 1.0,
    ) -> None:
        super().__init__(name, confidence)
        self._period = number("period", period, 0.0, error=ConfigError, above=True)
        order = agent_ids("order", order, ConfigError)
        self._place = {agent: index / len(order) for index, agent in enumerate(order)}
        if len(self._place) < len(order):
            raise ConfigError("an agent has two places in the order; announce() orders instead")
        self._tell(lambda now: self._set(order, now))

    def announce(self, order: Sequence[AgentId], at: float) -> None:
        """Note that agents call in this order in the period that begins at time ``at``, in ticks.
        Raises ``RequestError`` for a time that is no number, or for wrong ids."""
        at, order = number("at", at), agent_ids("order", order)
        self._tell(lambda now: self._set(order, at))

    def called(self, agent: AgentId, now: float) -> None:
        place = self._place.get(agent)
        if place is not None:
            begin = math.floor(now / self._period) * self._period
            self._changed[agent] = begin + (1.0 + place) * self._period

    def forget(self, agents: Sequence[AgentId]) -> None:
        super().forget(agents)
        for agent in agents:  # the others keep their places
            self._place.pop(agent, None)

    def _set(self, order: Sequence[AgentId], begin: float) -> None:
        for index, agent in enumerate(order):
            self._changed[agent] = begin + self._period * index / len(order)
