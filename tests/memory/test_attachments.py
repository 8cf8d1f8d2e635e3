"""A further kind of attachment is a class of its own: leases and eviction take it as it is."""

from __future__ import annotations

import numpy as np
import pytest

from scalesim.core import Bytes2D
from scalesim.errors import AttachmentError
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.links.link import LinkError, PageSource
from scalesim.memory.manager import MemoryManager
from scalesim.memory.tree.segment import Segment
from tests.memory.test_residency import SIZE, manager, settle, tokens, turn

PAGES = 3


class Picture(PageSource):
    """Gives the content of a picture's pages."""

    def read(self) -> Bytes2D:
        return np.zeros((PAGES, 1), np.uint8)


class Pictures:
    """The kind: one picture, which is read when somebody asks for it."""

    def __init__(self, memory: MemoryManager) -> None:
        tree = memory.residency.tree
        self.only = tree.insert_attachment(tree.root("pictures"), b"picture")
        self.only.read_from(Picture(), PAGES)

    def segment(self, digest: bytes) -> Segment:
        if digest != self.only.mark:
            raise AttachmentError(f"no picture {digest!r}")
        return self.only


def test_a_lease_pins_loads_and_lists_a_further_kind() -> None:
    memory = manager(8, 8)
    pictures = memory.attachments.kinds["picture"] = Pictures(memory)
    wanted = [AttachmentSpec("picture", b"picture", 5, start=SIZE)]
    first = memory.acquire(1, tokens(1, 2 * SIZE), 2, attachments=wanted)
    second = memory.acquire(2, tokens(2, 2 * SIZE), 2, attachments=wanted)
    assert first is not None and second is not None and not first.is_ready
    assert pictures.only.pins == 2 and memory.device.num_free == 8 - PAGES - 4
    (one,), (other,) = first.attachments, second.attachments
    assert one.row == other.row and one.spec.layout == 5  # one row, however many leases
    check_integrity(memory, [first, second])
    assert memory.acquire(3, tokens(3, SIZE), 2, attachments=wanted) is None  # no room
    settle(memory)
    assert first.is_ready and pictures.only.is_ready
    memory.release(first)
    memory.release(second)
    check_integrity(memory)
    assert memory.device.num_free == 8 - PAGES  # kept, for whoever asks next
    with pytest.raises(AttachmentError, match="no picture"):
        memory.acquire(1, tokens(1, SIZE), 1, attachments=[AttachmentSpec("picture", b"", 0)])


def test_a_failed_load_counts_for_the_leases_of_its_attachment_alone() -> None:
    """A load ahead of time may carry an attachment and KV, which is computed where that fails."""
    memory = manager(12, 12, "lru-swap")
    pictures = memory.attachments.kinds["picture"] = Pictures(memory)
    turn(memory, 0, 2)
    residency, device = memory.residency, memory.tiers.device
    kv = memory.owners.agent(0).newest_end
    assert kv is not None and residency.start_save(kv)
    assert residency.start_fill(pictures.only, Picture())
    settle(memory)
    every = residency.take(12)
    assert every is not None and not kv.device and kv.host.valid == 2
    residency.drops.free(device, every)
    pages = residency.take(PAGES + 2)
    assert pages is not None
    parts = [(pictures.only, pages[:PAGES]), (kv, pages[PAGES:])]
    transfer = residency.start_load(parts, demand=False)
    reader = memory.acquire(0, tokens(0, 2 * SIZE + 1), 3)
    wanted = [AttachmentSpec("picture", b"picture", 5)]
    viewer = memory.acquire(1, tokens(1, SIZE), 1, attachments=wanted)
    assert reader is not None and viewer is not None
    transfer.error = LinkError("lost")
    settle(memory)
    assert reader.failed is transfer and viewer.failed is transfer
    assert viewer.attachment_failed and not reader.attachment_failed
    memory.fail(reader)
    memory.fail(viewer)
    check_integrity(memory)
