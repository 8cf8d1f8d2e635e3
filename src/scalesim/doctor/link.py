"""The rates of the link between the two pools, measured through the engine's own ``Link``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from scalesim.doctor.findings import Section, Settings
from scalesim.engine.build import resolve_device
from scalesim.errors import ScaleSimError
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.links.link import MAX_CHUNK_BYTES, Copies, Direction, Link, Timeline
from scalesim.memory.links.thread_link import ThreadLink
from scalesim.memory.pools.storage import allocate_device_pages, allocate_pages

USUAL_PAGE_BYTES = 2 << 20  # Llama-3.1-8B in bf16, 16 tokens
POOL_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # of each of the two
ROUNDS = 3  # the best one counts: other load on the machine only slows copies down
LONGEST_S = 20.0
SLOW_BYTES_PER_S = 10e9
WAYS: tuple[Direction, ...] = ("in", "out")


def probe(settings: Settings) -> Section:
    place = resolve_device(settings.device)
    page_bytes = page_bytes_of(settings, place)
    kind = place.split(":")[0]
    num_pages = max(2, POOL_BYTES[kind] // page_bytes)
    section = Section("link", {"page_bytes": page_bytes, "chunk_bytes": MAX_CHUNK_BYTES})
    link = open_link(place, num_pages, page_bytes)
    section.facts["kind"] = type(link).__name__
    try:
        measure(section, link, num_pages, page_bytes)
    finally:
        link.close()
    judge(section, kind)
    return section


def page_bytes_of(settings: Settings, place: str) -> int:
    """The page size of the examined model; a usual one without a model."""
    from scalesim.doctor.model import geometry_of

    if settings.model is None:
        return USUAL_PAGE_BYTES
    try:
        geometry: PageGeometry = geometry_of(Path(settings.model), place)
    except ScaleSimError:  # the model's section names it
        return USUAL_PAGE_BYTES
    return geometry.page_bytes


def open_link(place: str, num_pages: int, page_bytes: int) -> Link:
    """A link between two new pools, as ``engine.backends`` makes it. The link owns both."""
    if place == "cpu":
        device, host = (allocate_pages(num_pages, page_bytes) for _ in range(2))
        device[:], host[:] = 1, 2  # the first write allocates the memory
        return ThreadLink(device, host, Timeline())
    from scalesim.device.cuda import CudaDevice
    from scalesim.device.streams import Fences
    from scalesim.memory.links.cuda_link import CudaLink
    from scalesim.memory.pools.pinned import PinnedPages

    gpu = CudaDevice.named(place)
    pages = allocate_device_pages(num_pages, page_bytes, place)
    return CudaLink(gpu, pages, PinnedPages(num_pages, page_bytes, gpu.registrar()), Fences())


def measure(section: Section, link: Link, num_pages: int, page_bytes: int) -> None:
    """Measure single pages (every other page, each in a copy of its own) and runs, each way."""
    single, run = range(0, num_pages, 2), range(num_pages)
    for way, name in zip(WAYS, ("host_to_device", "device_to_host"), strict=True):
        for what, pages, num_bytes in (
            ("pages", single, len(single) * page_bytes),
            ("chunks", run, num_pages * page_bytes),
        ):
            seconds = best_of(ROUNDS, lambda pages=pages, way=way: carry(link, {way: pages}))  # type: ignore[misc]
            section.facts[f"{name}_{what}_bytes_per_s"] = round(num_bytes / seconds)
    half = num_pages // 2
    both: dict[Direction, Sequence[int]] = {"in": range(half), "out": range(half, 2 * half)}
    seconds = best_of(ROUNDS, lambda: carry(link, both))
    section.facts["both_ways_chunks_bytes_per_s"] = round(2 * half * page_bytes / seconds)


def best_of(rounds: int, run: Callable[[], float]) -> float:
    return max(min(run() for _ in range(rounds)), 1e-9)


def carry(link: Link, what: dict[Direction, Sequence[int]]) -> float:
    """The seconds that the given copies take together. Consecutive pages are one submission, which
    the link cuts into chunks. Raises the error of a failed copy, or ``TimeoutError``."""
    begin = time.perf_counter()
    waiting: set[int] = set()
    for way, pages in what.items():
        is_run = len(pages) == pages[-1] - pages[0] + 1
        for part in [pages] if is_run else [[page] for page in pages]:
            waiting.update(link.submit(Copies(way, part, part)))
    while waiting:
        link.wait(1.0)
        for ticket, error in link.poll():
            if error is not None:
                raise error
            waiting.discard(ticket)
        if time.perf_counter() - begin > LONGEST_S:
            raise TimeoutError(f"{len(waiting)} copies have not arrived after {LONGEST_S:.0f} s")
    return time.perf_counter() - begin


def judge(section: Section, kind: str) -> None:
    rate = section.facts["host_to_device_chunks_bytes_per_s"]
    if kind == "cuda" and isinstance(rate, int) and rate < SLOW_BYTES_PER_S:
        section.find(
            "warning",
            f"the link carries {rate / 1e9:.1f} GB/s; PCIe 4 with 16 lanes carries about 26",
            "another slot, or the processor next to the GPU (`nvidia-smi topo -m`, `numactl`); "
            "`scalesim plan` and `scalesim replay --link` say what it costs",
        )
    single = section.facts["host_to_device_pages_bytes_per_s"]
    if isinstance(rate, int) and isinstance(single, int) and single < rate / 2:
        section.find(
            "note",
            f"single pages arrive at {single / rate:.0%} of the rate of runs",
            "block_size=64 makes larger pages",
        )
