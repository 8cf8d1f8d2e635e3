"""Release of idle OpenMP workers, so that one team of workers is active at a time.

On Linux, torch uses GNU OpenMP, which keeps a team of workers for every thread that has computed
anything. With a second team, even an idle one, GNU OpenMP assumes an oversubscribed machine and
puts workers to sleep after every operation: measured on two cores, small operations took 2.4 times
as long. So a caller that waits for the engine's thread releases its own workers. They are started
again by the caller's next operation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

_PAUSE_SOFT = 1  # omp_pause_soft of OpenMP 5.0


def release_idle_workers() -> None:
    """Release the OpenMP workers of the calling thread; without GNU OpenMP, do nothing."""
    pause = _pause_function()
    if pause is not None:
        pause(_PAUSE_SOFT)


@cache
def _pause_function() -> Callable[[int], int] | None:
    """``omp_pause_resource_all`` of the GNU OpenMP library that this process has loaded, if any."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        path = next(line.split()[-1] for line in lines if "libgomp" in line)
        function: Callable[[int], int] = ctypes.PyDLL(path).omp_pause_resource_all
    except (OSError, StopIteration, AttributeError):
        return None
    return function
