"""Campaigns on a tiny model: logits compared bit for bit, in reproducible mode."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from scalesim.engine.engine import Engine
from scalesim.memory.eviction.policies import ENGINE_POLICIES
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from tests.device.world import hostile, hostile_engine
from tests.engine.world import BLOCK, Turns, said, tiny_engine

SWAPPED = Turns(num_agents=5, rounds=2, prefix_len=36, new_len=8, output_len=6)
AGENTS, PREFIX, NEW, OUTPUT, ROUNDS = 64, 24, 6, 4, 2
PER_AGENT = -(-(PREFIX + AGENTS // 8 + ROUNDS * (NEW + OUTPUT)) // BLOCK)
POOLS = {"all": AGENTS * PER_AGENT, "half": AGENTS * PER_AGENT // 2, "tenth": AGENTS // 3}
CHUNKS = (64, 100, 256, 1024)
Said = list[tuple[tuple[int, ...], int]]


@cache
def swapped_nowhere() -> Said:
    with tiny_engine(policy="resident", digests=True) as engine:
        return said(SWAPPED.play(engine))


def swaps(seed: int) -> Counter[str]:
    """A game under one schedule of streams, on pools for a fraction of its state: tokens and the
    digests of all logits are those without a swap, and no access races (vector clocks)."""
    want = swapped_nowhere()
    rng = random.Random(seed)
    device = hostile(
        order=rng.choice(["random", "random", "random", "lazy"]),
        seed=seed,
        favoured=rng.choice(["", "in", "out", "compute"]),
        starved=rng.choice(["", "in", "out", "compute"]),
    )
    pages = SWAPPED.pages_per_agent
    jitter = rng.choice([1, 3, 1000])
    with hostile_engine(
        device,
        policy=rng.choice(["deadline", "lru-swap"]),
        device_pages=rng.randint(pages, SWAPPED.num_agents * pages // 2),
        host_pages=rng.randint(pages, SWAPPED.num_agents * pages),
        graphs=rng.random() < 0.5,
    ) as engine:
        found = said(SWAPPED.play(engine, hint=lambda agent, turn: (agent * seed + turn) % jitter))
        counters = engine.parts.memory.counters
    assert found == want, f"swap schedule {seed} changed a text or the bits of its logits"
    return Counter(
        schedules=1, saved_pages=counters.saved_pages, loaded_pages=counters.loaded_pages
    )


def play(engine: Engine, orders: Sequence[Sequence[int]], num_threads: int) -> Said:
    """Two rounds of every agent, asked in the order given for each, from so many threads (0: as
    one batch); by agent."""
    rng = np.random.default_rng(7)
    shared = rng.integers(0, 256, PREFIX // 2).tolist()
    histories = [
        shared + rng.integers(0, 256, PREFIX // 2 + agent % 8).tolist() for agent in range(AGENTS)
    ]
    found: Said = []
    for order in orders:
        for history in histories:
            history += rng.integers(0, 256, NEW).tolist()
        asked: dict[int, Request] = {
            agent: engine.agent(agent).request(
                list(histories[agent]), max_tokens=OUTPUT, ignore_eos=True
            )
            for agent in order
        }
        if num_threads:
            with ThreadPoolExecutor(num_threads) as threads:
                answers = list(threads.map(engine.generate, asked.values()))
        else:
            answers = engine.run(list(asked.values()))
        replies: dict[int, Reply] = {}
        for agent, reply in zip(asked, answers, strict=True):
            assert isinstance(reply, Reply), reply
            replies[agent] = reply
            histories[agent] += reply.token_ids
            engine.agent(agent).expect(agent % 3)
        found += said([replies[agent] for agent in range(AGENTS)])
        engine.tick()
    return found


@cache
def asked_in_order() -> Said:
    with tiny_engine(policy="resident", digests=True) as engine:
        return play(engine, [range(AGENTS)] * ROUNDS, 0)


def orders(seed: int) -> Counter[str]:
    """64 agents, two rounds: batch size ``1 + seed % 64``, one of three pools, four chunk sizes and
    all policies, asked in a random order, every other time from up to 32 threads."""
    want = asked_in_order()
    rng = random.Random(seed)
    pools, policies = list(POOLS), list(ENGINE_POLICIES)
    threads = rng.randint(2, 32) if seed % 2 else 0
    with tiny_engine(
        digests=True,
        policy=policies[seed % len(policies)],
        device_pages=POOLS[pools[seed // len(policies) % len(pools)]],
        host_pages=POOLS["all"],
        max_num_seqs=1 + seed % 64,
        max_num_batched_tokens=CHUNKS[seed // 15 % len(CHUNKS)],
        safe_point_tokens=rng.choice([1, 4, 64]),
    ) as engine:
        shuffled = [rng.sample(range(AGENTS), AGENTS) for _ in range(ROUNDS)]
        found = play(engine, shuffled, threads)
    differing = sum(one != other for one, other in zip(found, want, strict=True))
    assert not differing, f"{differing} of {len(want)} texts or logits differ"
    return Counter({"runs": 1, "texts": len(found), "thread orders": int(threads > 0)})
