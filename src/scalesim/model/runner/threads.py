"""How many threads an engine on a CPU computes with."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import torch

from scalesim.device.processors import HostProcessors, processors

_log = logging.getLogger(__name__)
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def choose_threads(
    asked: int | None,
    found: HostProcessors | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Let torch, and with it the kernels, compute with ``asked`` threads. With ``None``, what
    ``VARIABLES`` say stays; without them, torch keeps its number, but takes no more than
    ``HostProcessors.num_threads``, and a line in the log says so.

    torch counts neither the quota of a container nor, on some processors, hyperthreads. The number
    is the process's, not the engine's: all that computes by torch shares one team of threads.
    """
    before = torch.get_num_threads()
    if asked is not None:
        torch.set_num_threads(asked)
        return
    if any(environment.get(name) for name in VARIABLES):
        return
    found = found or processors()
    if before <= found.num_threads:
        return
    torch.set_num_threads(found.num_threads)
    quota = "no limit" if found.quota is None else f"{found.quota:g}"
    _log.warning(
        "computing with %d threads instead of torch's %d: this process may run on %d processors "
        "of %d cores, its container's quota is %s; threads= or OMP_NUM_THREADS sets another number",
        found.num_threads, before, found.logical, found.cores, quota,
    )  # fmt: skip
