"""Forgetting agents: all that is theirs goes, at any moment; forks and neighbours keep what they
have; whoever is made under the id later was never there."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalesim.core import AgentId
from scalesim.distance import Activation, Graph, Learned, Plan, Predrawn, Proximity, Source, Turns
from scalesim.engine.agent import Agent
from scalesim.engine.engine import Engine
from scalesim.engine.loop import EngineLoop
from scalesim.engine.sources import EngineListener
from scalesim.errors import RequestError, UnknownAgentError
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.eviction.policies import POLICIES
from scalesim.requests.prepare import Intake
from scalesim.sampling.keys import SamplingKeys
from scalesim.testing.tag_parts import tag_parts
from tests.engine.world import tiny_engine
from tests.inside import between_steps, part, reachable

VOCAB = 512
BOUNDED = ("page_log", "scheduler.work")  # the last events, the newest kinds of calls


def engine(sources: list[Source] | None = None, **parts: Any) -> Engine:
    made = tag_parts(**{"device_pages": 60, "host_pages": 120, "vocab_size": VOCAB, **parts})
    return Engine(made, sources=sources or [])


def prompt(number: int, count: int = 40) -> list[int]:
    return np.random.default_rng(number).integers(0, VOCAB, count).tolist()


def drive(made: Engine) -> None:
    while made.step():
        pass


def ask(made: Engine, agent: Agent, tokens: list[int], count: int = 3) -> tuple[int, ...]:
    call = made.submit(agent.request(tokens, max_tokens=count, ignore_eos=True))
    drive(made)
    return call.result().token_ids


def check_empty(made: Engine) -> None:
    memory = made.parts.memory
    memory.drain()
    memory.poll()
    check_integrity(memory)
    assert memory.device.num_free == memory.device.num_usable
    assert memory.host.num_free == memory.host.num_usable


def all_sources(names: list[str]) -> list[Source]:
    """One of each kind that speaks of agents, knowing ``names``."""
    count = len(names)
    rng = np.random.default_rng(1)
    plan = Plan()
    for name in names:
        plan.follow(name, 2.0, 3.0)
    return [
        Learned(),
        Turns(names),
        Graph(dict.fromkeys(names, names)),
        plan,
        Activation(names, 0.3),
        Predrawn(lambda step: [name for name in names if rng.random() < 0.3]),
        Proximity(names, rng.random((count, 2)), radius=0.2, max_speed=0.1),
    ]


def holders(made: Engine, agent: AgentId) -> list[str]:
    """Where an agent's id is written down."""
    found = reachable(made, but=(Proximity, Activation))  # fixed lists of who is where, how active
    return [path for path, one in found if type(one) is str and one == agent]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_nothing_of_the_forgotten_is_left_anywhere(policy: str, tmp_path: Path) -> None:
    gone = "somebody who is called like nobody else"
    names = ["ada", "bob", gone]
    sources = all_sources(names)
    parts = tag_parts(device_pages=60, host_pages=120, vocab_size=VOCAB, policy=policy)
    made = Engine(parts, sources=sources, record=tmp_path / "trace")
    agents = [made.agent(name) for name in names]
    for step in range(6):
        for agent in agents:
            agent.expect(1.0 + step % 2)
            ask(made, agent, prompt(step, 60))
        made.tick()
    made.agent(gone).expect(9.0)
    drive(made)
    assert len(holders(made, gone)) > 10
    made.forget([gone])
    drive(made)
    part(made, EngineListener).has_news()
    made.tick()
    drive(made)
    # what the simulation drew, and ``active`` will tell, is its own; an order's heaps drop what
    # left it when that is much, and a few entries are let be
    kept = ("_draw", "_known", "_unknown", "_entering", "_near", "_buckets")
    left = [path for path in holders(made, gone) if not any(name in path for name in kept)]
    assert not left, left
    assert not any("failed" in score.silent for score in made.source_scores().values())
    made.forget(["ada", "bob"])
    drive(made)
    check_empty(made)
    made.close()


@pytest.mark.parametrize("again", ["one", "many"])
def test_a_new_agent_of_the_id_was_never_seen(again: str) -> None:
    """Its texts are those of an agent that is new: equal requests are counted from the start."""
    with engine() as made, engine() as fresh:
        ada = made.agent("ada")
        first = [ask(made, ada, prompt(1)) for _ in range(3)]
        ada.expect(5.0)
        assert len(set(first)) > 1
        made.forget("ada" if again == "one" else iter(["ada", "ada"]))
        new = made.agent("ada")
        assert new is not ada
        assert [ask(made, new, prompt(1)) for _ in range(3)] == first
        assert [ask(fresh, fresh.agent("ada"), prompt(1)) for _ in range(3)] == first
        assert made.why("ada") is None
        drive(made)


