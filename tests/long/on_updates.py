"""Hot updates of adapters as a campaign: a seed is 1 000 random updates among 200 agents."""

from __future__ import annotations

from collections import Counter

from tests.engine.test_updates import folder, truth, weights
from tests.engine.updates import Storm
from tests.engine.world import tiny_engine

UPDATES, AGENTS = 1_000, 200
POLICIES = ("deadline", "lru-swap")


def run(seed: int) -> Counter[str]:
    """Every text is compared with that of its one version, and every page is free in the end."""
    policy = POLICIES[seed % len(POLICIES)]
    engine = tiny_engine(device_pages=300, host_pages=600, policy=policy, digests=True)
    with engine:
        storm = Storm(engine, folder(), weights, AGENTS, seed)
        storm.play(UPDATES)
        storm.check_texts(truth)
        storm.check_pages()
    return Counter(updates=UPDATES, texts=len(storm.ended), leaked=0)
