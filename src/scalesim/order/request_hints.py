"""What a request says of its agent: read from the parameters that other engines pass through.

    {"agent": "ada", "now": 57, "next": 97, "expect": {"bob": 58}}

``agent`` makes the request, at time ``now`` of the simulation's clock, and calls again at ``next``;
``expect`` says when others call. All are optional, and all times are absolute: read twice, or late,
they say the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from scalesim.checks import agent_id, agent_ids, number, refuse
from scalesim.core import AgentId
from scalesim.distance.clock import MAX_TIME
from scalesim.errors import RequestError
from scalesim.order.board import CallBoard

PARAMETER = "scalesim"
EXPECT_ACTION = "sim.expect"
_log = logging.getLogger(__name__)
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


class HintReader:
    """Reads what requests say. What cannot be read is counted, and logged the first time; its
    request goes on as that of its session, or of nobody."""

    def __init__(self) -> None:
        self.num_malformed = 0

    def hint(self, given: object, session: object = None) -> RequestHint:
        """``read_hint``."""
        try:
            return read_hint(given, session)
        except RequestError as error:
            self._ignore(error)
        return RequestHint(session if type(session) is str else None)

    def actions(self, envelope: Any, now: float) -> dict[AgentId, float]:
        """``read_actions``."""
        try:
            return read_actions(envelope, now)
        except RequestError as error:
            self._ignore(error)
        return {}

    def _ignore(self, error: RequestError) -> None:
        self.num_malformed += 1
        if self.num_malformed == 1:
            _log.warning("a request's hint is ignored, as will be others like it: %s", error)


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
        if not isinstance(said, Mapping):
            refuse(
                f"payload of {EXPECT_ACTION}",
                said,
                "must be an object, as in {'agents': ['bob'], 'in': 3}",
            )
        named = said.get("agents", [said.get("agent_id", said.get("session_id"))])
        at = said.get("at")
        if at is None:
            at = now + number("in", said.get("in"), 0.0, MAX_TIME)
        times |= read_times("at", dict.fromkeys(agent_ids("agents", named), at))
    return times
