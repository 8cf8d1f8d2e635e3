"""Agents with adapters of their own: texts do not depend on memory; names, content and errors."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from scalesim.engine.engine import Engine
from scalesim.engine.inbox import Inbox
from scalesim.errors import AdapterError, PromptTooLongError, RequestError
from scalesim.memory.eviction.policies import ENGINE_POLICIES
from scalesim.requests.reply import Reply
from tests.engine.test_same_texts import check_empty
from tests.engine.world import BLOCK, SHAPE, said, tiny_engine
from tests.inside import part
from tests.model.adapter_folders import write_adapter
from tests.trust.workload import make_parts

RANKS = (4, 8, 16, 64)
AGENTS, ROUNDS, PREFIX, NEW, OUTPUT = 64, 2, 70, 6, 5


@cache
def folders() -> list[Path]:
    """64 different adapters of four ranks."""
    root = Path(mkdtemp(prefix="scalesim-adapters-"))
    return [
        write_adapter(root / str(index), SHAPE, RANKS[index % 4], seed=index)
        for index in range(AGENTS)
    ]


def play(engine: Engine, *, num_agents: int = AGENTS, hints: bool = True) -> list[Reply]:
    """Each agent has a private prefix and a private adapter; all speak in each round."""
    rng = np.random.default_rng(0)
    agents = [engine.agent(i, adapter=path) for i, path in enumerate(folders()[:num_agents])]
    histories = [rng.integers(0, 256, PREFIX).tolist() for _ in agents]
    replies: list[Reply] = []
    for turn in range(ROUNDS):
        for start in range(0, num_agents, 16):
            some = agents[start : start + 16]
            for agent in some:
                histories[agent.id] += rng.integers(0, 256, NEW).tolist()
            requests = [
                agent.request(list(histories[agent.id]), max_tokens=OUTPUT, ignore_eos=True)
                for agent in some
            ]
            for agent, reply in zip(some, engine.run(requests), strict=True):
                assert isinstance(reply, Reply)
                histories[agent.id] += reply.token_ids
                replies.append(reply)
                if hints and turn + 1 < ROUNDS:
                    agent.expect(3)
            engine.tick()
    return replies


@cache
def unlimited(num_agents: int = AGENTS) -> tuple[list[Any], int]:
    """The texts, and the pages of all state: prefixes, outputs and adapters."""
    with tiny_engine(policy="resident", digests=True) as engine:
        texts = said(play(engine, num_agents=num_agents))
        adapters = sum(info.num_pages for info in engine.adapters.list())
        tokens = PREFIX + ROUNDS * (NEW + OUTPUT)
    return texts, adapters + num_agents * -(-tokens // BLOCK)


@pytest.mark.parametrize(
    ("policy", "host_share"),
    [*((policy, 1.0) for policy in sorted(ENGINE_POLICIES)), ("deadline", 0.25), ("lru-swap", 0.0)],
)
def test_same_texts_at_a_quarter_of_the_pool(policy: str, host_share: float) -> None:
    texts, pages = unlimited()
    engine = tiny_engine(
        policy=policy, digests=True, device_pages=pages // 4, host_pages=int(pages * host_share)
    )
    with engine:
        assert said(play(engine)) == texts
        counters = engine.parts.memory.counters
        if policy != "resident":
            assert counters.evicted_pages > pages // 4
        if policy == "resident" or host_share < 1 or policy == "lru-recompute":
            assert counters.read_pages + counters.read_ahead_pages > 0
    check_empty(engine)


def test_adapters_change_the_texts() -> None:
    with tiny_engine() as engine:
        engine.adapters.add("mine", folders()[0])
        prompt = list(range(50))
        texts = {
            engine.agent(i, adapter=a).generate(prompt, max_tokens=8, seed=1).token_ids
            for i, a in enumerate([None, "mine", folders()[1], folders()[2]])
        }
        assert len(texts) == 4
        twin = engine.agent("twin", adapter=folders()[0])
        found = twin.generate(prompt, max_tokens=8, seed=1)
        assert found.token_ids in texts and found.usage.cached_tokens >= 48  # of one content
        assert len({info.digest for info in engine.adapters.list()}) == 3
        assert len(engine.parts.memory.adapters) == 3 < len(engine.adapters)


def test_a_name_with_new_content_never_sees_old_kv(tmp_path: Path) -> None:
    prompt = list(range(80))
    with tiny_engine(digests=True) as engine:
        agent = engine.agent("ada", adapter=folders()[0])
        engine.adapters.add("role", folders()[1])
        agent = engine.agent("ada", adapter="role")
        first = agent.generate(prompt, max_tokens=6, seed=1)
        assert agent.generate(prompt, max_tokens=6, seed=1).usage.cached_tokens >= 64
        with pytest.raises(AdapterError, match="'role' has other content"):
            engine.adapters.add("role", folders()[2])
        engine.adapters.add("role", folders()[2], replace=True)
        second = agent.generate(prompt, max_tokens=6, seed=1)
        assert second.usage.cached_tokens == 0
        engine.adapters.add("role", folders()[1], replace=True)
        again = agent.generate(prompt, max_tokens=6, seed=1)
    with tiny_engine(digests=True) as engine:
        alone = engine.agent("ada", adapter=folders()[2]).generate(prompt, max_tokens=6, seed=1)
    assert said([second]) == said([alone]) and said([first]) == said([again])
    assert said([first]) != said([second])


def test_a_damaged_adapter_fails_its_agents_calls_only(tmp_path: Path) -> None:
    """There is no host pool, so pages that left are read again: from a folder that changed."""
    bad, good = tmp_path / "bad", folders()[1]
    shutil.copytree(folders()[0], bad)
    prompt = list(range(40))
    with tiny_engine(device_pages=60, host_pages=0) as engine:
        ada, bob = engine.agent("ada", adapter=bad), engine.agent("bob", adapter=good)
        plain = engine.agent("eve")
        requests = [each.request(prompt, max_tokens=4, seed=1) for each in (ada, bob, plain)]
        before = engine.run(requests)
        weights = bad / "adapter_model.safetensors"
        intact = weights.read_bytes()
        for change, reason in (
            (lambda: weights.write_bytes(intact[:-4] + b"\0\0\0\1"), "changed since"),
            (lambda: weights.write_bytes(intact[:-9]), "not a readable safetensors file"),
            (lambda: weights.unlink(), "adapter_model.safetensors is missing"),
        ):
            change()
            part(engine, Inbox).post(engine.parts.memory.clear)
            outcomes = engine.run(requests, return_exceptions=True)
            assert isinstance(outcomes[0], AdapterError) and reason in str(outcomes[0])
            assert texts_of(outcomes[1:]) == texts_of(before[1:])
        weights.write_bytes(intact)
        assert texts_of(engine.run(requests)) == texts_of(before)
    check_empty(engine)


def texts_of(replies: list[Any]) -> list[tuple[int, ...]]:
    return [reply.token_ids for reply in replies]


def test_an_adapter_in_use_is_not_removed() -> None:
    engine = tiny_engine()
    engine.adapters.add("role", folders()[0])
    engine.adapters.add("other", folders()[1])
    agent = engine.agent("ada", adapter="role")
    call = engine.submit(agent.request(list(range(40)), max_tokens=20, ignore_eos=True))
    for _ in range(3):
        engine.step()
    with pytest.raises(AdapterError, match="'role' is used by 1 open calls"):
        engine.adapters.remove("role")
    engine.adapters.remove("other")
    while not call.done:
        engine.step()
    assert len(call.result().token_ids) == 20
    engine.adapters.remove("role", timeout=1.0)
    with pytest.raises(AdapterError, match="'role' is unknown, or was removed"):
        engine.submit(agent.request([1, 2, 3]))
    engine.step()
    assert len(engine.parts.memory.adapters) == 0
    engine.close()
    check_empty(engine)


def test_removal_waits_for_open_calls() -> None:
    with tiny_engine() as engine:
        agent = engine.agent("ada", adapter=str(folders()[0]))
        name = agent.adapter
        assert name is not None
        requests = [
            agent.request(list(range(20 + i)), max_tokens=30, ignore_eos=True) for i in range(3)
        ]
        streams = [engine.stream(request) for request in requests]
        engine.adapters.remove(name, timeout=60.0)
        assert all(info.open_calls == 0 for info in engine.adapters.list())
        for stream in streams:
            assert sum(len(piece.token_ids) for piece in stream) == 30


def test_what_does_not_fit_is_refused_at_once() -> None:
    pages = {info.name: info.num_pages for info in listed()}
    rank_64 = str(folders()[3])
    with tiny_engine(device_pages=pages[rank_64] + 4) as engine:
        agent = engine.agent("ada", adapter=rank_64)
        assert len(agent.generate(list(range(40)), max_tokens=24, ignore_eos=True).token_ids) == 24
        with pytest.raises(PromptTooLongError, match=r"need .* pages .*; the device pool has"):
            agent.generate(list(range(60)), max_tokens=24)
        with pytest.raises(AdapterError, match="no such folder"):
            engine.agent("bob", adapter="nowhere")
        with pytest.raises(RequestError):
            engine.agent(1.5, adapter=rank_64)  # type: ignore[arg-type]


def listed() -> Any:
    with tiny_engine() as engine:
        engine.adapters.add(str(folders()[3]), folders()[3])
        return engine.adapters.list()


INVOCATION = [9, 8, 7]


def activated(root: Path, index: int) -> Path:
    folder = root / f"activated{index}"
    if not folder.exists():
        shutil.copytree(folders()[index], folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["alora_invocation_tokens"] = INVOCATION
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("policy", ["deadline", "lru-swap", "lru-recompute"])
def test_activated_adapters_share_the_world(policy: str, tmp_path: Path) -> None:
    """Before the invocation every agent shares one prefix; dialogues of three turns give the texts
    that each agent gets alone with nothing in memory."""
    rng = np.random.default_rng(1)
    world = rng.integers(10, 256, 100).tolist()
    said_so_far = {index: list(world) for index in range(4)}
    parts = {
        (turn, index): rng.integers(10, 256, 9).tolist() + INVOCATION + [11, 12]
        for turn in range(3)
        for index in range(4)
    }
    with tiny_engine(policy=policy, digests=True, device_pages=85, host_pages=60) as engine:
        agents = [engine.agent(i, adapter=activated(tmp_path, i)) for i in range(4)]
        base = engine.agent("base")
        base.generate([*world, 5], max_tokens=1)
        for turn in range(3):
            for index, agent in enumerate(agents):
                history = said_so_far[index]
                history += parts[turn, index]
                reply = agent.generate(list(history), max_tokens=7, seed=turn, ignore_eos=True)
                if turn == 0 and policy != "lru-recompute":
                    assert reply.usage.cached_tokens >= len(world) // BLOCK * BLOCK
                with tiny_engine(digests=True, device_pages=200) as fresh:
                    other = fresh.agent("x", adapter=activated(tmp_path, index))
                    alone = other.generate(list(history), max_tokens=7, seed=turn, ignore_eos=True)
                assert said([reply]) == said([alone]), (turn, index)
                history += reply.token_ids
    check_empty(engine)


def test_without_an_invocation_it_is_the_base(tmp_path: Path) -> None:
    with tiny_engine(digests=True) as engine:
        agent = engine.agent("ada", adapter=activated(tmp_path, 1))
        base = engine.agent("base")
        prompt = list(range(10, 60))
        first = base.generate(prompt, max_tokens=5, seed=1)
        second = agent.generate(prompt, max_tokens=5, seed=1)
        assert said([first]) == said([second]) and second.usage.cached_tokens >= 48


def test_who_was_bound_is_bound_when_everything_began_anew() -> None:
    """Agents, their forks, and nobody who was forgotten."""
    with Engine(make_parts(0, 1, "quarantine")) as engine:
        engine.agent("ada", adapter="1/2")
        engine.agent("bob", adapter="1/2")
        engine.fork("ada", "fork")
        engine.fork("fork", "fork of a fork")
        engine.fork("ada", "gone")
        engine.forget(["bob", "gone"])
        for restarts in (0, 1):
            while engine.step():
                pass
            assert engine.stats.restarts == restarts
            agents = engine.parts.memory.owners.agents
            bound = {id for id, agent in agents.items() if agent.attached}
            assert bound == {"ada", "fork", "fork of a fork"}
            part(engine, Inbox).post(lambda: 1 / 0)
