"""The demo's table of results, with its caption and verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from scalesim.cli.play import PlayScore

COLUMNS = (
    "policy", "calls\na sec.", "× re-\ncompute", "× resi-\ndent", "device\nmemory",
    "latency\np50, p95 s", "waited", "pre-\nfilled",
)  # fmt: skip


def table(scores: Sequence[PlayScore]) -> Table:
    """The table with a row for each policy, in the given order."""
    found = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 0, 0, 1))
    for name in COLUMNS:
        found.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for score in scores:
        found.add_row(*cells(score, scores))
    return found


def cells(score: PlayScore, scores: Sequence[PlayScore]) -> list[str]:
    """A policy's row, under ``COLUMNS``."""
    by_name = {each.policy: each for each in scores}
    return [
        score.policy,
        f"{score.calls_per_s:.1f}",
        *(
            f"{score.times(by_name[name]):.2f}" if name in by_name else ""
            for name in ("lru-recompute", "resident")
        ),
        amount(score.peak_bytes),
        f"{score.latency_at(0.5):.2f}, {score.latency_at(0.95):.2f}",
        f"{score.waited:.0%}",
        f"{score.prefilled_tokens}",
    ]


def caption(scores: Sequence[PlayScore]) -> str:
    """An explanation of the columns."""
    return " ".join([
        "× re-compute: how many times as fast as lru-recompute, with a prefix cache and no host",
        "pool; × resident: as resident, with room for everyone. Both are the median of",
        f"{len(scores[0].round_s)} rounds, which the policies played in turn.",
        "Device memory: the most of the pool that was in use. Latency: of a call, from submission",
        "to its end. Waited: calls that waited for their state to be loaded. Prefilled: tokens of",
        "prompts computed, new or no longer held. What everybody did first is not counted.",
    ])  # fmt: skip


def verdict(scores: Sequence[PlayScore], agents: int, resident: int) -> str:
    """The conclusion, in one sentence, from what was measured."""
    by_name = {score.policy: score for score in scores}
    ours = by_name.get("deadline", scores[0])
    room, recompute, swap = (
        by_name.get(name) for name in ("resident", "lru-recompute", "lru-swap")
    )
    parts = []
    if room is not None and room is not ours:
        parts.append(f"was {ours.times(room):.2f} × as fast as with room for everyone")
    if recompute is not None and recompute is not ours:
        parts.append(f"{ours.times(recompute):.1f} × as fast as with a prefix cache alone")
    if not parts:
        parts.append(f"answered {ours.calls_per_s:.1f} calls a second")
    sentence = (
        f"[bold]Verdict:[/] with device memory for {resident} of {agents} agents, {ours.policy} "
        f"{' and '.join(parts)}; {ours.waited:.0%} of its calls waited for their state"
    )
    if swap is not None and swap is not ours:
        sentence += (
            f", against {swap.waited:.0%} of lru-swap's, which does not know who is next, and "
            f"{ours.policy} was {ours.times(swap):.2f} × as fast"
        )
    return f"{sentence}."


def amount(num_bytes: float) -> str:
    """Bytes in decimal units with about three digits."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if num_bytes >= 10 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} GB"
