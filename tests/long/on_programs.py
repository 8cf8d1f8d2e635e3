"""The hostile campaign: a seed is one program over the public API; nothing is left behind it."""

from __future__ import annotations

import gc
import logging
import random
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch

from tests.long import programs

WARM, WINDOW = 30, 20
GROWTH = 48 << 20
"""More than an allocator's fragments."""
_resident: list[int] = []


def run(seed: int) -> Counter[str]:
    """A program of some tens of operations. Raises ``AssertionError`` with its operations."""
    torch.set_num_threads(1)
    logging.getLogger("scalesim").setLevel(logging.CRITICAL)  # sources fail on purpose
    count = random.Random(f"length {seed}").randint(20, 60)
    found = programs.play(seed, count)
    gc.collect()
    check_flat(resident_bytes())
    return found + Counter({"programs": 1})


def check_flat(now: int) -> None:
    """Memory of this process over all its programs, once it is warm."""
    _resident.append(now)
    after = _resident[WARM:]
    if len(after) < 2 * WINDOW:
        return
    first, last = min(after[:WINDOW]), min(after[-WINDOW:])
    assert last - first < GROWTH, (
        f"memory grew from {first >> 20} to {last >> 20} MB over {len(after)} programs; "
        f"{where_it_grows()}"
    )


def where_it_grows(seed: int = 10**6) -> str:
    """The lines that a few programs more leave most behind."""
    tracemalloc.start()
    try:
        states = []
        for turn in range(3):
            programs.play(seed + turn, 30)
            gc.collect()
            states.append(tracemalloc.take_snapshot())
        grown = [later.compare_to(earlier, "lineno") for earlier, later in pairwise(states[1:])]
        return "; ".join(map(str, grown[0][:5]))
    finally:
        tracemalloc.stop()


def resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0
    return int(status.read_text().split()[1]) * 4096
