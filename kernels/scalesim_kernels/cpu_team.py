"""Compiled kernels on torch's own team of threads.

torch runs its operations on a team of GNU OpenMP, whose members wait for the next operation with
their processors busy. A second pool of threads would contend with them for the processors; so jobs
of ours run on that team, by the call that compilers make for a parallel region. Where torch uses
another OpenMP, a job runs on the calling thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

Region = Callable[[Any, Any, int, int], None]


def run(kernel: Any, job: ctypes.Structure, parallel: bool = True) -> None:
    """Run ``kernel`` (of ``cpu_compiled``) on ``job`` by as many threads as torch uses, or, unless
    ``parallel``, by the calling thread: for work that takes less time than waking a team."""
    threads = torch.get_num_threads()
    region = parallel_region() if parallel and threads > 1 else None
    if region is None:
        kernel.ctypes(ctypes.addressof(job))
    else:
        region(kernel.address, ctypes.addressof(job), threads, 0)


@cache
def parallel_region() -> Region | None:
    """``GOMP_parallel`` of the GNU OpenMP that torch has loaded, if any."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        path = next(line.split()[-1] for line in lines if "libgomp" in line)
        region = ctypes.CDLL(path).GOMP_parallel
    except (OSError, StopIteration, AttributeError):
        return None
    region.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    region.restype = None
    found: Region = region
    return found
