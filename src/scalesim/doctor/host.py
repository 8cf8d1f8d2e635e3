"""Host memory and processors: amounts, limits, and what an engine would use."""

from __future__ import annotations

import os
from pathlib import Path

from scalesim.doctor.findings import Section, Settings
from scalesim.engine.backends import CpuBackend
from scalesim.errors import ScaleSimError
from scalesim.memory.pools.pinned import default_host_bytes

UNLIMITED_BYTES = 1 << 60  # cgroups of version 1 write no limit as almost 2**63


def probe(settings: Settings) -> Section:
    section = Section("host")
    memory(section, Path("/"))
    processors(section, Path("/"))
    taken(section, settings, places_on_gpu(settings.device))
    return section


def places_on_gpu(device: str) -> bool:
    from scalesim.engine.build import resolve_device

    try:
        return resolve_device(device) != "cpu"
    except ScaleSimError:  # the device section names it
        return False


def memory(section: Section, root: Path) -> None:
    """Facts about memory, and all limits on it; ``None`` for no limit."""
    info = meminfo(root / "proc/meminfo")
    section.facts["total_bytes"] = info.get("MemTotal")
    section.facts["available_bytes"] = info.get("MemAvailable")
    section.facts["swap_bytes"] = info.get("SwapTotal")
    limit, used = cgroup_memory(root)
    section.facts["container_limit_bytes"] = limit
    section.facts["container_used_bytes"] = used
    section.facts["locked_limit_bytes"] = locked_limit()
    section.facts["transparent_huge_pages"] = choice(
        read(root / "sys/kernel/mm/transparent_hugepage/enabled")
    )
    if section.facts["transparent_huge_pages"] == "never":
        section.find(
            "note",
            "transparent huge pages are off: gathering pages of a CPU's pool walks more tables",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )


def processors(section: Section, root: Path) -> None:
    cores: int | None = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    section.facts["cores"] = cores
    section.facts["container_cores"] = quota
    if cores is not None and quota is not None and quota < cores:
        section.find(
            "warning",
            f"the container may use {quota:g} of {cores} cores; torch starts a thread a core, and "
            "they are stopped together when the quota is used up",
            f"OMP_NUM_THREADS={max(1, int(quota))}",
        )


def taken(section: Section, settings: Settings, on_gpu: bool) -> None:
    """The size that ``host_memory="auto"`` means here, and whether so much is available."""
    if on_gpu:
        wanted, device_bytes = default_host_bytes(), 0
    else:
        backend = CpuBackend()
        wanted, device_bytes = backend.default_host_bytes(), backend.default_device_bytes()
    section.facts["auto_host_memory_bytes"] = wanted
    section.facts["auto_is_pinned"] = on_gpu
    room = room_bytes(section)
    if room is not None and wanted + device_bytes > room:
        section.find(
            "warning",
            f"the pools of an engine without settings may grow to {wanted + device_bytes} bytes, "
            f"and {room} are available",
            "host_memory= and device_memory=, to sum to less",
        )
    locked = section.facts["locked_limit_bytes"]
    if on_gpu and isinstance(locked, int) and locked < wanted:
        section.find(
            "note",
            f"the limit on locked memory is {locked} bytes, and {wanted} would be pinned; some "
            "drivers refuse",
            "ulimit -l unlimited, docker run --ulimit memlock=-1, or a smaller host_memory=",
        )


def room_bytes(section: Section) -> int | None:
    """The bytes available under all known limits."""
    facts = section.facts
    rooms = [facts["available_bytes"]]
    limit, used = facts["container_limit_bytes"], facts["container_used_bytes"]
    if isinstance(limit, int):
        rooms.append(limit - (used if isinstance(used, int) else 0))
    known = [room for room in rooms if isinstance(room, int)]
    return max(0, min(known)) if known else None


# -- reading -------------------------------------------------------------------------------------


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


def choice(text: str | None) -> str | None:
    """``always [madvise] never`` -> ``madvise``."""
    marked = [word.strip("[]") for word in (text or "").split() if word.startswith("[")]
    return marked[0] if marked else None


def meminfo(path: Path) -> dict[str, int]:
    """Bytes by name."""
    found: dict[str, int] = {}
    for line in (read(path) or "").splitlines():
        name, _, amount = line.partition(":")
        value = number(amount.split()[0] if amount.split() else None)
        if value is not None:
            found[name] = value * 1024
    return found


def cgroup_memory(root: Path) -> tuple[int | None, int | None]:
    """(limit, used) in bytes of the control group with the lowest limit, among this process's group
    and its ancestors; for versions 2 and 1."""
    found: list[tuple[int, int | None]] = []
    for group, limit, used in (
        *((folder, "memory.max", "memory.current") for folder in groups(root, "")),
        *(
            (folder, "memory.limit_in_bytes", "memory.usage_in_bytes")
            for folder in groups(root, "memory")
        ),
    ):
        max_bytes = number(read(group / limit))
        if max_bytes is not None and max_bytes < UNLIMITED_BYTES:
            found.append((max_bytes, number(read(group / used))))
    return min(found, key=lambda pair: pair[0]) if found else (None, None)


def cpu_quota(root: Path) -> float | None:
    """The cores that control groups of version 2 allow this process."""
    shares: list[float] = []
    for group in groups(root, ""):
        parts = (read(group / "cpu.max") or "").split()
        quota, period = (number(part) for part in (parts if len(parts) == 2 else ("", "")))
        if quota and period:
            shares.append(quota / period)
    return min(shares, default=None)


def groups(root: Path, controller: str) -> list[Path]:
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


def locked_limit() -> int | None:
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft
