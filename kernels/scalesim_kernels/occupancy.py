"""Occupancy: how many programs of a compiled kernel a GPU runs at the same time.

A kernel whose programs take their work from a list wants as many programs as run at once: with
more, the last ones start when the first have ended, and the device is half empty meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

MAX_PROGRAMS = 32  # that a processor runs at once, whatever they need
RESERVED_BYTES = 1024  # of shared memory, by the driver, a program
WARP, WARP_REGISTERS = 32, 256  # threads of a warp; a warp's registers come in multiples of this


@dataclass(frozen=True, slots=True)
class Processors:
    """The streaming multiprocessors of a CUDA device: how many, and what each of them has."""

    count: int
    registers: int
    shared_bytes: int
    threads: int

    def programs(self, registers: int, shared_bytes: int, num_warps: int) -> int:
        """The number of programs that run at once, of a kernel that needs ``registers`` a thread
        and ``shared_bytes`` and ``num_warps`` a program. At least one a processor."""
        a_warp = -(-registers * WARP // WARP_REGISTERS) * WARP_REGISTERS
        return self.count * max(
            1,
            min(
                MAX_PROGRAMS,
                self.registers // max(1, a_warp * num_warps),
                self.shared_bytes // (shared_bytes + RESERVED_BYTES),
                self.threads // (WARP * num_warps),
            ),
        )


# CUDA C++ programming guide, technical specifications by compute capability; H100 and H200 (SXM).
HOPPER = Processors(count=132, registers=1 << 16, shared_bytes=228 << 10, threads=2048)


@lru_cache
def processors(device: torch.device) -> Processors:
    found = torch.cuda.get_device_properties(device)
    return Processors(
        found.multi_processor_count,
        getattr(found, "regs_per_multiprocessor", HOPPER.registers),  # all have as many so far
        found.shared_memory_per_multiprocessor,
        found.max_threads_per_multi_processor,
    )


def resident_programs(kernel: Any, device: torch.device) -> int | None:
    """How many programs of ``kernel``, as a launch returned it, run at once on ``device``; ``None``
    where that is not known: in the interpreter, and on AMD's GPUs, whose registers are counted
    differently."""
    if kernel is None or device.type != "cuda" or torch.version.hip is not None:
        return None
    needs = kernel.metadata
    return processors(device).programs(kernel.n_regs, needs.shared, needs.num_warps)
