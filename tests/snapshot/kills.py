"""Runs of the program that are killed and go on: nothing torn, no wrong text or value, one tick
repeated."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from scalesim.engine.engine import Engine
from tests.snapshot.program import AGENTS
from tests.snapshot.village import Village, parts

TICKS, MAX_KILLS = 5, 4
ROOT = Path(__file__).parents[2]


@cache
def expected(seed: int) -> list[list[list[int]]]:
    """What a village says that nobody kills."""
    with Engine(parts()) as engine:
        return Village(agents=AGENTS, seed=seed).play(engine, TICKS)


def start(folder: Path, log: Path, seed: int, kill_at: int) -> int | None:
    """Run the program; the number of its calls, or ``None`` if it was killed."""
    arguments = [str(folder), str(log), str(TICKS), str(seed), str(kill_at)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.snapshot.program", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == -9:
        return None
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@cache
def usual_calls(seed: int) -> int:
    """How many calls a run makes that nobody kills."""
    with TemporaryDirectory() as folder:
        calls = start(Path(folder, "s"), Path(folder, "log"), seed, 0)
    assert calls is not None
    return calls


def run(seed: int) -> Counter[str]:
    """A program that is killed until it is through, at random moments of each life."""
    rng, num_kills, village = random.Random(seed), 0, seed % 4
    with TemporaryDirectory() as root:
        folder, log = Path(root, "s"), Path(root, "log")
        last, repeated = 0, 0
        while True:
            kill_at = 0 if num_kills == MAX_KILLS else rng.randrange(1, usual_calls(village))
            is_over = start(folder, log, village, kill_at) is not None
            num_kills += not is_over
            lines = log.read_text().splitlines() if log.exists() else []
            for line in lines[last:]:
                found = json.loads(line)
                assert found["said"] == expected(village)[found["tick"]], (seed, found)
            if lines[last:]:
                first = json.loads(lines[last])["tick"]
                newest = json.loads(lines[last - 1])["tick"] if last else -1
                assert first in (newest, newest + 1), (seed, newest, first)
                repeated += first == newest
            last = len(lines)
            if is_over:
                break
        ticks = {json.loads(line)["tick"] for line in lines}
        assert ticks == set(range(TICKS)), (seed, ticks)
    return Counter(kills=num_kills, programs=1, repeated=repeated)