USES: dict[str, Callable[[Agent], Any]] = {
    "request": lambda agent: agent.request([1]),
    "generate": lambda agent: agent.generate([1]),
    "chat": lambda agent: agent.chat([{"role": "user", "content": "hi"}]),
    "stream": lambda agent: agent.stream([1]),
    "choose": lambda agent: agent.choose([1], [[2]]),
    "expect": lambda agent: agent.expect(1.0),
    "fork": lambda agent: agent.fork("eve"),
    "forget": lambda agent: agent.forget(),
}


@pytest.mark.parametrize("made_again", [False, True])
@pytest.mark.parametrize("use", USES)
def test_the_handle_of_the_forgotten_is_of_no_use(use: str, made_again: bool) -> None:
    with engine() as made:
        ada = made.agent("ada")
        made.forget("ada")
        if made_again:
            made.agent("ada")
        with pytest.raises(UnknownAgentError, match=r"'ada' was forgotten; engine\.agent"):
            USES[use](ada)
        assert ("ada" in part(made, Intake).agents) == made_again


@pytest.mark.parametrize("wrong", [None, 1.5, True, [None], [["ada"]], [b"ada"], object()])
def test_what_are_no_ids_is_refused(wrong: Any) -> None:
    with engine() as made:
        made.agent("ada")
        with pytest.raises(RequestError, match=r"must be a (list of agent ids|string or a whole)"):
            made.forget(wrong)


def test_all_are_known_or_nobody_is_forgotten() -> None:
    with engine() as made:
        made.agent("ada")
        with pytest.raises(UnknownAgentError, match=r"'adda' .* \(is 'ada' meant\?\)"):
            made.forget(["ada", "adda"])
        made.forget(())
        made.agent("ada").expect(3.0)


@pytest.mark.parametrize("steps", range(0, 14, 2))
def test_open_calls_go_on_and_leave_nothing(steps: int) -> None:
    """Waiting, loading, in the middle of prefill or decode: the reply is as if nothing was."""

    def play(forget: bool) -> list[tuple[int, ...]]:
        made = engine(device_pages=14, host_pages=60, max_num_seqs=2)
        agents = [made.agent(name) for name in ("ada", "bob", "eve")]
        for agent in agents:
            ask(made, agent, prompt(7, 80))
        calls = [
            made.submit(agent.request(prompt(7, 80) + prompt(n, 30), max_tokens=9, ignore_eos=True))
            for n, agent in enumerate(agents)
        ]
        for _ in range(steps):
            made.step()
        if forget:
            made.forget(["ada", "bob", "eve"])
            made.agent("ada").expect(2.0)  # another, while the first one's call is open
        drive(made)
        said = [call.result().token_ids for call in calls]
        assert [call.result().agent for call in calls] == ["ada", "bob", "eve"]
        if forget:
            assert made.parts.memory.owners.agents.keys() <= {"ada"}
            check_empty(made)
        made.close()
        return said

    assert play(forget=True) == play(forget=False)


def test_a_fork_keeps_what_it_shares() -> None:
    """To the last token: the parent's partial block becomes the fork's."""
    found = []
    for forget in (False, True):
        with engine() as made:
            parent = made.agent("parent")
            tokens = prompt(3, 50)
            tokens += ask(made, parent, tokens, 5)
            fork = parent.fork("fork")
            if forget:
                parent.forget()
            drive(made)
            call = made.submit(fork.request([*tokens, 1], max_tokens=2))
            drive(made)
            found.append((call.result().token_ids, call.result().usage.cached_tokens))
            if forget:
                fork.forget()
                drive(made)
                check_empty(made)
    assert found[0] == found[1] and found[0][1] >= 48


def test_what_others_share_stays() -> None:
    with engine() as made:
        ada, bob = made.agent("ada"), made.agent("bob")
        for agent in (ada, bob):
            ask(made, agent, prompt(3, 64) + prompt(5 + len(str(agent)), 20))
        ada.forget()
        call = made.submit(bob.request([*prompt(3, 64), 1], max_tokens=1))
        drive(made)
        assert call.result().usage.cached_tokens >= 64 - 16


