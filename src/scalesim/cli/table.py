"""The demo's table, and what may be read from it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from scalesim.cli.play import Score

COLUMNS = ("policy", "turns per\nCPU s", "hits", "demand\nloads", "moved", "tokens\nprefilled")


def table(scores: Sequence[Score]) -> Table:
    """A row a policy, in the order in which they were given."""
    found = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name in COLUMNS:
        found.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for score in scores:
        found.add_row(
            score.policy,
            f"{score.turns_per_cpu_s:.1f}",
            f"{score.hits:.0%}",
            f"{score.memory.demand_loads}",
            amount(score.moved_bytes),
            f"{score.prefilled_tokens}",
        )
    return found


def caption(scores: Sequence[Score]) -> str:
    """How to read the columns."""
    lines = [
        "Turns per second of processor time: what else the machine does is not in it.",
        "Hits: share of the blocks asked for that were on the device; what resident misses is new",
        "text. Demand loads: requests that waited for their state. Moved: between the pools.",
        "Prefilled: tokens of prompts computed, new or no longer held. The warm-up is not counted.",
    ]
    if "resident" in {score.policy for score in scores}:
        lines.append(
            "The policy resident has no limit on its pool: it is the ceiling, not a rival."
        )
    return " ".join(lines)


def shows(scores: Sequence[Score]) -> str:
    """What the run has shown, in a sentence, and what a CPU cannot show."""
    by_policy = {score.policy: score for score in scores}
    limited = [score for score in scores if score.policy != "resident"]
    found = "On one pool, every policy says the same"
    if limited:
        best = max(limited, key=lambda score: score.hits)
        found += f"; {best.policy} found most of its state in place: {best.hits:.0%} of the blocks"
        ceiling = by_policy.get("resident")
        if ceiling is not None:
            found += f" ({ceiling.hits:.0%} with room for all)"
        others = [score for score in limited if score is not best]
        if others:
            found += ", against " + " and ".join(
                f"{score.hits:.0%} of {score.policy}" for score in others
            )
    return (
        f"[bold]Shown:[/] {found}. On a CPU both pools are the same memory and a copy costs next "
        "to nothing, so the rates say little: on a GPU, what is not in place crosses a bus."
    )


def amount(num_bytes: float) -> str:
    """Bytes to read: three digits or so, decimal units."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if num_bytes >= 10 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} GB"
