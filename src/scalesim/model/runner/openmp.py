"""One team of OpenMP workers at a time.

On Linux, torch computes with GNU's OpenMP, which keeps a team of workers for every thread that ever
computed. A second team, even idle, makes it take the machine for oversubscribed and put its workers
to sleep after every operation: measured on two cores, small operations took 2.4 times as long. So a
caller that waits for the engine's thread lets its own workers go; they come back by themselves with
its next operation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

_PAUSE_SOFT = 1  # omp_pause_soft of OpenMP 5.0


def release_idle_workers() -> None:
    """Let the OpenMP workers of the calling thread go. Nothing happens where there is no GNU
    OpenMP."""
    pause = _pause_function()
    if pause is not None:
        pause(_PAUSE_SOFT)


@cache
def _pause_function() -> Callable[[int], int] | None:
    """``omp_pause_resource_all`` of the library that this process has loaded already."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        path = next(line.split()[-1] for line in lines if "libgomp" in line)
        function: Callable[[int], int] = ctypes.CDLL(path).omp_pause_resource_all
    except (OSError, StopIteration, AttributeError):
        return None
    return function
