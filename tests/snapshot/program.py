"""``python -m tests.snapshot.program``: lives of a village that takes a snapshot after each tick,
and goes on from the newest. Agents keep values, which are compared after each restore.

A line of the input is a life, in JSON: folder, log, ticks, seed, and the number of the call of a
function, on whatever thread, at which the life ends by SIGKILL, or 0. Each is a process of its own;
they have one parent, so that torch is imported once. The answer is a line: how many calls the life
made, or ``killed``. A line of the log is a tick: its number, and what was said.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import traceback
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


def live(folder: Path, log: Path, ticks: int, seed: int, kill_at: int) -> int:
    """A life. Returns how many calls it made."""
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
    return calls


def main() -> None:
    while line := sys.stdin.readline():
        folder, log, *numbers = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                print(live(Path(folder), Path(log), *numbers), flush=True)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGKILL:
            print("killed", flush=True)
        elif code:
            sys.exit(code)


if __name__ == "__main__":
    main()
