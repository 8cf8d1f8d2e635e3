"""The oracle: policy, pool sizes and hints change speed only. Logits are compared bit for bit."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pytest
import torch

from scalesim.distance.estimates import Estimates, Source
from scalesim.errors import HintWarning
from tests.engine.world import BLOCK, Turns, said, tiny_engine

TURNS = Turns()
FULL = TURNS.num_agents * TURNS.pages_per_agent
SMALLEST = TURNS.pages_per_agent
POOLS = {"100%": FULL, "50%": FULL // 2, "25%": FULL // 4, "smallest": SMALLEST}


@cache
def unlimited() -> list[tuple[tuple[int, ...], int]]:
    with tiny_engine(policy="resident", digests=True) as engine:
        return said(TURNS.play(engine))


@pytest.mark.parametrize("host_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("policy", ["deadline", "lru-swap", "lru-recompute"])
def test_every_policy_and_pool_gives_the_texts_of_unlimited_memory(
    policy: str, pool: str, host_share: float
) -> None:
    pages = POOLS[pool]
    with tiny_engine(
        policy=policy, digests=True, device_pages=pages, host_pages=int(host_share * pages)
    ) as engine:
        replies = TURNS.play(engine, hint=lambda agent, turn: 1)
        assert said(replies) == unlimited()
    check_empty(engine)


@pytest.mark.parametrize("policy", ["deadline", "lru-swap", "lru-recompute"])
def test_two_threads(policy: str) -> None:
    """Which may compute other bits than one, and so are compared with themselves."""
    torch.set_num_threads(2)
    texts = []
    for name, pages in (("resident", 400), (policy, POOLS["25%"])):
        with tiny_engine(policy=name, digests=True, device_pages=pages, host_pages=FULL) as engine:
            texts.append(said(TURNS.play(engine, hint=lambda agent, turn: 1)))
    assert texts[0] == texts[1]


def test_a_slower_link_gives_the_same_texts() -> None:
    with tiny_engine(
        device_pages=FULL // 4, host_pages=FULL, digests=True, link_bandwidth="64MB"
    ) as engine:
        assert said(TURNS.play(engine, hint=lambda agent, turn: 1)) == unlimited()
        assert engine.parts.memory.residency.link.rate("in") <= 64e6


@pytest.mark.parametrize(
    "hint",
    [
        lambda agent, turn: 1,
        lambda agent, turn: 1000 - agent,
        lambda agent, turn: float("nan"),
        lambda agent, turn: -5,
        lambda agent, turn: float("inf"),
        lambda agent, turn: (agent * 7 + turn) % 5,
    ],
    ids=["right", "far", "nan", "past", "inf", "wrong"],
)
def test_hints_are_advice(hint: object) -> None:
    with (
        tiny_engine(digests=True, device_pages=FULL // 4, host_pages=FULL) as engine,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", HintWarning)  # of what is no time
        assert said(TURNS.play(engine, hint=hint)) == unlimited()  # type: ignore[arg-type]
    check_empty(engine)


class Hostile(Source):
    """Random, infinite, missing and impossible estimates, some of them for agents that do not
    exist; dies of its own in the end."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__()
        self.name = name
        self.rng = np.random.default_rng(seed)

    def changes(self, now: float) -> Estimates:
        words = [now, now + 1, now - 1, now + 50, -1e300, 1e300, np.inf, -np.inf, np.nan]
        count = int(self.rng.integers(0, 14))
        if self.rng.random() < 0.02:
            raise RuntimeError("this source had enough")
        return Estimates(
            self.rng.integers(0, TURNS.num_agents + 2, count).tolist(),
            self.rng.choice(words, count),
            self.rng.choice([-1.0, 0.0, 0.3, 1.0, 9.0, np.nan], count),
        )


@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
@pytest.mark.parametrize("seed", range(3))
def test_hostile_sources_are_advice(policy: str, seed: int) -> None:
    sources = [Hostile("one", seed), Hostile("two", seed + 100)]
    with tiny_engine(
        policy=policy, digests=True, device_pages=FULL // 4, host_pages=FULL, sources=sources
    ) as engine:
        assert said(TURNS.play(engine, hint=lambda agent, turn: agent % 3)) == unlimited()
    check_empty(engine)


@pytest.mark.parametrize("max_num_seqs", [1, 3, 64])
@pytest.mark.parametrize("chunk", [64, 1024])
def test_batch_and_chunk_sizes_do_not_matter(max_num_seqs: int, chunk: int) -> None:
    with tiny_engine(
        digests=True,
        device_pages=FULL // 2,
        host_pages=FULL,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=chunk,
        safe_point_tokens=4,
    ) as engine:
        assert said(TURNS.play(engine)) == unlimited()
    check_empty(engine)


def test_swapping_two_live_pages_changes_the_texts() -> None:
    """Without this, equal texts would prove nothing. The pages belong to two agents: attention does
    not mind the order of one agent's own keys, which carry their positions with them."""

    def run(*, disturb: bool) -> list[tuple[int, ...]]:
        engine = tiny_engine(device_pages=40)
        rng = np.random.default_rng(3)
        calls = [
            engine.submit(
                engine.agent(name).request(
                    rng.integers(0, 256, 6 * BLOCK).tolist(), max_tokens=24, ignore_eos=True
                )
            )
            for name in ("ada", "bob")
        ]
        for _ in range(4):  # prefill, and some tokens
            engine.step()
        if disturb:
            running = dict(sorted(engine.parts.scheduler.slots.sequences.items())).values()
            ada, bob = (each.lease for each in running if each.lease)
            engine.parts.memory.table.write(ada.row, 2, [bob.end.device[2]])
            engine.parts.memory.table.write(bob.row, 2, [ada.end.device[2]])
        while not all(call.done for call in calls):
            engine.step()
        engine.close()
        return [call.result().token_ids for call in calls]

    for sound, disturbed in zip(run(disturb=False), run(disturb=True), strict=True):
        assert sound != disturbed


def test_eight_templates_in_turn_hit_from_the_second_round() -> None:
    rng = np.random.default_rng(5)
    system = rng.integers(0, 256, 40).tolist()
    templates = [system + rng.integers(0, 256, 60).tolist() for _ in range(8)]
    with tiny_engine(device_pages=40, host_pages=200) as engine:
        agent = engine.agent("ada")
        for round_ in range(4):
            for template in templates:
                content = rng.integers(0, 256, 20).tolist()
                reply = agent.generate(template + content, max_tokens=8, ignore_eos=True)
                if round_:
                    assert reply.usage.cached_tokens >= len(template) // BLOCK * BLOCK
            engine.tick()
    check_empty(engine)


def check_empty(engine: object) -> None:
    """After everything is dropped, all pages are free and no copy is under way."""
    memory = engine.parts.memory  # type: ignore[attr-defined]
    memory.clear()
    assert memory.device.num_free == memory.device.num_usable
    assert memory.host.num_free == memory.host.num_usable
    assert not memory.residency.transfers
