"""Host memory and processors: amounts, limits, and what an engine would use."""

from __future__ import annotations

import os
from pathlib import Path

from scalesim.device.processors import control_groups, number, processors, read
from scalesim.doctor.findings import Section, Settings
from scalesim.engine.backends import CpuBackend
from scalesim.errors import ScaleSimError
from scalesim.memory.pools.pinned import default_host_bytes
from scalesim.model.runner.threads import VARIABLES

UNLIMITED_BYTES = 1 << 60  # cgroups of version 1 write no limit as almost 2**63


def probe(settings: Settings) -> Section:
    section = Section("host")
    memory(section, Path("/"))
    cores(section, Path("/"))
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


def cores(section: Section, root: Path) -> None:
    """Facts about processors, and the threads that an engine takes of itself."""
    found = processors(root)
    section.facts["processors"], section.facts["cores"] = found.logical, found.cores
    section.facts["container_cores"] = found.quota
    section.facts["auto_threads"] = found.num_threads
    for name in VARIABLES:
        asked = number(os.environ.get(name))
        if asked is not None and asked > found.num_threads:
            section.find(
                "warning",
                f"{name} asks for {asked} threads, and {found.num_threads} can run at once: of "
                f"{found.cores} cores the container may use {found.quota or found.cores:g}",
                f"unset {name}: an engine takes {found.num_threads} by itself",
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
        *((folder, "memory.max", "memory.current") for folder in control_groups(root, "")),
        *(
            (folder, "memory.limit_in_bytes", "memory.usage_in_bytes")
            for folder in control_groups(root, "memory")
        ),
    ):
        max_bytes = number(read(group / limit))
        if max_bytes is not None and max_bytes < UNLIMITED_BYTES:
            found.append((max_bytes, number(read(group / used))))
    return min(found, key=lambda pair: pair[0]) if found else (None, None)


def locked_limit() -> int | None:
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft
