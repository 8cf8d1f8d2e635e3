"""What a request says of its agent: read from the parameters that other engines pass through.

    {"agent": "ada", "now": 57, "next": 97, "expect": {"bob": 58}}

``agent`` makes the request, at time ``now`` of the simulation's clock, and calls again at ``next``;
``expect`` says when others call. All are optional, and all times are absolute: read twice, or late,
they say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from scalesim.checks import agent_id, agent_ids, number, refuse
from scalesim.core import AgentId
from scalesim.distance.clock import MAX_TIME
from scalesim.order.board import CallBoard

PARAMETER = "scalesim"
EXPECT_ACTION = "sim.expect"
_FIELDS = ("agent", "now", "next", "expect")


class RequestHint(NamedTuple):
    """The agent of a request, ``None`` for nobody's; ``now``, the agent's next call, and those of
    others, in ticks of the clock."""

    agent: AgentId | None = None
    now: float | None = None
    next_call: float | None = None
    expect: Mapping[AgentId, float] = {}

    def tell(self, board: CallBoard, call: str) -> None:
        """Begin ``call`` on ``board``, with all that the hint says."""
        if self.now is not None:
            board.tick(to=self.now)
        board.begin(call, self.agent, self.next_call)
        if self.expect:
            board.expect(self.expect)


def read_hint(given: object, session: object = None) -> RequestHint:
    """The hint in ``given``, a request's parameters or ``None``. Without a named agent, ``session``
    stands for it. Raises ``RequestError`` for what cannot be read."""
    said = given.get(PARAMETER) if isinstance(given, Mapping) else None
    if said is None:
        return RequestHint(None if session is None else agent_id(session))
    if not isinstance(said, Mapping):
        refuse(PARAMETER, said, "must be an object, as in {'agent': 'ada', 'next': 97}")
    for field in said:
        if field not in _FIELDS:
            refuse(f"{PARAMETER} field", field, f"must be one of: {', '.join(_FIELDS)}")
    agent = said.get("agent", session)
    agent = None if agent is None else agent_id(agent)
    now, next_call, expect = said.get("now"), said.get("next"), said.get("expect")
    if now is not None:
        now = number("now", now, 0.0, MAX_TIME)
    if next_call is not None:
        if agent is None:
            refuse("next", next_call, "needs an agent, or a session_id, whose call it is")
        next_call = number("next", next_call, 0.0, MAX_TIME)
    others = {} if expect is None else read_times("expect", expect)
    return RequestHint(agent, now, next_call, others)


def read_times(name: str, given: Any) -> dict[AgentId, float]:
    """Times by agent, in ticks. Raises ``RequestError``."""
    if not isinstance(given, Mapping):
        refuse(name, given, "must map agents to ticks, as in {'bob': 58}")
    return {
        agent_id(agent): number(f"{name} of {agent!r}", time, 0.0, MAX_TIME)
        for agent, time in given.items()
    }


def read_actions(envelope: Any, now: float) -> dict[AgentId, float]:
    """When agents call next by the actions ``sim.expect`` of a ``KvHintsEnvelope`` or ``None``;
    ``in`` counts from ``now``. Other actions are somebody else's. Raises ``RequestError``."""
    times: dict[AgentId, float] = {}
    for action in () if envelope is None else envelope.actions:
        if action.action_type != EXPECT_ACTION:
            continue
        said = action.payload
        named = said.get("agents", [said.get("agent_id", said.get("session_id"))])
        at = said.get("at")
        if at is None:
            at = now + number("in", said.get("in"), 0.0, MAX_TIME)
        times |= read_times("at", dict.fromkeys(agent_ids("agents", named), at))
    return times
