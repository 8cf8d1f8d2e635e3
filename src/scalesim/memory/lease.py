"""A lease: the memory of one request, from prefix lookup to release. The parts of memory act; the
lease keeps its own fields consistent, and no other class writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.run import Transfer
from scalesim.memory.tree.segment import Branch, Segment

ADAPTER, WEIGHTS = "adapter", "weights"  # the kinds of attachments


class AttachmentSpec(NamedTuple):
    """State that a request needs beside the KV of its prompt: the ``kind`` of state, the ``digest``
    of its content, the runner's number of its ``layout``, and ``start``, the token position from
    which it is in force and KV depends on it. Of weights, ``block_size``: tokens a page of KV."""

    kind: str
    digest: bytes
    layout: int
    start: int = 0
    block_size: int = 0

    def branch(self, block_size: int) -> Branch:
        """Where the request's path in the prefix tree branches off that of the same tokens without
        the attachment."""
        block, offset = divmod(self.start, block_size)
        return Branch(block, self.digest + offset.to_bytes(2, "little"))


class Attachment(NamedTuple):
    """An attachment of a lease: a pinned segment, whose pages are listed in ``row`` of the block
    table."""

    spec: AttachmentSpec
    segment: Segment
    row: int


@dataclass(eq=False, slots=True)
class Lease:
    """The memory of one request: a pinned path of shared segments that ends at ``end``
    (``num_shared`` blocks), then ``private`` device pages, all listed in ``row`` of the block
    table.

    ``num_cached`` tokens need no computing once the loads are over. ``agent`` will own what the
    request computes; ``None``: no agent will.
    """

    agent: AgentState | None
    end: Segment
    num_shared: int
    private: list[int]
    row: int
    num_cached: int
    num_host_blocks: int = 0  # of shared blocks and attachments, loaded for this request
    num_waited_blocks: int = 0  # shared blocks that were loaded, or on their way already
    num_rebuilt_blocks: int = 0  # behind the shared ones, known to be computed again
    # copy-on-write that is not launched yet: (source page, target page)
    copies: list[tuple[int, int]] = field(default_factory=list)
    copy_source: Segment | None = None  # a partial block, pinned until its copy is launched
    num_pending_loads: int = 0  # transfers that the lease waits for
    failed: Transfer | None = None
    attachments: list[Attachment] = field(default_factory=list)  # pinned like the path
    branch: Branch | None = None  # where an attachment comes into force

    @property
    def num_blocks(self) -> int:
        return self.num_shared + len(self.private)

    @property
    def block_size(self) -> int:
        """Tokens of a block, on one page."""
        return self.end.block_size

    @property
    def num_tokens(self) -> int:
        """How many tokens the blocks take."""
        return self.num_blocks * self.block_size

    @property
    def is_ready(self) -> bool:
        return self.num_pending_loads == 0

    @property
    def error(self) -> Exception | None:
        """The error of the load that failed; ``None`` also where a load was cancelled."""
        return None if self.failed is None else self.failed.error

    @property
    def attachment_failed(self) -> bool:
        """Whether one of the attachments could not be loaded, from the host or from its source.
        Unlike KV, an attachment cannot be computed instead."""
        if self.failed is None or self.failed.error is None:
            return False
        failed = {segment for segment, _ in self.failed.parts}
        return any(attachment.segment in failed for attachment in self.attachments)

    # -- pages --------------------------------------------------------------------------------

    def grow(self, pages: list[int]) -> None:
        """Append private ``pages``."""
        self.private += pages

    def share(self, end: Segment, count: int) -> list[int]:
        """Extend the shared path by ``count`` blocks, to ``end``. Returns the lease's private pages
        of these blocks, which are the caller's now."""
        self.end = end
        self.num_shared += count
        return self.take_private(count)

    def take_private(self, count: int) -> list[int]:
        """Remove the first ``count`` private pages, and return them."""
        pages = self.private[:count]
        assert len(pages) == count, (count, self.private)
        del self.private[:count]
        return pages

    def take_over(self, page: int, num_tokens: int) -> None:
        """Prepend a private ``page`` that holds the next ``num_tokens`` cached tokens."""
        self.private.insert(0, page)
        self.num_cached += num_tokens

    def copy_partial(self, partial: Segment, num_tokens: int) -> None:
        """Let the first private page begin as a copy of ``partial``, which is pinned until the copy
        is launched."""
        assert self.copy_source is None and not self.copies and partial.pins, (self, partial)
        self.copy_source = partial
        self.copies.append((partial.device[0], self.private[0]))
        self.num_cached += num_tokens

    def take_copies(self) -> list[tuple[int, int]]:
        """Return the page copies (source, target) of copy-on-write that are to be launched now, and
        clear them."""
        copies, self.copies = self.copies, []
        return copies

    def take_copy_source(self) -> Segment | None:
        """Return the partial block that was copied, and clear it; the caller unpins the block."""
        copy_source, self.copy_source = self.copy_source, None
        return copy_source

    def attach(self, attachment: Attachment) -> None:
        """Add a pinned attachment."""
        assert attachment.segment.pins and attachment.row, attachment
        self.attachments.append(attachment)

    def record_rebuilt(self, num_blocks: int) -> None:
        """Record that ``num_blocks`` behind the shared ones were cached once and are computed
        again."""
        self.num_rebuilt_blocks = num_blocks

    def make_temporary(self, nobody: AgentState) -> None:
        """Give a lease without an agent to ``nobody``, a forgotten agent: what is computed under it
        is freed at its release."""
        assert self.agent is None and nobody.is_forgotten
        self.agent = nobody

    # -- loads --------------------------------------------------------------------------------

    def wait_for(self, transfer: Transfer) -> None:
        """Wait for ``transfer``."""
        transfer.waiters.append(self)
        self.num_pending_loads += 1

    def loaded(self, transfer: Transfer) -> bool:
        """``transfer``, which this lease waits for, is over. Returns whether it was the last one.

        A transfer without an error may be cancelled in part, by an aborted request whose load this
        lease shared; the lease fails then.
        """
        assert self.num_pending_loads > 0, self
        self.num_pending_loads -= 1
        if transfer.error is not None or (transfer.cancelled and self.failed is None):
            self.failed = transfer
        return self.is_ready

    def stop_waiting(self) -> None:
        """Wait for no transfer any more."""
        self.num_pending_loads = 0
