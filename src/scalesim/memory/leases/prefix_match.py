"""The result of a prefix lookup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.leases.partial_blocks import FoundPartialBlock
from scalesim.memory.leases.paths import Path
from scalesim.memory.tree.segment import Branch, Segment


@dataclass(slots=True, eq=False)
class PrefixMatch:
    """What a request of ``num_tokens`` finds, and what it will use of that.

    ``path`` holds ``num_shared`` blocks to be shared; ``num_to_load`` of them are not on the
    device, and ``num_to_recall`` of those are on the disk only.
    ``cached_end`` is the end of the longer cached prefix where the path stops before it, because
    computing the remaining blocks again is sooner than loading them; else ``None``. ``attached``
    are the segments of the attachments ``specs``; ``num_attachment_pages`` of their pages are not
    on the device, those at ``attachment_runs`` (offset, length) to be consecutive.
    ``num_new_pages`` device pages are needed: for loads, and for what the request
    computes. ``must_wait``: something must be loaded before the request can start.
    """

    root: Segment
    path: Path
    cached_end: Segment | None
    branch: Branch | None
    num_tokens: int
    num_shared: int
    num_to_load: int
    num_to_recall: int
    specs: Sequence[AttachmentSpec]
    attached: list[Segment]
    num_attachment_pages: int
    attachment_runs: list[tuple[int, int]]
    num_new_pages: int
    must_wait: bool
    partial: FoundPartialBlock | None = None  # behind the path; found once the path is cut
    lacks_host_room: bool = False  # for what is to be read from the disk
