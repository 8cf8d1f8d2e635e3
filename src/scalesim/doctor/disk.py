"""The rates of a disk for state, measured through the engine's own slot files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp

from scalesim.core import Bytes2D
from scalesim.doctor.findings import Section, Settings
from scalesim.doctor.link import ROUNDS, best_of, page_bytes_of
from scalesim.engine.build import resolve_device
from scalesim.memory.disk.slot_files import SlotFiles
from scalesim.memory.pools.storage import allocate_pages

TRIAL_BYTES = 512 << 20
SLOW_BYTES_PER_S = 1e9


def probe(settings: Settings) -> Section:
    """Writes and reads a trial file in a new folder inside ``settings.disk``, and removes it."""
    assert settings.disk is not None
    section, parent = Section("disk"), Path(settings.disk)
    page_bytes = page_bytes_of(settings, resolve_device(settings.device))
    free = shutil.disk_usage(parent).free
    section.facts |= {"folder": str(parent), "free_bytes": free, "page_bytes": page_bytes}
    num_pages = max(2, TRIAL_BYTES // page_bytes)
    if free < 2 * num_pages * page_bytes:
        section.find(
            "warning",
            f"{parent} has {free / 1e9:.1f} GB free: too little to measure, or to hold state",
            "another folder, or delete something",
        )
        return section
    folder = Path(mkdtemp(prefix="scalesim-doctor-", dir=parent))
    try:
        files = SlotFiles(folder, page_bytes, num_pages)
        try:
            measure(section, files, num_pages)
        finally:
            files.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    judge(section)
    return section


def measure(section: Section, files: SlotFiles, num_pages: int) -> None:
    """Measure runs both ways, and reads of single pages, every other one."""
    pool = allocate_pages(num_pages, files.page_bytes)
    pool[:] = 1
    run, single = range(num_pages), range(0, num_pages, 2)
    files.write(run, pool, run)  # allocates the file
    for name, copy, pages, step in (
        ("write", files.write, run, num_pages),
        ("read", files.read, run, num_pages),
        ("read_pages", files.read, single, 1),
    ):
        seconds = best_of(ROUNDS, lambda c=copy, p=pages, s=step: took(c, p, pool, s))  # type: ignore[misc]
        section.facts[f"{name}_bytes_per_s"] = round(len(pages) * files.page_bytes / seconds)
    section.facts["past the page cache"] = files.is_direct


Copy = Callable[[Sequence[int], Bytes2D, Sequence[int]], None]


def took(copy: Copy, pages: Sequence[int], pool: Bytes2D, step: int) -> float:
    """The seconds of ``copy`` for ``pages``, ``step`` of them a call."""
    begin = time.perf_counter()
    for start in range(0, len(pages), step):
        part = pages[start : start + step]
        copy(part, pool, part)
    return time.perf_counter() - begin


def judge(section: Section) -> None:
    rate = section.facts["read_bytes_per_s"]
    if isinstance(rate, int) and rate < SLOW_BYTES_PER_S:
        section.find(
            "note",
            f"the disk gives {rate / 1e9:.2f} GB/s; NVMe drives give 3 to 14",
            "disk=a folder on a faster drive; `scalesim plan --disk` and `scalesim replay --disk` "
            "say what it costs",
        )
    if not section.facts["past the page cache"]:
        section.find(
            "note",
            "the file system has no O_DIRECT: the rates are those of the page cache",
            "disk=a folder on ext4, xfs or btrfs",
        )
