"""A segment: a run of blocks with one set of owners, and the pages of these blocks on each tier. A
node of the prefix tree.

                 0        valid       len(disk)
    disk      |--copy valid---|--spilling--|
    host      |--copy valid--|--saving, staging--|
    device    |---ready---|--loading--|                 blocks 0 … num_blocks - 1
                 0        valid       len(device)

The run of each tier starts at block 0 and may end before the last block: blocks are loaded from the
front and evicted from the end. A block that is valid on the device only is dirty; one that is valid
on a lower tier as well is clean there; a block without content on any tier is not in the tree. Only
the classes of this file write their fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from scalesim.core import AgentId, TierName
from scalesim.memory.tree.owning import Owner
from scalesim.memory.tree.page_runs import NO_RUNS, PageRuns
from scalesim.memory.tree.run import NOWHERE, TIERS, Loss, Run, Transfer
from scalesim.memory.tree.small_map import SmallMap

if TYPE_CHECKING:
    from scalesim.memory.links.link import PageSource

TOKEN_BYTES = 4  # token ids are kept as little-endian int32
# Shared by all segments without children; writing to it raises.
_EMPTY: dict[Any, Any] = cast("dict[Any, Any]", MappingProxyType({}))


class Branch(NamedTuple):
    """Where an attachment comes into force in a sequence: ``block`` is the index of the block, and
    ``mark`` (digest of the attachment, offset in the block) keeps the KV apart from KV of the same
    tokens without the attachment."""

    block: int
    mark: bytes


class Segment:
    """A run of full blocks, or one partial block: its tokens, pages, pins and owners.

    ``tokens`` are the token ids as little-endian int32. ``pins`` counts the leases that use the
    segment; the device pages of a pinned segment stay where they are. ``num_hits`` counts the
    prefix lookups that matched the segment to its end. ``children`` maps the first block (and mark)
    of each child to the child; ``partials`` maps an agent to its partial block that continues this
    segment. A partial block has no children and is never saved. ``mark`` is set where a ``Branch``
    begins at this segment. ``source`` gives the content of an attachment, which has no tokens: an
    attachment stays in the tree without pages, and is read again when it is needed. ``loss`` and
    ``block_size`` (tokens) are the root's. ``runs``: the parts of an attachment that each lie on
    consecutive device pages. ``failed_saves`` also counts reads from ``source`` to the host.
    """

    __slots__ = (
        "block_size",
        "children",
        "content_children",
        "device",
        "device_children",
        "disk",
        "failed_saves",
        "host",
        "last_seq",
        "last_use",
        "loss",
        "mark",
        "num_blocks",
        "num_hits",
        "owners",
        "parent",
        "partial_of",
        "partials",
        "pins",
        "prefetched",
        "runs",
        "seq",
        "source",
        "tokens",
    )

    def __init__(
        self,
        parent: Segment | None,
        tokens: bytes,
        num_blocks: int,
        seq: int,
        *,
        mark: bytes = b"",
        loss: Loss = "recompute",
        block_size: int = 0,
    ) -> None:
        self.parent = parent
        self.loss: Loss = loss if parent is None else parent.loss
        self.block_size: int = block_size if parent is None else parent.block_size
        self.tokens = tokens
        self.num_blocks = num_blocks
        self.seq = seq
        self.mark = mark
        self.partial_of: AgentId | None = None
        self.source: PageSource | None = None
        self.runs = NO_RUNS
        # The leaves of a million agents have no dictionaries of their own: see ``adopt``.
        self.children: dict[bytes, Segment] = _EMPTY
        self.partials: dict[AgentId, Segment] = _EMPTY
        self.device = NOWHERE
        self.host = NOWHERE
        self.disk = NOWHERE
        self.pins = 0
        self.owners: SmallMap[Owner] = SmallMap()  # owner -> number of its call that used it last
        self.num_hits = 0
        self.last_use = 0.0
        self.last_seq = 0
        self.device_children = 0  # children and partial blocks with pages on the device
        self.content_children = 0  # children and partial blocks with pages on any tier
        self.failed_saves = 0
        self.prefetched = 0  # blocks that were prefetched and not yet used

    @property
    def block_bytes(self) -> int:
        """Bytes of the tokens of a block."""
        return self.block_size * TOKEN_BYTES

    @property
    def is_root(self) -> bool:
        return self.parent is None

    @property
    def is_partial(self) -> bool:
        return self.partial_of is not None

    @property
    def is_attachment(self) -> bool:
        """Whether the content is read from a source, and not computed from tokens. True also after
        the attachment was removed, when ``source`` is ``None``."""
        return self.mark != b"" and not self.tokens

    @property
    def is_removed(self) -> bool:
        """Whether this attachment lost its source or, where it never had one, its last owner."""
        return not self.owners if self.loss == "fatal" else self.source is None

    @property
    def is_ready(self) -> bool:
        """Whether all blocks are valid on the device."""
        return self.device.valid == self.num_blocks

    @property
    def is_moving(self) -> bool:
        return bool(self.device.transfer or self.host.transfer or self.disk.transfer)

    @property
    def num_available(self) -> int:
        """Blocks from the front whose content is on a tier, or on its way to the device."""
        return max(len(self.device), self.host.valid, self.disk.valid)

    @property
    def num_missing(self) -> int:
        """Blocks that are neither on the device nor on their way there."""
        return self.num_blocks - len(self.device)

    @property
    def missing_runs(self) -> list[tuple[int, int]]:
        """(offset, length) of each of the ``runs`` among the missing blocks."""
        return self.runs.missing(len(self.device))

    @property
    def num_dirty(self) -> int:
        """Blocks whose only copy is on the device."""
        return max(0, self.device.valid - max(self.host.valid, self.disk.valid))

    @property
    def num_unsaved(self) -> int:
        """Blocks that are on the device and not on the host: what a save copies."""
        return max(0, self.device.valid - self.host.valid)

    @property
    def num_unspilled(self) -> int:
        """Blocks that are on the host and not on the disk: what a spill copies."""
        return max(0, self.host.valid - self.disk.valid)

    # -- pages --------------------------------------------------------------------------------

    def put(self, tier: TierName, pages: Sequence[int], transfer: Transfer | None = None) -> None:
        """Append ``pages`` of ``tier`` for the next blocks. Their content is valid now or, with
        ``transfer``, once that has succeeded."""
        run: Run = getattr(self, tier)
        assert len(run) + len(pages) <= self.num_blocks, (self, len(pages))
        if not pages:
            return
        if not run:
            self._tell_parent(tier, 1)
            run = Run()
            setattr(self, tier, run)
        run.put(pages, transfer)
        if transfer is not None and transfer.purpose == "prefetch":
            self.prefetched += len(pages)

    def end_transfer(self, tier: TierName) -> bool:
        """Detach the transfer of ``tier``, which is over. Returns whether its blocks are valid now;
        if not, the caller cuts their pages."""
        run: Run = getattr(self, tier)
        transfer = run.end_transfer()
        if transfer.purpose in ("save", "fill"):
            failed = transfer.error is not None
            self.failed_saves = 0 if transfer.succeeded else self.failed_saves + failed
        return transfer.succeeded

    def cut(self, tier: TierName, keep: int) -> list[int]:
        """Remove the pages of ``tier`` from block ``keep`` on, and return them."""
        run: Run = getattr(self, tier)
        if keep >= len(run):
            return []
        assert not (self.pins and tier == "device" and keep < run.valid), self
        pages = run.cut(keep)
        if not run:
            setattr(self, tier, NOWHERE)
            self._tell_parent(tier, -1)
        if tier == "device" and self.prefetched:
            self.prefetched = max(0, self.prefetched - len(pages))
        return pages

    def move_page(self, tier: TierName, block: int, page: int) -> None:
        """The content of ``block`` lies on another ``page`` of ``tier`` now."""
        run: Run = getattr(self, tier)
        assert not self.is_moving, self
        run[block] = page

    def _tell_parent(self, tier: TierName, change: int) -> None:
        """Update the parent's counts of children with pages: this segment's first page came to
        ``tier`` (``change`` 1), or its last page left (-1)."""
        parent = self.parent
        assert parent is not None, self
        if tier == "device":
            parent.device_children += change
        if not (self.device or self.host or self.disk):
            parent.content_children += change
        assert 0 <= parent.device_children <= parent.content_children, parent

    # -- blocks -------------------------------------------------------------------------------

    def lengthen(self, tokens: bytes, num_blocks: int) -> None:
        """Append ``num_blocks`` blocks without pages. The segment is a leaf and wholly on the
        device."""
        assert not self.children and not self.partials and self.is_ready, self
        self.tokens += tokens
        self.num_blocks += num_blocks

    def shorten(self, count: int) -> None:
        """Forget the blocks from ``count`` on. They have no pages, and the segment has no
        children."""
        assert not self.content_children and not self.children and not self.partials, self
        assert max(len(self.device), len(self.host), len(self.disk)) <= count, self
        self.num_blocks = count
        self.tokens = self.tokens[: count * self.block_bytes]

    def divide(self, count: int, seq: int) -> Segment:
        """Move the first ``count`` blocks to a new segment, which becomes the parent, and return
        it. The caller links both into the tree. Pins and owners are copied to the new segment;
        pages, and copies under way, are divided."""
        assert 0 < count < self.num_blocks and self.parent is not None, (self, count)
        cut = count * self.block_bytes
        upper = Segment(self.parent, self.tokens[:cut], count, seq, mark=self.mark)
        upper.pins, upper.num_hits = self.pins, self.num_hits
        upper.last_use, upper.last_seq = self.last_use, self.last_seq
        upper.owners = SmallMap(self.owners)
        upper.device, self.device = self.device.divide(count, self, upper)
        upper.host, self.host = self.host.divide(count, self, upper)
        upper.disk, self.disk = self.disk.divide(count, self, upper)
        upper.prefetched = min(self.prefetched, len(upper.device))
        self.prefetched -= upper.prefetched
        self.parent, self.tokens, self.mark = upper, self.tokens[cut:], b""
        self.num_blocks -= count
        upper.device_children = int(bool(self.device))
        upper.content_children = int(bool(self.device or self.host or self.disk))
        return upper

    def join(self, upper: Segment) -> None:
        """Take over the blocks of ``upper``, the parent, and its parent. ``upper`` leaves the
        tree."""
        assert self.parent is upper and not (self.pins or upper.pins or self.mark), (upper, self)
        self.parent, upper.parent = upper.parent, None
        self.tokens, self.mark = upper.tokens + self.tokens, upper.mark
        self.num_blocks += upper.num_blocks
        self.prefetched += upper.prefetched
        for tier in TIERS:
            above: Run = getattr(upper, tier)
            below: Run = getattr(self, tier)
            assert above.transfer is None and below.transfer is None, (upper, self)
            if above:
                assert not below or above.valid == upper.num_blocks, (upper, self)
                setattr(self, tier, Run([*above, *below], above.valid + below.valid))
        for owner in self.owners:
            self.owners[owner] = max(self.owners[owner], upper.owners[owner])

    # -- the tree -----------------------------------------------------------------------------

    def adopt(self, child: Segment, key: bytes) -> None:
        """Link ``child`` under ``key``, its first block and mark."""
        if not self.children:
            self.children = {}
        self.children[key] = child

    def adopt_partial(self, partial: Segment, agent: AgentId) -> None:
        """Link ``partial`` as the partial block of ``agent``, and no longer as another agent's."""
        assert agent not in self.partials and partial.parent is self, (self, agent)
        if partial.partial_of is not None:
            del self.partials[partial.partial_of]
        if not self.partials:
            self.partials = {}
        self.partials[agent] = partial
        partial.partial_of = agent

    def unlink(self, key: bytes) -> Segment:
        """Remove this segment, which has no pages, pins or children, from its parent, and return
        the parent."""
        parent = self.parent
        assert parent is not None and not self.children and not self.partials, self
        assert not (self.device or self.host or self.disk or self.pins), self
        if self.partial_of is not None:
            del parent.partials[self.partial_of]
        else:
            del parent.children[key]
        self.parent = None
        return parent

    # -- pins, uses and owners ----------------------------------------------------------------

    def pin(self) -> bool:
        """Count one more lease that uses the segment. Returns whether it is the first."""
        self.pins += 1
        return self.pins == 1

    def unpin(self) -> bool:
        """Count one lease less. Returns whether it was the last."""
        assert self.pins > 0, self
        self.pins -= 1
        return self.pins == 0

    def touch(self, now: float, seq: int) -> None:
        """Record a use at ``now``, as event ``seq``."""
        self.last_use, self.last_seq = now, seq

    def record_hit(self) -> None:
        """Record that a prefix lookup matched the segment to its end."""
        self.num_hits += 1

    def take_prefetched(self) -> int:
        """Return the number of blocks that were prefetched and not yet used, and reset it: they are
        used now."""
        prefetched, self.prefetched = self.prefetched, 0
        return prefetched

    def set_reused(self, reused: bool) -> None:
        """Rank the segment as used again (or as never used again), whatever lookups have shown."""
        self.num_hits = int(reused)

    def own(self, agent: Owner, call: int | None = None) -> None:
        """Add ``agent`` as an owner, as of its newest call, or of an earlier ``call``."""
        self.owners[agent] = agent.calls if call is None else call

    def disown(self, agent: Owner) -> None:
        self.owners.pop(agent, None)

    def read_from(
        self, source: PageSource | None, num_blocks: int, runs: PageRuns = NO_RUNS
    ) -> None:
        """Set the source of an attachment of ``num_blocks``, with these ``runs``; ``None`` where
        the attachment was removed. What failed before counts no more."""
        assert self.is_attachment and num_blocks >= self.num_available, self
        assert sum(runs) in (0, num_blocks), (runs, num_blocks)
        self.source, self.num_blocks = source, num_blocks
        self.runs, self.failed_saves = runs or self.runs, 0
        self.set_reused(source is not None)

    def __repr__(self) -> str:
        return (
            f"Segment#{self.seq}({self.num_blocks} blocks, "
            f"device {self.device.valid}/{len(self.device)}, "
            f"host {self.host.valid}/{len(self.host)}, "
            f"disk {self.disk.valid}/{len(self.disk)}, pins {self.pins})"
        )
