"""``scalesim demo --capacity``: how many people share the same device memory until a call takes
twice as long, under each policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from rich import box
from rich.table import Table

from scalesim.cli.options import DemoOptions
from scalesim.cli.output import Output
from scalesim.cli.play import Play, play_tick
from scalesim.cli.same_texts import agreement, first_difference
from scalesim.cli.stage import Stage
from scalesim.cli.table import amount

AT_ONCE = 4
"""People who are asked at the same time: so few that the smallest village has them too, since a
call takes longer beside others."""
FEWEST_CALLS = 64
"""Of a village, counted after everybody's first action."""
MOST_TIMES = 2.0
"""A policy is out when its median latency is more than so many times that of the first village."""


def capacity(options: DemoOptions, most: int, console: Output) -> int:
    """Exit code 0, or 1 if two policies gave different texts in some village."""
    stage = Stage.build(options)
    console.print(introduction(stage, options), highlight=False)
    latency_s: dict[str, dict[int, float]] = {policy: {} for policy in options.policies}
    for people in sizes(options.resident, most):
        going = [name for name, found in latency_s.items() if not doubled(found)]
        plays = live(replace(stage, agents=people), going)
        texts = {play.policy: play.said for play in plays}
        if (difference := first_difference(texts)) is not None:
            console.print(f"DIFFERENT TEXTS: {difference}", style="bold red", markup=False)
            return 1
        for play in plays:
            latency_s[play.policy][people] = play.score.latency_at(0.5)
        shown = ", ".join(f"{name} {latency_s[name][people]:.2f} s" for name in going)
        console.print(f"{people} people: {shown}", highlight=False)
        console.print(f"[dim]{agreement(texts)}[/]", highlight=False)
    console.print(table(latency_s))
    console.print(verdict(latency_s, options.resident), highlight=False)
    return 0


def sizes(first: int, most: int) -> Iterator[int]:
    """``first``, twice as many, and so on, not over ``most``."""
    while first <= most:
        yield first
        first *= 2


def live(stage: Stage, policies: Sequence[str]) -> list[Play]:
    """A village under each of ``policies``, side by side, for whole ticks until ``FEWEST_CALLS``
    were answered."""
    with ExitStack() as stack:
        plays = [stack.enter_context(stage.play(policy, AT_ONCE)) for policy in policies]
        for play in plays:
            for _ in play.opening():
                pass
        while plays[0].score.engine.calls < FEWEST_CALLS:
            play_tick(plays, Play.round)
    return plays


def times(found: Mapping[int, float]) -> dict[int, float]:
    """Latencies by people, as so many times that of the first village."""
    first = next(iter(found.values()), 0.0)
    return {people: seconds / max(first, 1e-9) for people, seconds in found.items()}


def doubled(found: Mapping[int, float]) -> bool:
    """Whether the last village was too large."""
    return bool(found) and [*times(found).values()][-1] > MOST_TIMES


def holds(found: Mapping[int, float]) -> str:
    """The largest village before the latency doubled; with a plus if it never did."""
    people = [*found]
    return f"{people[-2]}" if doubled(found) else f"{people[-1]}+"


def table(latency_s: Mapping[str, Mapping[int, float]]) -> Table:
    """Median latencies: a row for each policy, a column for each village."""
    villages = max(latency_s.values(), key=len)
    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 0, 0, 1))
    shown.add_column("policy\n", no_wrap=True)
    for people in villages:
        shown.add_column(f"{people}\npeople", justify="right", no_wrap=True)
    shown.add_column("before it\ndoubles", justify="right", no_wrap=True)
    for policy, found in latency_s.items():
        cells = [
            f"{found[people]:.2f} s ×{times(found)[people]:.1f}" if people in found else ""
            for people in villages
        ]
        shown.add_row(policy, *cells, holds(found))
    return shown


def introduction(stage: Stage, options: DemoOptions) -> str:
    pool = stage.device_bytes - stage.page_bytes
    return (
        f"[bold]How many people can live in the device memory of {options.resident}?[/] It is "
        f"{amount(pool)}. People are asked {AT_ONCE} at a time, so no call waits for another, and "
        "the median latency of a call grows only with what its state costs. When it has doubled, "
        f"the memory is too small. {stage.pace}\n"
    )


def verdict(latency_s: Mapping[str, Mapping[int, float]], resident: int) -> str:
    """The conclusion, in one sentence; all-resident needs more memory with each person."""
    found = ", ".join(
        f"{holds(of_one)} people under {policy}"
        for policy, of_one in latency_s.items()
        if policy != "resident"
    )
    return (
        f"[bold]Verdict:[/] before a call takes twice as long, device memory for {resident} agents "
        f"serves {found or 'as many as it holds'}."
    )
