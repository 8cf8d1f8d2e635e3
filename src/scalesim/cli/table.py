"""The demo's table of results, with its caption and conclusion."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from scalesim.cli.play import PlayScore

COLUMNS = ("policy", "hits", "demand\nloads", "moved", "tokens\nprefilled", "CPU ms\na call")


def table(scores: Sequence[PlayScore]) -> Table:
    """The table with a row for each policy, in the given order."""
    found = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name in COLUMNS:
        found.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for score in scores:
        found.add_row(
            score.policy,
            f"{score.hits:.0%}",
            f"{score.memory.demand_loads}",
            amount(score.moved_bytes),
            f"{score.prefilled_tokens}",
            f"{score.call_cpu_s * 1e3:.1f}",
        )
    return found


def caption(scores: Sequence[PlayScore]) -> str:
    """An explanation of the columns."""
    lines = [
        "Hits: share of the blocks asked for that were on the device; what resident misses is new",
        "text. Demand loads: requests that waited for their state. Moved: between the pools.",
        "Prefilled: tokens of prompts computed, new or no longer held. CPU ms: processor time, in",
        "the median round. The warm-up is not counted.",
    ]
    if any(score.policy == "resident" for score in scores):
        lines.append(
            "The policy resident has room for everyone: no policy hits more, or computes less."
        )
    return " ".join(lines)


def shows(scores: Sequence[PlayScore]) -> str:
    """The conclusion: what the run has shown, and what a run on a CPU cannot show."""
    bound = [score for score in scores if score.policy == "resident"]
    best, *others = sorted(
        (score for score in scores if score not in bound) if len(scores) > len(bound) else scores,
        key=lambda score: -score.hits,
    )
    found = f"{best.policy} found {best.hits:.0%} of its blocks on the device"
    if others:
        found += ", " + ", ".join(f"{score.policy} {score.hits:.0%}" for score in others)
    if bound and best not in bound:
        found += f"; with room for everyone it would be {bound[0].hits:.0%}"
    return (
        f"[bold]Shown:[/] the texts do not depend on the policy, what is in place does: {found}. "
        "On a CPU both pools are the same memory and a copy costs next to nothing, so "
        "times say little here; on a GPU, what is not in place has a bus to cross."
    )


def amount(num_bytes: float) -> str:
    """Bytes in decimal units with about three digits."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if num_bytes >= 10 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} GB"
