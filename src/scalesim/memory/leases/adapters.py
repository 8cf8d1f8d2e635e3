"""Adapters in the page pools: attachments found by the digest of their content.

A lease pins the adapter as an attachment. KV that was computed with an adapter leaves with it. Runs
on the engine's thread. This file knows bytes, not weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scalesim.core import Bytes2D
from scalesim.errors import AdapterError
from scalesim.memory.lease import ADAPTER, AttachmentSpec
from scalesim.memory.leases.sourced import AttachedPages
from scalesim.memory.links.link import PageSource
from scalesim.memory.owners import Owners
from scalesim.memory.residency import Residency
from scalesim.memory.tree.segment import Segment

_ROOT = "adapters"


def adapter_spec(digest: bytes, layout: int, start: int = 0) -> AttachmentSpec:
    """An adapter as an attachment of a request, in force from token position ``start`` (0 except
    for activated adapters)."""
    return AttachmentSpec(ADAPTER, digest, layout, start)


@dataclass(frozen=True, slots=True)
class AdapterContent:
    """An adapter as it was read: ``pages``, uint8 ``[num_pages, page_bytes]``, and the ``source``
    that gives the same pages again. ``invocation_tokens`` activate the adapter; ``None``: it is
    always active. ``form`` makes the adapter of its pages again, in any process: a plain value.
    ``origin`` is where it can be read again, from whatever folder; ``None``: where it was read."""

    digest: bytes
    layout: int
    num_pages: int
    invocation_tokens: tuple[int, ...] | None
    source: PageSource
    pages: Bytes2D | None = None
    form: Any = None
    origin: str | None = None


class AdapterPages(AttachedPages):
    """The adapters that were added: an ``AttachmentKind``."""

    def __init__(self, residency: Residency, owners: Owners) -> None:
        super().__init__(residency, owners, _ROOT)

    def segment(self, digest: bytes) -> Segment:
        """The segment of the adapter with this digest. Raises ``AdapterError`` if none was
        added."""
        if not self.has(digest):
            raise AdapterError(f"no adapter of content {digest.hex()} was added")
        return self._root.children[digest]

    def add(self, content: AdapterContent) -> None:
        """Add an adapter, as ``put`` does."""
        self.put(content.digest, content.num_pages, content.source, content.pages)
