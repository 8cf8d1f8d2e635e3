"""Pinned pages: the host pool of a GPU, an aligned mapping that is registered with the driver in
pieces.

torch's pinned allocator rounds sizes up to powers of two, and a single registration of 512 GiB or
more fails (vLLM 51080). A mapping of our own has exactly the size that was asked for.
``engine.build`` makes the pages; ``CudaLink`` reads, writes and closes them. This file loads torch
but not CUDA: the registrar is passed in.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import torch

from scalesim.device.streams import Registrar
from scalesim.errors import ConfigError
from scalesim.memory.pools.storage import allocate_pages

MAX_REGISTRATION_BYTES = 16 << 30
AVAILABLE_SHARE = 0.7
_OS_PAGE_BYTES = mmap.PAGESIZE
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Registration:
    """The bytes ``start … start + num_bytes - 1`` of the mapping, registered in one call."""

    start: int
    num_bytes: int


def seam_pages(page_bytes: int, max_bytes: int = MAX_REGISTRATION_BYTES) -> int:
    """The number of pages in one registration: as many as fit into ``max_bytes``, so that each
    registration begins at a page of the operating system, since the driver pins whole ones and none
    twice."""
    step = math.lcm(page_bytes, _OS_PAGE_BYTES) // page_bytes
    return max(1, max_bytes // (step * page_bytes)) * step


def registrations(num_pages: int, page_bytes: int, pages_each: int) -> list[Registration]:
    """The registrations of a pool: ``pages_each`` pages in each, perhaps fewer in the last."""
    return [
        Registration(first * page_bytes, min(pages_each, num_pages - first) * page_bytes)
        for first in range(0, num_pages, pages_each)
    ]


class PinnedPages:
    """``pages``: a uint8 tensor ``[num_pages, page_bytes]``, registered until ``close``.

    Raises ``ConfigError`` if the driver refuses a registration; none is kept then.
    """

    def __init__(
        self,
        num_pages: int,
        page_bytes: int,
        registrar: Registrar,
        max_registration_bytes: int = MAX_REGISTRATION_BYTES,
    ) -> None:
        self.seam_pages = seam_pages(page_bytes, max_registration_bytes)
        self._registrar = registrar
        num_bytes = num_pages * page_bytes
        self.pages = torch.from_numpy(allocate_pages(num_pages, page_bytes))
        self._open: list[int] = []
        for part in registrations(num_pages, page_bytes, self.seam_pages):
            self._register(part, num_bytes)

    def close(self) -> None:
        """Unregister all pages. May be called again. No copy may use the pages any more."""
        while self._open:
            self._registrar.unregister(self._open.pop())

    def _register(self, part: Registration, num_bytes: int) -> None:
        address = self.pages.data_ptr() + part.start
        error = self._registrar.register(address, part.num_bytes)
        if error:
            done = part.start
            self.close()
            raise ConfigError(
                f"the driver pinned {done} of {num_bytes} bytes of host memory and refused "
                f"{part.num_bytes} more (CUDA error {error}): lower host_memory, or raise the "
                "limit on locked memory (ulimit -l, or the container's)"
            )
        self._open.append(address)


def default_host_bytes() -> int:
    """70 % of the available memory, in bytes: the system cannot take pinned memory back."""
    return int(AVAILABLE_SHARE * available_host_bytes())


def available_host_bytes(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """Bytes that the system can give without swapping, within the limits of this process's control
    groups (of a container or a batch job)."""
    lines = (proc / "meminfo").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    free = int(found["MemAvailable"].split()[0]) * 1024
    for group in _own_groups(proc / "self" / "cgroup", cgroups):
        limit, used = group / "memory.max", group / "memory.current"
        if limit.exists() and used.exists() and (max_bytes := limit.read_text().strip()) != "max":
            free = min(free, int(max_bytes) - int(used.read_text()) + _cached_bytes(group))
    return max(0, free)


def _cached_bytes(group: Path) -> int:
    """Bytes of the file cache of a control group. They count as used, but the system gives them
    back."""
    stat = group / "memory.stat"
    lines = stat.read_text().splitlines() if stat.exists() else []
    found = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(found.get("active_file", 0)) + int(found.get("inactive_file", 0))


def _own_groups(membership: Path, cgroups: Path) -> list[Path]:
    """The control group (version 2) of this process and all groups above it. In a container that
    sees its own group as the root, the path in ``membership`` may not exist."""
    lines = membership.read_text().splitlines() if membership.exists() else []
    path = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    group = cgroups if ".." in path else cgroups / path  # "..": outside of what is seen here
    return [group, *list(group.parents)[: len(group.parts) - len(cgroups.parts)]]


def check_host_bytes(num_bytes: int, available: int) -> None:
    """Raise ``ConfigError`` if ``num_bytes`` cannot be pinned. Otherwise the system would kill the
    process much later."""
    if num_bytes > available:
        raise ConfigError(
            f"host_memory is {num_bytes} bytes, all of it to be pinned, and {available} are "
            f"available; lower it ('auto' takes {AVAILABLE_SHARE:.0%} of what is available)"
        )