def test_waits_until_it_is_done_where_the_thread_drives() -> None:
    with engine() as made:
        for round_ in range(30):
            ids = [f"{round_} {n}" for n in range(4)]
            made.run([made.agent(id).request(prompt(n), max_tokens=2) for n, id in enumerate(ids)])
            made.forget(ids)
            memory, loop = made.parts.memory, part(made, EngineLoop)
            assert not memory.owners.agents
            assert not len(loop.keys) and not part(made, Intake).agents
            assert memory.device.num_free == memory.device.num_usable
            assert len(loop.advice.distances.roster) <= 4  # rows are given again


def test_thousands_come_and_go() -> None:
    """Nothing grows with agents that were: every container of the engine's own is as long after
    two thousand more."""
    made = engine([Learned(), Graph({}), Plan()])

    def live(first: int, count: int) -> None:
        for n in range(first, first + count, 20):
            agents = [made.agent(f"x{i}") for i in range(n, n + 20)]
            calls = [made.submit(a.request(prompt(n, 20), max_tokens=1)) for a in agents]
            drive(made)
            assert all(call.done for call in calls)
            for agent in agents:
                agent.expect(3.0)
            forks = [agent.fork(f"{agent.id} again") for agent in agents]
            made.tick()
            made.forget([each.id for each in (*agents, *forks)])
        drive(made)

    def lengths() -> dict[str, int]:
        """Of all containers, and arrays by agent, by where they are."""
        found: dict[str, int] = {}
        for path, one in reachable(made):
            if type(one) in (dict, OrderedDict, list, set, deque, array) and "[" not in path:
                found[path] = len(one)
            elif type(one).__name__ == "Columns":
                found[path] = one.num_rows
        return found

    live(0, 200)
    before = lengths()
    live(200, 2000)
    grown = {
        path: (before.get(path), count)
        for path, count in lengths().items()
        if count > before.get(path, 0) + 64 and not any(part in path for part in BOUNDED)
    }
    assert len(before) > 30 and not grown, grown
    check_empty(made)
    made.close()


def test_threads_that_call_and_one_that_forgets() -> None:
    """Whoever calls meets a reply or ``UnknownAgentError``; in the end nothing is left."""
    made = engine(device_pages=40)
    errors: list[BaseException] = []

    def call(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            agent = made.agent(int(rng.integers(5)))
            try:
                agent.generate(prompt(int(rng.integers(9)), 30), max_tokens=2)
                agent.expect(2.0)
                agent.fork(f"{seed} {rng.random()}").forget(wait=False)
            except UnknownAgentError:
                pass
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    rng = np.random.default_rng(9)
    while any(thread.is_alive() for thread in threads):
        try:
            made.forget(int(rng.integers(5)), wait=bool(rng.integers(2)))
        except UnknownAgentError:
            threads[0].join(0.001)
    assert not errors, errors
    made.forget(list(part(made, Intake).agents))
    assert made.stats.restarts == 0
    memory = made.parts.memory
    assert not memory.owners.agents and not len(part(made, SamplingKeys))
    nobodys = between_steps(
        made, lambda: memory.device.num_used - sum(len(segment.device) for segment in memory.tree)
    )
    assert nobodys == 0
    made.close()


def test_an_adapter_stays_for_others(tmp_path: Path) -> None:
    from tests.engine.world import SHAPE
    from tests.model.adapter_folders import write_adapter

    write_adapter(tmp_path / "a", SHAPE, 4, seed=1)
    with tiny_engine() as made:
        words, others = list(b"Good morning, ada"), list(b"Good evening, bob")
        ada = made.agent("ada", adapter=tmp_path / "a")
        bob = made.agent("bob", adapter=tmp_path / "a")
        first = ada.generate(words, max_tokens=4, seed=1).token_ids
        said = bob.generate(others, max_tokens=4, seed=1).token_ids
        ada.forget()
        assert bob.generate(others, max_tokens=4, seed=1).token_ids == said
        plain = made.agent("ada")
        assert plain.adapter is None
        made.agent("ada", adapter=tmp_path / "a")
        assert plain.generate(words, max_tokens=4, seed=1).token_ids == first
        made.forget(["ada", "bob"])
        assert not [path for path in holders(made, "ada") if "adapters" in path]
        made.adapters.remove(str(tmp_path / "a"), timeout=5.0)
