"""``scalesim replay``: a table of what each policy would give. Nothing is computed by a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from scalesim.cli.options import ReplayOptions
from scalesim.replay.arms import Bound, Outcome, compare
from scalesim.replay.scenario import Scenario, Sizes, of_trace, of_workload
from scalesim.replay.workloads import PAPER_CLASSES, WORKLOADS, paper, workload

COLUMNS = (
    "policy", "turns/s", "of roof", "hits", "demand loads", "GB in", "× Belady", "GB out",
    "s/step p50", "p95", "TTFT p50", "p95",
)  # fmt: skip
PAPER_AGENTS = (25, 100, 250, 500, 1000)
CAPTION = (
    "Virtual time. Hits: share of the blocks asked for that were on the device. Demand loads: of "
    "all calls, those that waited for their state. Roof: what neither computing with all resident "
    "nor the link with Belady's bytes can exceed; it needs the policy resident among those run."
)


def replay(options: ReplayOptions) -> int:
    """Exit code 0; raises ``ConfigError`` or ``TraceError``."""
    sizes = Sizes(
        options.hardware,
        options.model,
        options.residency,
        running=options.running,
        link_share=options.link,
        adapter=options.what == "paper",
    )
    policies = options.policies()
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    for scenario in scenarios(options, sizes):
        found = compare(scenario.machine(sizes), policies, scenario.steps, warmup=options.warmup)
        console.print(table(scenario.name, *found))
    console.print(CAPTION, highlight=False)
    return 0


def scenarios(options: ReplayOptions, sizes: Sizes) -> list[Scenario]:
    if options.what == "paper":
        counts = PAPER_AGENTS if options.agents is None else (options.agents,)
        found = []
        for cls in PAPER_CLASSES:
            for agents in counts:
                kind, knobs = paper(cls, agents, options.steps or 20, options.seed or 0)
                scenario = of_workload(kind, knobs, sizes)
                found.append(renamed(scenario, f"{cls}, {agents} agents"))
        return found
    if options.what in WORKLOADS:
        kind, knobs = workload(options.what, **options.knobs())
        return [of_workload(kind, knobs, sizes)]
    return [of_trace(Path(options.what), sizes)]


def renamed(scenario: Scenario, name: str) -> Scenario:
    return Scenario(name, scenario.steps, scenario.pages, scenario.max_len, scenario.first_tokens)


def table(title: str, outcomes: Sequence[Outcome], bound: Bound | None) -> Table:
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in COLUMNS:
        made.add_column(name, justify="left" if name == "policy" else "right")
    for one in outcomes:
        made.add_row(*cells(one, bound))
    return made


def cells(one: Outcome, bound: Bound | None) -> list[str]:
    """A policy's row; ``-`` where there is no bound to hold it against."""
    roof = belady = "-"
    if bound is not None:
        roof = f"{one.turns_per_s / bound.turns_per_s:.3f}"
        if bound.loaded_bytes:
            belady = f"{one.loaded_bytes / bound.loaded_bytes:.2f}"
    return [
        one.policy,
        f"{one.turns_per_s:.2f}",
        roof,
        f"{one.hits:.1%}",
        f"{one.counters['demand_loads'] / max(1, one.turns):.1%}",
        f"{one.loaded_bytes / 1e9:.1f}",
        belady,
        f"{one.saved_bytes / 1e9:.1f}",
        *(f"{seconds:.2f}" for seconds in one.step_s),
        *(f"{seconds:.3f}" for seconds in one.first_token_s),
    ]
