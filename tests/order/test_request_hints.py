"""Hints inside requests: what is read, and what is refused with a reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from scalesim.errors import RequestError
from scalesim.order.board import CallBoard
from scalesim.order.request_hints import HintReader, RequestHint, read_actions, read_hint


def test_a_whole_hint() -> None:
    said = {"agent": "ada", "now": 57, "next": 97, "expect": {"bob": 58}}
    hint = read_hint({"scalesim": said, "other": 1}, "session")
    assert hint == RequestHint("ada", 57.0, 97.0, {"bob": 58.0})
    board = CallBoard()
    for _ in range(2):  # read twice is read once
        hint.tell(board, "call")
    board.end("call")
    assert board.clock.now == 57.0
    assert [owner.name for owner in board.soonest(3)] == ["bob", "ada"]


@pytest.mark.parametrize("given", [None, {}, {"do_remote_prefill": True}, "text"])
def test_a_session_stands_for_the_agent(given: Any) -> None:
    assert read_hint(given, "s-1") == RequestHint("s-1")
    assert read_hint(given) == RequestHint()


def test_an_older_time_does_not_turn_the_clock_back() -> None:
    board = CallBoard()
    RequestHint("ada", 9.0).tell(board, "new")
    RequestHint("bob", 7.0).tell(board, "old")
    assert board.clock.now == 9.0


@pytest.mark.parametrize(
    "said, rule",
    [
        ("ada", "scalesim='ada' must be an object"),
        ({"agents": ["ada"]}, "field='agents' must be one of: agent, now, next, expect"),
        ({"agent": 1.5}, "agent id=1.5 must be a string or a whole number"),
        ({"next": 3}, "next=3 needs an agent"),
        ({"agent": "ada", "next": float("inf")}, "next=inf must be finite"),
        ({"agent": "ada", "now": "late"}, "now='late' must be a number"),
        ({"expect": ["bob"]}, r"expect=\['bob'\] must map agents to ticks"),
        ({"expect": []}, r"expect=\[\] must map agents to ticks"),
        ({"expect": {"bob": -1}}, "expect of 'bob'=-1 must be finite, at least 0.0"),
    ],
)
def test_what_cannot_be_read_is_refused(said: Any, rule: str) -> None:
    with pytest.raises(RequestError, match=rule):
        read_hint({"scalesim": said})


def test_a_hint_that_cannot_be_read_leaves_the_session(caplog: pytest.LogCaptureFixture) -> None:
    reader = HintReader()
    said = {"scalesim": {"now": "late"}}
    assert reader.hint(said, "ada") == RequestHint("ada")
    assert reader.hint(said) == RequestHint()
    envelope = SimpleNamespace(actions=[SimpleNamespace(action_type="sim.expect", payload=None)])
    assert reader.actions(envelope, 3.0) == {}
    assert reader.num_malformed == 3
    [record] = caplog.records
    assert "now='late' must be a number" in record.getMessage()


def action(kind: str, **payload: Any) -> SimpleNamespace:
    return SimpleNamespace(action_type=kind, payload=payload)


def test_actions_of_an_envelope() -> None:
    envelope = SimpleNamespace(
        actions=[
            action("kv.retain", session_id="eve"),
            action("sim.expect", agent_id="ada", at=9),
            action("sim.expect", agents=["bob", 7], **{"in": 2}),
        ]
    )
    assert read_actions(envelope, 5.0) == {"ada": 9.0, "bob": 7.0, 7: 7.0}
    assert read_actions(None, 5.0) == {}
    with pytest.raises(RequestError, match="in=None must be a number"):
        read_actions(SimpleNamespace(actions=[action("sim.expect", agent_id="ada")]), 0.0)
