"""Paths in the prefix tree: how far content reaches on each tier, and how much of it is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import lineage

Path: TypeAlias = list[tuple[Segment, int]]
"""Segments from a root on, each with the number of its blocks that are on the path."""


def usable(path: Path) -> Path:
    """The first part of ``path``, as far as content exists on a tier."""
    found = []
    for segment, count in path:
        num_usable = min(count, segment.num_available)
        if num_usable:
            found.append((segment, num_usable))
        if num_usable < segment.num_blocks:
            break
    return found


def on_device(segment: Segment) -> int:
    """The blocks of ``segment`` that are on the device or on their way there."""
    return len(segment.device)


def above_disk(segment: Segment) -> int:
    """The blocks of ``segment`` that are on the device or the host, or on their way to the
    device."""
    return max(len(segment.device), segment.host.valid)


def path_to(end: Segment, reach: Callable[[Segment], int]) -> Path:
    """The path to ``end``, as far as ``reach`` goes in each segment."""
    path = []
    for segment in reversed(lineage(end)):
        count = reach(segment)
        if count:
            path.append((segment, count))
        if count < segment.num_blocks:
            break
    return path


def num_missing(path: Path) -> int:
    """The number of blocks of ``path`` that are not on the device."""
    return sum(max(0, count - len(segment.device)) for segment, count in path)


def num_disk_only(path: Path) -> int:
    """The number of blocks of ``path`` that are to be read from the disk: not even on their way to
    the host."""
    return sum(
        max(0, count - max(len(segment.device), len(segment.host))) for segment, count in path
    )


def places_to_split(segment: Segment, count: int) -> list[int]:
    """Behind which blocks to split ``segment``, of which a request needs the first ``count``: after
    what a copy is bringing, since a run can have one copy at a time, and the request needs another
    for what follows; and between blocks that are on the device and blocks that are on the disk
    only, since the run of the host begins with the first block, and what is on both host and device
    may leave the host."""
    device, host = len(segment.device), len(segment.host)
    is_on_disk = max(device, host) < count
    places = []
    if 0 < device < count and (
        segment.device.transfer is not None or (is_on_disk and host <= device)
    ):
        places.append(device)
    if is_on_disk and host > device and segment.host.transfer is not None:
        places.append(host)
    return places
