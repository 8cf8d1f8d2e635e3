"""``python -m tests.snapshot.program FOLDER LOG TICKS SEED KILL_AT``: a village that takes a
snapshot after each tick, and goes on from the newest; killed by SIGKILL at its ``KILL_AT``-th call
of a function, on whatever thread, or never (0).

Agents keep values, which are compared after each restore. The program prints how many calls it
made. A line of ``LOG`` is a tick: its number, and what was said.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

from scalesim.engine.engine import Engine
from scalesim.errors import SnapshotError, SnapshotWarning
from tests.snapshot.village import Village, parts

AGENTS = 5


def begin(folder: Path, seed: int) -> tuple[Engine, Village]:
    """From the newest snapshot, or anew where there is none yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SnapshotWarning)  # nothing is damaged, nothing left out
        try:
            engine = Engine.restore(folder, parts())
        except SnapshotError as error:
            if "holds no manifest" not in str(error):
                raise
            return Engine(parts()), Village(agents=AGENTS, seed=seed, keeps=True)
    assert engine.restored is not None
    village = Village.of(engine.restored.data)
    village.check_values(engine)
    return engine, village


def main(folder: Path, log: Path, ticks: int, seed: int, kill_at: int) -> None:
    count = itertools.count(1)
    calls = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls = next(count)
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(profile)
    sys.setprofile(profile)
    engine, village = begin(folder, seed)
    assert engine.clock.now == village.tick, (engine.clock.now, village.tick)
    with engine:
        while village.tick < ticks:
            tick = village.tick
            [said] = village.play(engine)
            line = json.dumps({"tick": tick, "said": said})
            with open(log, "a") as file:
                file.write(line + "\n")
            engine.snapshot(folder, data=village.data())
    sys.setprofile(None)
    print(calls)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6]))
