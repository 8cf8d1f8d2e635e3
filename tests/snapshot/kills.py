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

TICKS, MAX_KILLS, VILLAGES = 5, 8, 4
ROOT = Path(__file__).parents[2]


@cache
def expected(seed: int) -> list[list[list[int]]]:
    """What a village says that nobody kills."""
    with Engine(parts()) as engine:
        return Village(agents=AGENTS, seed=seed).play(engine, TICKS)


class Lives:
    """Starts lives of the program, one after the other. A context manager."""

    def __enter__(self) -> Lives:
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.snapshot.program"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def live(self, folder: Path, log: Path, seed: int, kill_at: int) -> int | None:
        """A life; the number of its calls, or ``None`` if it was killed."""
        ask, answer = self._parent.stdin, self._parent.stdout
        assert ask is not None and answer is not None
        ask.write(json.dumps([str(folder), str(log), TICKS, seed, kill_at]) + "\n")
        ask.flush()
        found = answer.readline().strip()
        assert found, "a life failed, as it says above"
        return None if found == "killed" else int(found)

    def __exit__(self, *error: object) -> None:
        self._parent.communicate()  # the end of its input is its end


_usual_calls: dict[int, int] = {}


def usual_calls(lives: Lives, seed: int) -> int:
    """How many calls a life makes that nobody kills."""
    if seed not in _usual_calls:
        with TemporaryDirectory() as root:
            calls = lives.live(Path(root, "s"), Path(root, "log"), seed, 0)
        assert calls is not None
        _usual_calls[seed] = calls
    return _usual_calls[seed]


def run(seed: int) -> Counter[str]:
    """Programs that are killed until they are through, at random moments of each life."""
    rng, found = random.Random(seed), Counter[str]()
    with Lives() as lives:
        for village in range(VILLAGES):
            found += play(rng, lives, village)
    return found


def play(rng: random.Random, lives: Lives, village: int) -> Counter[str]:
    """One program, of the village with this seed."""
    num_kills, last, repeated = 0, 0, 0
    with TemporaryDirectory() as root:
        folder, log = Path(root, "s"), Path(root, "log")
        while True:
            most = usual_calls(lives, village) // 2  # so that one program has several ends
            kill_at = 0 if num_kills == MAX_KILLS else rng.randrange(1, most)
            is_over = lives.live(folder, log, village, kill_at) is not None
            num_kills += not is_over
            lines = log.read_text().splitlines() if log.exists() else []
            for line in lines[last:]:
                found = json.loads(line)
                assert found["said"] == expected(village)[found["tick"]], (village, found)
            if lines[last:]:
                first = json.loads(lines[last])["tick"]
                newest = json.loads(lines[last - 1])["tick"] if last else -1
                assert first in (newest, newest + 1), (village, newest, first)
                repeated += first == newest
            last = len(lines)
            if is_over:
                break
        ticks = {json.loads(line)["tick"] for line in lines}
        assert ticks == set(range(TICKS)), (village, ticks)
    return Counter(kills=num_kills, programs=1, repeated=repeated)
