"""A lease: one request's hold on memory, from its look-up to its release. The manager acts; the
lease keeps its own fields in order, and nobody else writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.run import Transfer
from scalesim.memory.tree.segment import Branch, Segment


class AttachmentUse(NamedTuple):
    """State that a request needs beside the KV of its prompt: what ``kind`` of state, the
    ``digest`` of its content, the runner's number of its ``layout``, and the position from which it
    is in force: KV from there on belongs to it."""

    kind: str
    digest: bytes
    layout: int
    start: int = 0

    def branch(self, block_size: int) -> Branch:
        """Where the request's path leaves that of its tokens alone."""
        block, offset = divmod(self.start, block_size)
        return Branch(block, self.digest + offset.to_bytes(2, "little"))


class Attachment(NamedTuple):
    """What a lease holds of it: a segment, whose pages are listed in ``row`` of the block table."""

    use: AttachmentUse
    segment: Segment
    row: int


@dataclass(eq=False, slots=True)
class Lease:
    """One request's hold on memory. ``num_cached`` tokens need no computing once the loads are
    over."""

    agent: AgentState | None
    end: Segment
    num_shared: int
    private: list[int]
    row: int
    num_cached: int
    num_host_blocks: int = 0  # of the shared blocks and attachments: loaded for this request
    num_waited_blocks: int = 0  # of the shared blocks: those, and those that were on their way
    num_rebuilt_blocks: int = 0  # behind the shared ones: computed again, as far as one can tell
    copies: list[tuple[int, int]] = field(default_factory=list)  # copy-on-write, not yet launched
    borrowed: Segment | None = None  # another's tail, pinned until the copy is launched
    loads: int = 0  # transfers not yet over
    failed: Transfer | None = None
    attachments: list[Attachment] = field(default_factory=list)  # pinned with the path
    branch: Branch | None = None  # where one of them comes into force

    @property
    def num_blocks(self) -> int:
        return self.num_shared + len(self.private)

    @property
    def is_ready(self) -> bool:
        return self.loads == 0

    @property
    def error(self) -> Exception | None:
        """Of the load that failed; ``None`` also where a load was only called back."""
        return None if self.failed is None else self.failed.error

    @property
    def could_not_read(self) -> bool:
        """Whether what failed was a read: what is read cannot be computed instead."""
        return self.error is not None and self.failed is not None and self.failed.is_read

    # -- pages --------------------------------------------------------------------------------

    def grow(self, pages: list[int]) -> None:
        """``pages`` are private, behind the others."""
        self.private += pages

    def share(self, end: Segment, count: int) -> list[int]:
        """The path to ``end`` holds the next ``count`` blocks too; returns their private pages."""
        self.end = end
        self.num_shared += count
        return self.take_private(count)

    def take_private(self, count: int) -> list[int]:
        """The first ``count`` private pages are the lease's no more."""
        pages = self.private[:count]
        assert len(pages) == count, (count, self.private)
        del self.private[:count]
        return pages

    def begin_with(self, page: int, num_tokens: int) -> None:
        """``page``, which holds the next ``num_tokens``, is the first private one."""
        self.private.insert(0, page)
        self.num_cached += num_tokens

    def borrow(self, tail: Segment, num_tokens: int) -> None:
        """The first private page begins as a copy of another's ``tail``, which is pinned."""
        assert self.borrowed is None and not self.copies and tail.pins, (self, tail)
        self.borrowed = tail
        self.copies.append((tail.device[0], self.private[0]))
        self.num_cached += num_tokens

    def take_copies(self) -> list[tuple[int, int]]:
        """The copies on write, which are launched now."""
        copies, self.copies = self.copies, []
        return copies

    def give_back_tail(self) -> Segment | None:
        """What was borrowed is read no more."""
        borrowed, self.borrowed = self.borrowed, None
        return borrowed

    def attach(self, attachment: Attachment) -> None:
        """``attachment``, which is pinned, goes with the lease."""
        assert attachment.segment.pins and attachment.row, attachment
        self.attachments.append(attachment)

    def rebuilds(self, num_blocks: int) -> None:
        """So many blocks behind the shared ones are computed again."""
        self.num_rebuilt_blocks = num_blocks

    def leave_nothing(self, nobody: AgentState) -> None:
        """What is computed goes with the lease, which was nobody's."""
        assert self.agent is None and nobody.is_gone
        self.agent = nobody

    # -- loads --------------------------------------------------------------------------------

    def wait_for(self, transfer: Transfer) -> None:
        transfer.waiters.append(self)
        self.loads += 1

    def loaded(self, transfer: Transfer) -> bool:
        """``transfer`` is over; whether that was the last. Without an error, it was cancelled in
        part: an aborted request's, before ours."""
        assert self.loads > 0, self
        self.loads -= 1
        if transfer.error is not None or (transfer.cancelled and self.failed is None):
            self.failed = transfer
        return self.is_ready

    def wait_no_more(self) -> None:
        self.loads = 0
