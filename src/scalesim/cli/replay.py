"""``scalesim replay``: a table of results by policy, on virtual time and without a model."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from scalesim.cli.options import ReplayOptions
from scalesim.config import parse_bytes
from scalesim.errors import ConfigError, TraceError
from scalesim.replay import formats
from scalesim.replay.arms import Outcome, Watch, compare
from scalesim.replay.hardware import disk_rate
from scalesim.replay.machine import Machine
from scalesim.replay.peers.policies import replay_policy
from scalesim.replay.roof import Roof
from scalesim.replay.scenario import Scenario, Sizes, cost_of, of_trace, of_workload
from scalesim.replay.simulation import Log
from scalesim.replay.workloads import PAPER_CLASSES, WORKLOADS, paper, workload

COLUMNS = (
    "policy", "turns/s", "of\nroof", "hits", "waits", "GB\nloaded", "GB\nrebuilt", "×\nBelady",
    "TTFT\np95",
)  # fmt: skip
DISK_COLUMNS = ("GB from\ndisk", "× Belady\nof disk")
PAPER_AGENTS = (25, 100, 250, 500, 1000)
SMALL = {"w1": (120, 24), "w2": (120, 16), "w3": (100, 60), "w4": (80, 6), "w5": (50, 40)}
"""Agents and ticks where neither is given: a minute or so for all policies."""
CAPTION = (
    "Virtual time. Roof: the least arithmetic, reading and loading that these calls need, ideally "
    "batched; nobody exceeds it. Hits: share of the blocks asked for that were on the device. "
    "Waits: calls that waited for their state. Rebuilt: state computed once more. × Belady: both, "
    "over the fewest that any choice of victims needs in the order in which the policy served. Of "
    "disk: read from there or computed once more, over the fewest with a cache as large as device "
    "and host."
)
EVERY_S = 5.0  # seconds between lines about progress, without a terminal
CROWDED = 0.8  # share of the pool held by running calls above which policies hardly differ


def replay(options: ReplayOptions) -> int:
    """Exit code 0; raises ``ConfigError`` or ``TraceError``."""
    options.check()
    policies, sizes = options.policies(), sizes_of(options)
    cost_of(sizes)
    console = Console(highlight=False)
    for scenario in scenarios(options, sizes):
        machine = scenario.machine(sizes)
        with watching(scenario, policies) as watch:
            outcomes, limit = compare(
                machine, policies, scenario.ticks, sources=scenario.sources,
                warmup=options.warmup, watch=watch,
            )  # fmt: skip
        console.print(table(title(scenario, machine, sizes), outcomes, limit, machine))
        for note in notes(scenario, machine, outcomes, limit):
            console.print(note)
    console.print(CAPTION)
    return 0


def sizes_of(options: ReplayOptions) -> Sizes:
    """Raises ``ConfigError``."""
    pool, host, disk = options.pool, options.host_pool, options.disk_pool
    return Sizes(
        options.hardware,
        options.model,
        options.residency or 0.25,
        running=options.running or (8 if options.is_small else 32),
        link_share=options.link,
        order=options.order,
        adapter=options.what == "paper",
        pool_bytes=None if pool is None else parse_bytes(pool, "--pool"),
        host_bytes=None if host is None else parse_bytes(host, "--host-pool"),
        disk=0.0 if options.disk is None else disk_rate(options.disk),
        disk_bytes=None if disk is None else parse_bytes(disk, "--disk-pool"),
        models=options.models,
    )


def scenarios(options: ReplayOptions, sizes: Sizes) -> Iterator[Scenario]:
    learned, knobs = options.hints == "learned", options.knobs()
    if options.what == "paper":
        counts = PAPER_AGENTS if options.agents is None else (options.agents,)
        for cls in PAPER_CLASSES:
            for agents in counts:
                kind, own = paper(cls, agents, options.ticks or 20, options.seed or 0)
                own = replace(own, **{name: value for name, value in knobs.items()
                                      if name not in ("agents", "ticks", "seed")})  # fmt: skip
                found = of_workload(kind, own, sizes, learned=learned)
                yield replace(found, name=f"{cls}, {agents} agents")
    elif options.what in WORKLOADS:
        kind, own = workload(options.what, **knobs)
        note = ""
        if options.is_small:
            agents, ticks = SMALL[kind.name]
            note = (
                f"Small, to be quick; --agents {own.agents} --ticks {own.ticks} --running 32 "
                f"is the whole of {kind.name}."
            )
            own = replace(own, agents=agents, ticks=ticks)
        found = of_workload(kind, own, sizes, learned=learned)
        name = f"{kind.name}, {own.agents} agents, {own.ticks} ticks"
        yield replace(found, name=name, note=note)
    else:
        yield trace_scenario(options, sizes)


def trace_scenario(options: ReplayOptions, sizes: Sizes) -> Scenario:
    path = Path(options.what)
    if not path.exists():
        raise TraceError(
            f"{path} is neither a workload ({', '.join((*WORKLOADS, 'paper'))}) nor a file"
        )
    form = formats.format_named(options.format, path)
    if options.tick is not None and not form.in_seconds:
        raise ConfigError(
            f"--tick {options.tick}: {path} has ticks of its own, as all in {form.name}"
        )
    ticks = formats.read(path, form, options.block_size)
    if form.in_seconds:
        ticks = formats.gathered(ticks, 10.0 if options.tick is None else options.tick)
    hints = options.trace_hints()
    found = of_trace(f"{path.name} ({form.name})", ticks[: options.ticks], sizes, hints)
    calls = [call for tick in found.ticks() for call in tick.calls]
    told = sum(call.expect is not None for call in calls)
    agents = len({call.agent for call in calls} - {None})
    kind = "hints learned" if hints == "learned" else f"{told} with hints"
    name = f"{found.name}: {len(calls)} calls, {kind}, {agents} agents, {found.num_ticks} ticks"
    return replace(found, name=name)


@contextmanager
def watching(
    scenario: Scenario, policies: Sequence[str], clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str], Watch]]:
    """Show progress on stderr: on a terminal a bar for each policy, else a line at the beginning
    and every few seconds. The yielded function is called with a policy's name when that begins."""
    console, total, said_s = Console(stderr=True, highlight=False), scenario.num_ticks, clock()
    bars = Progress(
        TextColumn("{task.description:<13}"), BarColumn(bar_width=20), MofNCompleteColumn(),
        TextColumn("ticks  {task.fields[state]}"), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip

    def begin(policy: str) -> Watch:
        task = bars.add_task(policy, total=total, state="")

        def watch(log: Log) -> None:
            nonlocal said_s
            done, calls = len(log.tick_s), f"{log.turns} calls"
            bars.update(task, completed=done, state=calls)
            if bars.disable and clock() - said_s >= EVERY_S:
                said_s = clock()
                print(f"{policy}: {done} of {total} ticks, {calls}", file=sys.stderr, flush=True)

        return watch

    console.print(f"{scenario.name}: {len(policies)} policies …")
    with bars:
        yield begin


def title(scenario: Scenario, machine: Machine, sizes: Sizes) -> str:
    cost = machine.cost
    pool = machine.device_pages * machine.geometry.page_bytes / 1e9
    share_of = machine.device_pages / max(1, scenario.pages)
    return (
        f"{scenario.name}\n{model_names(machine)} on {cost.hardware.name}, a pool of {pool:.3g} GB "
        f"({share_of:.0%} of all state), {sizes.running} running"
    )


def model_names(machine: Machine) -> str:
    """The machine's models, each shape once."""
    models = machine.models
    if models is None:
        return machine.cost.model.name
    counts = Counter(cost.name for cost in models.costs)
    return ", ".join(f"{count} × {name}" for name, count in counts.items())


def table(
    title: str, outcomes: Sequence[Outcome], limit: Roof, machine: Machine | None = None
) -> Table:
    """``machine``: with columns of its disk, if it has one."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                 padding=(0, 1, 0, 0))  # fmt: skip
    for name in COLUMNS:
        made.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    has_disk = machine is not None and machine.disk_pages > 0
    for name in DISK_COLUMNS if has_disk else ():
        made.add_column(name, justify="right", no_wrap=True)
    for outcome in outcomes:
        made.add_row(*cells(outcome, limit), *(disk_cells(outcome) if has_disk else ()))
    return made


def disk_cells(outcome: Outcome) -> list[str]:
    over = outcome.over_belady_disk
    return [amount(outcome.disk_bytes), "-" if over is None else f"{over:.2f}"]


def roof_of(policy: str, limit: Roof) -> float:
    """The roof for ``policy``, in calls per second: a policy with an unlimited pool has that of an
    unlimited pool."""
    limited = replay_policy(policy).limited
    return limit.turns_per_s if limited else limit.resident_turns_per_s


def cells(outcome: Outcome, limit: Roof) -> list[str]:
    """The row of a policy; ``-`` for a ratio without a denominator."""
    over = outcome.over_belady
    return [
        outcome.policy,
        f"{outcome.turns_per_s:.2f}",
        f"{outcome.turns_per_s / roof_of(outcome.policy, limit):.3f}" if outcome.turns else "-",
        f"{outcome.hits:.0%}",
        f"{outcome.waited:.0%}",
        amount(outcome.loaded_bytes),
        amount(outcome.rebuilt_bytes),
        "-" if over is None else f"{over:.2f}",
        f"{outcome.first_token_s[1]:.2f}",
    ]


def amount(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f}" if num_bytes < 1e12 else f"{num_bytes / 1e9:.0f}"


def notes(
    scenario: Scenario, machine: Machine, outcomes: Sequence[Outcome], limit: Roof
) -> Iterator[str]:
    """Notes that explain the table."""
    roof = f"Roof: {limit.turns_per_s:.2f} turns/s"
    if limit.turns_per_s < 0.9995 * limit.resident_turns_per_s:
        roof += f" with this pool and link, {limit.resident_turns_per_s:.2f} with all resident"
    for outcome in outcomes:
        if outcome.policy == "resident" and outcome.turns:
            reached = outcome.turns_per_s / limit.resident_turns_per_s
            roof += f"; resident, with a pool for everything, gives {reached:.0%} of that"
    yield f"{roof}."
    if not outcomes[0].turns:
        yield "No call came after the warm-up; lower --warmup or give more --ticks."
    running = max(outcome.running_pages for outcome in outcomes)
    if running >= CROWDED * machine.device_pages:
        yield (
            f"What ran at once held up to {running / machine.device_pages:.0%} of what the pool "
            "holds: little is left to choose from, whatever the policy, or fewer can run. Lower "
            "--running, or raise --residency."
        )
    if scenario.note:
        yield scenario.note
