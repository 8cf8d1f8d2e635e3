"""What hints are worth in a replay: with them no more is loaded than without, and nobody waits."""

from __future__ import annotations

import random

import pytest

from scalesim.replay.arms import play
from scalesim.replay.scenario import Sizes, of_trace
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick


@pytest.mark.parametrize("seed", [0, 1])
def test_hints_cost_no_bytes_and_save_waits(seed: int) -> None:
    """A town in which most agents act in a tick, in another order each time, and the pool holds two
    fifths of them: what the next tick needs must not displace what the next tick needs. Served in
    the order of arrival, which is the same for all."""
    draw = random.Random(seed)
    ticks = []
    for time in range(10):
        acting = [agent for agent in range(14) if draw.random() < 0.8]
        draw.shuffle(acting)
        calls = [
            TraceCall(
                agent,
                (TracePiece(f"self {agent}", 512), TracePiece(f"news {time} {agent}", 64)),
                TracePiece(f"said {time} {agent}", 6 + draw.randrange(12)),
            )
            for agent in acting
        ]
        ticks.append(TraceTick(float(time), [], calls))
    sizes = Sizes("h100", "qwen2.5-7b", 0.4, running=2, link_share=0.1, order="arrival")
    found = {}
    for policy, hints in (("deadline", "exact"), ("deadline", "none"), ("lru-swap", "none")):
        scenario = of_trace("town", ticks, sizes, hints)
        found[policy, hints], _ = play(scenario.machine(sizes), policy, scenario.ticks())
    exact, lru = found["deadline", "exact"], found["lru-swap", "none"]
    assert exact.loaded_bytes <= found["deadline", "none"].loaded_bytes <= lru.loaded_bytes
    assert exact.waited < 0.05 < lru.waited and exact.turns_per_s > lru.turns_per_s
