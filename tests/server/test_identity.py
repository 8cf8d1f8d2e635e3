"""Who calls: each rung of the ladder, templates, and the bounds of what is remembered."""

from __future__ import annotations

from typing import Any

import pytest

from scalesim.errors import RequestError
from scalesim.server.identity import Identity, agent_name, scoped, unscoped

LADDER: list[tuple[str, str]] = [
    ("agent_id", "body"),
    ("session_id", "body"),
    ("X-ScaleSim-Agent", "header"),
    ("X-Session-ID", "header"),
    ("x-dynamo-session-id", "header"),
    ("x-smg-routing-key", "header"),
    ("prompt_cache_key", "body"),
    ("user", "body"),
    ("model", "alias"),
    ("path", "path"),
]


def said(*texts: str, system: str | None = "You are Ada.") -> dict[str, Any]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": messages + [{"role": "user", "content": text} for text in texts]}


def call(identity: Identity, rungs: list[tuple[str, str]], scope: str = "") -> tuple[str, Any]:
    """The rung and the name, where each of ``rungs`` names an agent after itself."""
    body = said("hello") | {name: f"by {name}" for name, where in rungs if where == "body"}
    headers = {name.lower(): f"by {name}" for name, where in rungs if where == "header"}
    given = {where: f"by {name}" for name, where in rungs if where in ("alias", "path")}
    caller = identity.who_calls(body, headers, given.get("path"), given.get("alias"), scope)
    return caller.rung, caller.name


@pytest.mark.parametrize("first", range(len(LADDER)))
def test_the_first_rung_that_names_someone_counts(first: int) -> None:
    name = LADDER[first][0]
    assert call(Identity(), LADDER[first:]) == (name, f"by {name}")
    assert call(Identity(), LADDER[first : first + 1]) == (name, f"by {name}")


def test_a_number_is_its_digits() -> None:
    caller = Identity().who_calls({"agent_id": 7}, {})
    assert (caller.agent, caller.headers) == (
        "7",
        {
            "X-ScaleSim-Agent": "7",
            "X-ScaleSim-Identity": "agent_id",
            "X-ScaleSim-Hint": "none",
        },
    )


@pytest.mark.parametrize("bad", ["", "a\nb", "x" * 257, "\ud800", 2**70, True, 1.5, ["ada"], {}])
def test_names_that_are_none(bad: object) -> None:
    with pytest.raises(RequestError, match=r"agent_id=.*printable text of 1 to 256"):
        Identity().who_calls({"agent_id": bad}, {})
    assert Identity().who_calls({"user": bad} | said("hello"), {}).rung == "fingerprint"
    assert agent_name("agent_id", "x" * 256) == "x" * 256


def test_headers_are_utf8() -> None:
    wire = "Zoë".encode().decode("latin-1")
    caller = Identity().who_calls({}, {"x-session-id": wire})
    assert caller.name == "Zoë" and caller.headers["X-ScaleSim-Agent"] == "Zo%C3%AB"
    assert Identity().who_calls({}, {"x-session-id": "Zo\xeb"}).name == "Zo\xeb"


def test_keys_have_agents_of_their_own() -> None:
    identity = Identity()
    one, other = (identity.who_calls({"agent_id": "ada"}, {}, scope=key) for key in ("k1", "k2"))
    assert one.name == other.name == "ada" and one.agent != other.agent
    assert unscoped(one.agent, "k1") == "ada" and unscoped(one.agent, "k2") is None
    assert unscoped(one.agent, "") is None and unscoped("ada", "") == "ada"
    assert scoped("ada", "") == "ada"
    prints = {identity.who_calls(said("hello"), {}, scope=key).name for key in ("k1", "k2")}
    assert len(prints) == 2


# -- fingerprints ------------------------------------------------------------------------------


def test_a_system_message_is_an_agent() -> None:
    identity = Identity()
    first = identity.who_calls(said("hello"), {})
    assert first.rung == "fingerprint" and first.name is not None
    assert identity.who_calls(said("hello", "and then"), {}).name == first.name
    assert identity.who_calls(said("hello", system="You are Bob."), {}).name != first.name
    assert identity.who_calls(said("hello", system=None), {}).rung == "none"
    parts = {"messages": [{"role": "system", "content": [{"type": "text", "text": "You"}]}]}
    assert identity.who_calls(parts, {}).rung == "fingerprint"
    for messages in (None, [], ["hello"], [{}], "hello"):
        assert identity.who_calls({"messages": messages}, {}).agent is None


def test_one_agent_may_ask_the_same_twice() -> None:
    identity = Identity()
    with identity.who_calls(said("hello"), {}) as first:
        again = identity.who_calls(said("hello"), {})
        assert again.agent == first.agent
    assert identity.who_calls(said("bye"), {}).agent == first.agent


def test_calls_of_different_prompts_at_once_are_a_template() -> None:
    identity = Identity()
    with identity.who_calls(said("I am Ada"), {}):
        other = identity.who_calls(said("I am Bob"), {})
        assert (other.agent, other.rung) == (None, "template")
    later = identity.who_calls(said("I am Ada"), {})
    assert (later.agent, later.rung) == (None, "template")
    assert later.headers == {
        "X-ScaleSim-Identity": "template",
        "X-ScaleSim-Hint": "none",
    }


def test_a_call_that_failed_is_over() -> None:
    identity = Identity()
    with pytest.raises(ValueError, match="broken"), identity.who_calls(said("I am Ada"), {}):
        raise ValueError("broken")
    assert identity.who_calls(said("I am Bob"), {}).rung == "fingerprint"


def test_what_is_remembered_of_messages_is_bounded() -> None:
    identity = Identity(max_fingerprints=2)
    with identity.who_calls(said("one"), {}):
        assert identity.who_calls(said("two"), {}).rung == "template"
    for system in ("Bob", "Cy"):
        identity.who_calls(said("hello", system=system), {})
    assert identity.who_calls(said("two"), {}).rung == "fingerprint"  # nothing is known of it


# -- the bound on agents -----------------------------------------------------------------------


def test_who_called_longest_ago_is_forgotten() -> None:
    gone: list[str] = []
    identity = Identity(gone.extend, max_agents=3)
    with identity.who_calls({"agent_id": "ada"}, {}):  # calls all the time
        for name in ("bob", "cy", "bob", "dee", "eve"):
            with identity.who_calls({"agent_id": name}, {}):
                pass
    assert gone == ["cy", "bob"] and len(identity) == 3 and "ada" in identity
    identity.drop(["ada"])
    assert "ada" not in identity
    identity.ends("ada")  # a call that was open when its agent was forgotten
    assert "ada" not in identity


def test_who_is_only_spoken_of_makes_nobody_leave() -> None:
    gone: list[str] = []
    identity = Identity(gone.extend, max_agents=3)
    with identity.who_calls({"agent_id": "ada"}, {}):
        pass
    assert identity.let_in(["ada", "bob", "cy", "dee"]) == (["ada", "bob", "cy"], ["dee"])
    assert identity.let_in(["bob", "ada"]) == (["bob", "ada"], [])
    assert gone == []
