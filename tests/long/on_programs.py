"""The hostile campaign: a seed is one program over the public API; nothing is left behind it."""

from __future__ import annotations

import gc
import logging
import random
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from scalesim.errors import HintWarning
from tests.long import programs, truth

WARM, WINDOW = 8, 6
GROWTH = 32 << 20
"""Bytes, for a run of any length: more than an allocator's fragments."""
MORE_OBJECTS = 20_000
"""That the collector follows, for a run of any length: more than the truth's ring of page events
has, which fills slowly."""
_resident: list[int] = []
_objects: list[int] = []


def run(seed: int) -> Counter[str]:
    """A program of some tens of operations. Raises ``AssertionError`` with its operations."""
    count = random.Random(f"length {seed}").randint(20, 60)
    with quiet():
        found = programs.play(seed, count)
    truth.resident().forget()
    gc.collect()
    check_flat("bytes", _resident, resident_bytes(), GROWTH)
    check_flat("objects", _objects, len(gc.get_objects()), MORE_OBJECTS)
    return found + Counter({"programs": 1})


@contextmanager
def quiet() -> Iterator[None]:
    """Sources fail on purpose, and hints are wrong on purpose: what the engine says of them is not
    shown. The logger is the process's, so its level is put back for who comes after."""
    log = logging.getLogger("scalesim")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HintWarning)
            yield
    finally:
        log.setLevel(before)


def check_flat(what: str, states: list[int], now: int, most: int) -> None:
    """Of this process over all its programs, once it is warm: from the twentieth on."""
    states.append(now)
    after = states[WARM:]
    if len(after) < 2 * WINDOW:
        return
    first, last = min(after[:WINDOW]), min(after[-WINDOW:])
    assert last - first < most, (
        f"{what} grew from {first:,} to {last:,} over {len(after)} programs; {where_it_grows()}"
    )


def where_it_grows(seed: int = 10**6) -> str:
    """The lines that a few programs more leave most behind."""
    tracemalloc.start()
    try:
        states = []
        for turn in range(3):
            with quiet():
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
