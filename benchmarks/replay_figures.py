"""What the workload generators give, beside the figures of the sources that they are made from.

No real log stands behind the replays: none could be had. These are the figures that the projects
publish; their order of events, and everything that they do not say, is ours.
"""

from __future__ import annotations

import argparse
from itertools import islice
from typing import Any

from benchmarks.report import Report, table
from scalesim.replay.workloads import generate, workload

# (workload, changed knobs, measure, what the source says, whose word that is, least, most)
SAID: tuple[tuple[str, dict[str, Any], str, str, str, float, float], ...] = (
    ("w1", {"agents": 300}, "active", "5-8 %", "AgentSociety, plan durations", 0.05, 0.08),
    ("w2", {"agents": 300}, "active", "10 %", "OASIS, activate_prob", 0.08, 0.12),
    ("w2", {"agents": 300}, "first in", "3 356", "OASIS, README", 3200.0, 3500.0),
    ("w2", {"agents": 300}, "out", "168", "OASIS, README", 160.0, 176.0),
    ("w3", {"agents": 100, "ticks": 2000}, "active", "1.5-2 %",
     "Generative Agents, issue 156: 0.15 by 8-10 calls", 0.013, 0.022),
    ("w3", {"agents": 100, "ticks": 2000}, "requests", "0.15",
     "Generative Agents, issue 156", 0.12, 0.18),
    ("w4", {}, "active", "100 %", "EconAgent, TinyTroupe: rounds", 1.0, 1.0),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(options: argparse.Namespace) -> Report:
    report, rows = Report("replay-figures"), []
    for name, changes, measure, said, source, least, most in SAID:
        if options.quick:
            changes = {**changes, "ticks": 60}
        value = measured(name, {**changes, "seed": options.seed})[measure]
        report.figures[f"{name} {measure}"] = value
        within = least <= value <= most
        rows.append([name, measure, said, f"{value:.4g}", "yes" if within else "NO", source])
    heads = ["workload", "measure", "source", "generator", "near", "whose figure"]
    report.tables.append(table("Per agent and tick, and tokens a call", heads, rows))
    return report


def measured(name: str, changes: dict[str, Any]) -> dict[str, float]:
    """After the opening: the share of agents that act in a tick, requests an agent-tick, and tokens
    of an agent's first prompt and of an answer."""
    kind, knobs = workload(name, **changes)
    turns = acts = num_ticks = output = 0
    first: dict[Any, int] = {}
    for tick in islice(generate(kind, knobs), 1, None):
        num_ticks += 1
        turns += len(tick.calls)
        acts += len({turn.agent for turn in tick.calls})
        for turn in tick.calls:
            first.setdefault(turn.agent, turn.prompt_len)
            output += turn.output.length
    return {
        "active": acts / num_ticks / knobs.agents,
        "requests": turns / num_ticks / knobs.agents,
        "first in": sum(first.values()) / len(first),
        "out": output / turns,
    }
