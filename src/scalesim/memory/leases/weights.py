"""Weights in the page pools: base models beside the engine's own, found by the digest of their
content.

A model's weights are read from their source, and read again after they were dropped, as adapters
are. Each of their parts lies on consecutive device pages, so that a matrix is a plain view. The
agents of a model own its weights: these are moved by the soonest next use among them, however many
there are.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.core import Bytes2D
from scalesim.errors import ModelError
from scalesim.memory.lease import WEIGHTS, AttachmentSpec
from scalesim.memory.leases.sourced import AttachedPages
from scalesim.memory.links.link import PageSource
from scalesim.memory.owners import Owners
from scalesim.memory.residency import Residency
from scalesim.memory.tree.page_runs import PageRuns
from scalesim.memory.tree.segment import Segment

_ROOT = "weights"


def weights_spec(digest: bytes, number: int, block_size: int) -> AttachmentSpec:
    """The weights of a model as an attachment of a request; ``number`` is the runner's of the
    model, of whose KV a page holds ``block_size`` tokens."""
    return AttachmentSpec(WEIGHTS, digest, number, block_size=block_size)


@dataclass(frozen=True, slots=True)
class WeightsContent:
    """A model's weights: ``runs`` are the lengths of their parts in pages, and ``source`` gives the
    pages, uint8 ``[num_pages, page_bytes]``; ``pages`` are the same, where they are read already.
    The ``digest`` covers all that KV depends on beside tokens and adapters."""

    digest: bytes
    runs: tuple[int, ...]
    source: PageSource
    pages: Bytes2D | None = None

    @property
    def num_pages(self) -> int:
        return sum(self.runs)


class WeightPages(AttachedPages):
    """The weights of the models that were added: an ``AttachmentKind``."""

    def __init__(self, residency: Residency, owners: Owners) -> None:
        super().__init__(residency, owners, _ROOT)

    def segment(self, digest: bytes) -> Segment:
        """The segment of the weights with this digest. Raises ``ModelError`` if there is none."""
        if not self.has(digest):
            raise ModelError(f"no model with weights {digest.hex()} was added")
        return self._root.children[digest]

    def add(self, content: WeightsContent) -> None:
        """Add weights, as ``put`` does."""
        runs = PageRuns(content.runs)
        self.put(content.digest, content.num_pages, content.source, content.pages, runs)
