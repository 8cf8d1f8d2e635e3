"""The demo's table, and what may be read from it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from scalesim.cli.play import Score

COLUMNS = (
    "policy",
    "turns/s",
    "hits",
    "demand\nloads",
    "stall\nms",
    "moved",
    "tokens\nprefilled",
    "s/step",
)


def table(scores: Sequence[Score]) -> Table:
    """A row a policy, in the order in which they ran."""
    found = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name in COLUMNS:
        found.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for score in scores:
        found.add_row(
            score.policy,
            f"{score.turns_per_s:.1f}",
            f"{score.hits:.0%}",
            f"{score.memory.demand_loads}",
            f"{score.memory.stall_s * 1e3:.1f}",
            amount(score.moved_bytes),
            f"{score.prefilled_tokens}",
            f"{score.step_s:.3f}",
        )
    return found


def caption(scores: Sequence[Score]) -> str:
    """How to read the columns, and what this machine can and cannot show."""
    ran = {score.policy for score in scores}
    lines = [
        "Hits: share of the blocks asked for that were on the device; what resident misses is new",
        "text. Demand load: a request waits for its state. Stall: nothing could run meanwhile.",
        "Prefilled: tokens of prompts computed, new or no longer held. The warm-up is not counted.",
    ]
    if "resident" in ran:
        lines.append(
            "The policy resident has no limit on its pool: it is the ceiling, not a rival."
        )
    if ran & {"deadline", "lru-swap"}:
        lines += [
            "On a CPU both pools are the same memory and a copy takes about a millisecond, so the",
            "policies that swap come out close in turns/s, within what else the machine is doing;",
            "they differ in hits and demand loads, each of which on a GPU has a bus to cross.",
        ]
    return " ".join(lines)


def amount(num_bytes: float) -> str:
    """Bytes to read: three digits or so, decimal units."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if num_bytes >= 10 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} GB"
