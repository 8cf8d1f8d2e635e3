"""Inside vLLM: what each level finds, that no text changes, and that nothing is left behind.

Each arm is an engine of its own, in one process for all, so this takes minutes: ``nox -s plugins``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from benchmarks.plugin_vllm import ARMS, ArmPlayer, bound_of, groups_of
from benchmarks.vllm_arm import ArmSettings

pytestmark = [
    pytest.mark.plugin,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
]
AGENTS, OWN = 12, 8  # agents, and blocks of each
ROOM = {"device_blocks": AGENTS // 4 * OWN + 3, "host_blocks": AGENTS // 2 * OWN}

MORE_ARMS = {
    "ahead of adapters": ("ScaleSimConnector", {"prefetch_agents": 0, "prefetch_adapters": 1})
}


class Play(Protocol):
    def __call__(
        self, arm: str, order: str, rounds: int = 4, together: int = 1, **more: Any
    ) -> dict[str, Any]: ...


@pytest.fixture(scope="module")
def played() -> Iterator[Play]:
    """What an arm finds. ``more`` goes into its settings; ``device_blocks`` may be given there."""
    found: dict[str, dict[str, Any]] = {}

    def play(
        arm: str, order: str, rounds: int = 4, together: int = 1, **more: Any
    ) -> dict[str, Any]:
        connector, extra = (ARMS | MORE_ARMS)[arm]
        groups = groups_of(order, AGENTS, rounds, together, seed=1)
        settings = ArmSettings(groups, connector=connector, extra=extra, **(ROOM | more))
        if (result := found.get(repr(settings))) is None:
            result = found[repr(settings)] = player.play(settings)
            assert result["free_blocks"] == settings.device_blocks, "blocks are not all free"
            assert result["copies"] == 0, "copies are still under way"
        return result

    with ArmPlayer(sys.executable) as player:
        yield play


@pytest.mark.parametrize("order", ["cycle", "permutations", "w1"])
def test_each_level_finds_more_and_no_text_changes(played: Play, order: str) -> None:
    rounds = 1 if order == "w1" else 4
    found = {arm: played(arm, order, rounds) for arm in ARMS}
    assert len({one["texts"] for one in found.values()}) == 1
    hits = {arm: sum(one["cached"]) for arm, one in found.items()}
    assert hits["lru"] <= hits["host"] <= hits["device"]
    assert hits["lru"] < hits["all"]
    best = bound_of(groups_of(order, AGENTS, rounds, 1, seed=1), OWN, sum(ROOM.values())) * 32
    assert hits["device"] >= 0.85 * best  # of 12 agents, one runs and has a copy on the host too


def test_what_is_loaded_ahead_is_found_on_the_device(played: Play) -> None:
    counts = {arm: played(arm, "cycle")["counts"] for arm in ("device", "all")}
    assert counts["all"]["prefetched_blocks"] > 0 == counts["device"]["prefetched_blocks"]
    assert counts["all"]["host_hit_tokens"] < 0.2 * counts["device"]["host_hit_tokens"]


def test_hints_out_of_band_do_the_same(played: Play) -> None:
    apart = played("device", "permutations", out_of_band=True)
    within = played("device", "permutations")
    assert apart["texts"] == within["texts"]
    assert abs(sum(apart["cached"]) - sum(within["cached"])) <= 0.05 * sum(within["cached"])


@pytest.mark.parametrize("arm", ["device", "all"])
def test_calls_together_with_preemption(played: Play, arm: str) -> None:
    """Six calls at once, and room for the answers of three: some are preempted."""
    tight = {"together": 6, "output": 96, "device_blocks": 6 * OWN + 10, "host_blocks": 40}
    ours, lru = played(arm, "permutations", 2, **tight), played("lru", "permutations", 2, **tight)
    assert ours["preemptions"] > 0
    assert ours["texts"] == lru["texts"]


@pytest.mark.parametrize("arm", ["host", "device", "all"])
def test_aborts_and_resets_under_load(played: Play, arm: str) -> None:
    rough = {"aborts": 10, "resets": 4}
    assert played(arm, "cycle", 2, **rough)["texts"] == played("lru", "cycle", 2)["texts"]


@pytest.mark.parametrize("arm", ["host", "device", "all"])
def test_a_restart_under_load(played: Play, arm: str) -> None:
    """The engine is stopped while four calls are under way, twice, and the next one gets the same
    hints: no text changes, and in the last round as much is found as without."""
    busy = {"together": 4, "output": 16, "device_blocks": 4 * OWN + 12}
    again = played(arm, "cycle", 6, **busy, restarts=(4, 7))
    calm = played(arm, "cycle", 6, **busy)
    assert again["texts"] == calm["texts"]
    last = slice(-AGENTS, None)
    assert sum(again["cached"][last]) >= 0.9 * sum(calm["cached"][last]) > 0


def test_without_prefix_caching_the_device_is_left_to_vllm(played: Play) -> None:
    plain = {"prefix_caching": False}
    ours, lru = played("all", "cycle", 3, **plain), played("lru", "cycle", 3, **plain)
    assert ours["texts"] == lru["texts"]
    assert sum(ours["cached"]) > sum(lru["cached"])  # the host still goes by next use


@pytest.mark.parametrize("arm", ["device", "all"])
def test_two_ranks(played: Play, arm: str) -> None:
    """With tensor parallelism both workers copy their heads, and a copy has ended when both have
    reported it."""
    ours, alone = played(arm, "permutations", 2, ranks=2), played(arm, "permutations", 2)
    assert ours["texts"] == played("lru", "permutations", 2, ranks=2)["texts"]
    assert sum(ours["cached"]) == sum(alone["cached"])
    assert ours["counts"]["saved_blocks"] > 0
    if arm == "all":
        assert ours["counts"]["prefetched_blocks"] > 0


def test_adapters(played: Play) -> None:
    with_adapters = {arm: played(arm, "permutations", 2, adapters=2) for arm in ("lru", "all")}
    assert len({one["texts"] for one in with_adapters.values()}) == 1
    assert with_adapters["all"]["texts"] != played("lru", "permutations", 2)["texts"]
    assert sum(with_adapters["all"]["cached"]) > sum(with_adapters["lru"]["cached"])


def test_adapters_leave_by_next_use(played: Play) -> None:
    """Six adapters in a cycle and slots for three: LRU loads at every call, Belady at three of
    five. What is read ahead is in place when its call comes."""
    few = {"adapters": 6, "adapter_slots": 3, "out_of_band": True}
    lru, ours = played("lru", "cycle", **few), played("device", "cycle", **few)
    ahead = played("ahead of adapters", "cycle", **few)
    assert lru["texts"] == ours["texts"] == ahead["texts"]
    assert lru["adapter_loads"] == 4 * AGENTS
    assert ours["adapter_loads"] <= 0.7 * lru["adapter_loads"]
    assert ahead["adapter_loads"] <= 0.7 * lru["adapter_loads"]
    # of an agent's first call nothing is known, though another has the same adapter
    assert ahead["counts"]["prefetched_adapters"] >= 0.5 * ahead["adapter_loads"]
