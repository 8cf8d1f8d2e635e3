"""The processors that this process may use: its affinity, the physical cores among these, and the
quotas of its control groups. Read from the kernel's files below ``root``; torch-free."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostProcessors:
    """``logical`` processors of the process's affinity, the physical ``cores`` that they belong to,
    and the ``quota`` of its control groups in processors; ``None``: no quota."""

    logical: int
    cores: int
    quota: float | None

    @property
    def num_threads(self) -> int:
        """The threads to compute with: one a physical core, since two hyperthreads share a core's
        arithmetic; and not more than the quota feeds, since threads beyond that are stopped
        together once it is used up, wherever they are in a step."""
        return self.cores if self.quota is None else max(1, min(self.cores, int(self.quota)))


def processors(root: Path = Path("/"), allowed: Collection[int] | None = None) -> HostProcessors:
    """The processors of this process; of the affinity ``allowed``, if it is given. Where the kernel
    does not say which processors share a core, each counts as one."""
    if allowed is None:
        has_affinity = hasattr(os, "sched_getaffinity")
        allowed = os.sched_getaffinity(0) if has_affinity else range(os.cpu_count() or 1)
    cores = {_core_of(root, processor) for processor in allowed}
    return HostProcessors(len(allowed), len(cores), cpu_quota(root))


def _core_of(root: Path, processor: int) -> str:
    """What names the core of ``processor``: the list of the processors that share it."""
    topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
    siblings = read(topology / "core_cpus_list") or read(topology / "thread_siblings_list")
    return siblings or str(processor)


def cpu_quota(root: Path) -> float | None:
    """The processors that the control groups of this process, of version 2 or 1, leave to it;
    ``None`` without a limit."""
    shares: list[float] = []
    for group in control_groups(root, ""):
        parts = (read(group / "cpu.max") or "").split()
        if len(parts) == 2:
            shares += _share(*parts)
    for group in control_groups(root, "cpu"):
        limit, period = read(group / "cpu.cfs_quota_us"), read(group / "cpu.cfs_period_us")
        shares += _share(limit, period)
    return min(shares, default=None)


def _share(limit: str | None, period: str | None) -> list[float]:
    """Microseconds a period, over the period; nothing for ``max`` and -1."""
    most, every = number(limit), number(period)
    return [most / every] if most and every else []


def control_groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's control group and its ancestors; ``controller`` is empty for
    version 2."""
    mount = root / "sys/fs/cgroup" / controller
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and controller in parts[1].split(","):
            here = mount / parts[2].strip("/")
            if ".." not in here.parts:
                depth = len(here.parts) - len(mount.parts)
                return [here, *here.parents[:depth]]
    return [mount]


def read(path: Path) -> str | None:
    """The text of a file; ``None`` if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def number(text: str | None) -> int | None:
    """A number in a file of the kernel; ``None`` for ``max`` and other text."""
    if text is None or not text.isascii() or not text.isdigit():
        return None
    return int(text) if len(text) < 20 else None
