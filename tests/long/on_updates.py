"""Hot updates as campaigns: a seed is 1 000 random updates of adapters among 200 agents, or 20
replacements of models among six."""

from __future__ import annotations

from collections import Counter

from tests.engine import test_model_versions as models
from tests.engine.test_updates import folder, truth, weights
from tests.engine.updates import ModelStorm, Storm
from tests.engine.world import tiny_engine

UPDATES, AGENTS = 1_000, 200
POLICIES = ("deadline", "lru-swap")
REPLACEMENTS, MODELS = 20, 6
MODEL_POLICIES = ("deadline", "lru-swap", "lru-recompute")


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


def replacements(seed: int) -> Counter[str]:
    """The same with models, more than the device holds."""
    policy = MODEL_POLICIES[seed % len(MODEL_POLICIES)]
    engine = tiny_engine(device_pages=100, host_pages=300, policy=policy, digests=True)
    with engine:
        storm = ModelStorm(engine, models.folder(), models.folder, MODELS, seed)
        storm.play(REPLACEMENTS)
        storm.check_texts(models.truth)
        assert engine.stats.failed == 0
        storm.check_pages()
    return Counter(replacements=REPLACEMENTS, texts=len(storm.ended), leaked=0)
