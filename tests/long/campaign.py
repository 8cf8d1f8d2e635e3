"""A campaign: one check over many seeds, counted, resumable; a failing seed prints its replay."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

Run = Callable[[int], Counter[str]]
"""Does what one seed says and returns what to count; raises where a property does not hold."""


@dataclass(frozen=True)
class Campaign:
    """``goal`` of what is counted as ``unit``, or what finds the number out; ``about`` says what is
    checked, and when. ``least``: units that a call does whatever its seconds, so that a slow
    machine does not make a campaign of a case or none."""

    name: str
    unit: str
    goal: int | Callable[[], int]
    about: str
    run: Run
    least: int = 1

    @property
    def size(self) -> int:
        return self.goal if isinstance(self.goal, int) else self.goal()


@dataclass
class State:
    """How far a campaign has come: kept in a file, so that it goes on where it stopped."""

    first_seed: int
    next_seed: int
    counts: dict[str, int] = field(default_factory=dict)
    cpu_s: float = 0.0

    def line(self, campaign: Campaign) -> str:
        done = self.counts.get(campaign.unit, 0)
        rest = "".join(
            f", {count:,} {unit}"
            for unit, count in sorted(self.counts.items())
            if unit != campaign.unit
        )
        return (
            f"{campaign.name}: {done:,} {campaign.unit} of {campaign.size:,}{rest}; seeds "
            f"{self.first_seed} to {self.next_seed - 1}, {self.cpu_s:,.0f} s of processor time"
        )


def load(path: Path | None, campaign: Campaign, seed: int) -> State:
    """The state kept in ``path`` under the campaign's name, or a fresh one that begins at
    ``seed``."""
    kept = json.loads(path.read_text()) if path is not None and path.exists() else {}
    return State(**kept[campaign.name]) if campaign.name in kept else State(seed, seed)


def keep(path: Path | None, campaign: Campaign, state: State) -> None:
    if path is None:
        return
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[campaign.name] = asdict(state)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(kept, indent=1))
    fresh.replace(path)


def processor_s() -> float:
    """The processor time of this process, and of the programs that it has started and seen end."""
    return sum(os.times()[:4])


def pursue(
    campaign: Campaign, state: State, *, count: int, seconds: float, path: Path | None
) -> bool:
    """Seed after seed, until ``count`` units are done; or ``seconds`` of processor time are spent
    in this call, and the campaign's ``least`` units done. False if a seed failed. Prints a line in
    the end, and the replay of a failure."""
    spent, kept_at = 0.0, time.monotonic()
    enough = min(count, state.counts.get(campaign.unit, 0) + campaign.least)
    while (done := state.counts.get(campaign.unit, 0)) < count and (
        spent < seconds or done < enough
    ):
        start = processor_s()
        try:
            found = campaign.run(state.next_seed)
        except Exception:
            traceback.print_exc()
            print(
                f"{campaign.name}: seed {state.next_seed} failed; replay: python -m tests.long "
                f"{campaign.name} --seed {state.next_seed} --count 1"
            )
            keep(path, campaign, state)
            print(state.line(campaign), flush=True)
            return False
        took = processor_s() - start
        spent += took
        state.cpu_s += took
        state.next_seed += 1
        state.counts = dict(Counter(state.counts) + found)
        if time.monotonic() - kept_at > 5.0:
            keep(path, campaign, state)
            kept_at = time.monotonic()
    keep(path, campaign, state)
    print(state.line(campaign), flush=True)
    return True
