"""A segment: a run of blocks with one owner set, and where each block lives. A node of the prefix
tree.

                 0        valid       len(host)
    host      |--copy valid--|--saving--|
    device    |---ready---|--loading--|                 blocks 0 … num_blocks - 1
                 0        valid       len(device)

Both runs start at block 0 and end anywhere: loaded from the front, evicted from the tail. A block
that is valid in both is clean; one on the device only is dirty; one on neither is not in the tree
at all. Only the classes of this file write their fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from scalesim.core import AgentId
from scalesim.memory.tree.run import NOWHERE, TIERS, Run, TierName, Transfer
from scalesim.memory.tree.small_map import SmallMap

if TYPE_CHECKING:
    from scalesim.memory.links.link import PageSource

TOKEN_BYTES = 4  # token ids are kept as little-endian int32
# of those that have none, which are many; writing to one raises
_NOBODY: dict[Any, Any] = cast("dict[Any, Any]", MappingProxyType({}))


class Branch(NamedTuple):
    """The block of a sequence in which an attachment comes into force, and what tells its KV from
    other KV of the same tokens: the attachment's digest and the place in the block."""

    block: int
    mark: bytes


class Owner(Protocol):
    """An agent, as its segments know it; ``AgentState`` has the meaning of each member."""

    id: AgentId
    calls: int
    next_use: float | None
    next_seq: int
    paths: SmallMap[Segment]
    is_gone: bool
    may_be_ranked: bool

    @property
    def leaves_tails(self) -> bool: ...

    def unlikely_to_return(self, segment: Segment) -> bool: ...

    def owns_only(self, segment: Segment) -> bool: ...

    def detach(self, segment: Segment) -> None: ...

    def path_joined(self, upper: Segment, lower: Segment) -> None: ...

    def path_cut(self, segment: Segment, parent: Segment) -> None: ...


class Segment:
    """Token ids, pages on each tier, pins and owners of a run of full blocks (or of one partial
    block).

    ``tokens`` is the token log. ``pins`` counts the leases that hold the segment; a pinned
    segment's device pages do not move. ``uses`` counts the look-ups that went through it to its
    end. A *tail* is a partial block: it hangs under its parent by agent, has no children and is
    never saved. ``mark`` is the branch's, where one begins here. ``source`` gives the content of
    what is not made from tokens (an attachment, which has none): it stays in the tree without
    pages.
    """

    __slots__ = (
        "children",
        "content_children",
        "device",
        "device_children",
        "failed_saves",
        "host",
        "last_seq",
        "last_use",
        "mark",
        "num_blocks",
        "owners",
        "parent",
        "pins",
        "prefetched",
        "seq",
        "source",
        "tail_of",
        "tails",
        "tokens",
        "uses",
    )

    def __init__(
        self,
        parent: Segment | None,
        tokens: bytes,
        num_blocks: int,
        seq: int,
        *,
        mark: bytes = b"",
    ) -> None:
        self.parent = parent
        self.tokens = tokens
        self.num_blocks = num_blocks
        self.seq = seq
        self.mark = mark
        self.tail_of: AgentId | None = None
        self.source: PageSource | None = None
        # by the tokens of the child's first block, and its mark; the leaves of a million agents
        # have no dictionaries of their own: see ``adopt``
        self.children: dict[bytes, Segment] = _NOBODY
        self.tails: dict[AgentId, Segment] = _NOBODY
        self.device = NOWHERE
        self.host = NOWHERE
        self.pins = 0
        self.owners: SmallMap[Owner] = SmallMap()  # by which of its calls each took it last
        self.uses = 0
        self.last_use = 0.0
        self.last_seq = 0
        self.device_children = 0  # children and tails with pages on the device
        self.content_children = 0  # children and tails with pages anywhere
        self.failed_saves = 0
        self.prefetched = 0  # blocks loaded ahead and not yet asked for

    @property
    def is_root(self) -> bool:
        return self.parent is None

    @property
    def is_tail(self) -> bool:
        return self.tail_of is not None

    @property
    def is_attachment(self) -> bool:
        """Whether it holds what is read from a source; one that was removed has none any more."""
        return self.mark != b"" and not self.tokens

    @property
    def is_ready(self) -> bool:
        """Whether all of it can be used."""
        return self.device.valid == self.num_blocks

    @property
    def is_moving(self) -> bool:
        return self.device.transfer is not None or self.host.transfer is not None

    @property
    def num_available(self) -> int:
        """Blocks, from the front, whose content is on a tier or on its way to the device."""
        return max(len(self.device), self.host.valid)

    @property
    def num_missing(self) -> int:
        """Blocks that are not on the device, nor on their way there."""
        return self.num_blocks - len(self.device)

    @property
    def num_dirty(self) -> int:
        """Blocks whose only copy is on the device."""
        return max(0, self.device.valid - self.host.valid)

    # -- pages --------------------------------------------------------------------------------

    def put(self, tier: TierName, pages: Sequence[int], transfer: Transfer | None = None) -> None:
        """The next blocks lie in ``pages`` of ``tier``: their content is there, or comes with
        ``transfer``."""
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
        """The run's transfer is over. Whether its blocks are valid now; if not, their pages are to
        be cut off."""
        run: Run = getattr(self, tier)
        transfer = run.end_transfer()
        if tier == "host":
            failed = transfer.error is not None
            self.failed_saves = 0 if transfer.succeeded else self.failed_saves + failed
        return transfer.succeeded

    def cut(self, tier: TierName, keep: int) -> list[int]:
        """Take back the pages of ``tier`` from block ``keep`` on."""
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

    def _tell_parent(self, tier: TierName, change: int) -> None:
        """The first page comes to ``tier``, or the last one went: the parent counts its children on
        the device, and anywhere."""
        parent = self.parent
        assert parent is not None, self
        if tier == "device":
            parent.device_children += change
        if not self.device and not self.host:
            parent.content_children += change
        assert 0 <= parent.device_children <= parent.content_children, parent

    # -- blocks -------------------------------------------------------------------------------

    def lengthen(self, tokens: bytes, num_blocks: int) -> None:
        """Append whole blocks, which are yet to be put, to a leaf that is wholly on the device."""
        assert not self.children and not self.tails and self.is_ready, self
        self.tokens += tokens
        self.num_blocks += num_blocks

    def shorten(self, count: int, block_bytes: int) -> None:
        """Forget the blocks from ``count`` on, which hold no pages and have nothing below them."""
        assert not self.content_children and not self.children and not self.tails, self
        assert max(len(self.device), len(self.host)) <= count, self
        self.num_blocks = count
        self.tokens = self.tokens[: count * block_bytes]

    def divide(self, count: int, block_bytes: int, seq: int) -> Segment:
        """Give the first ``count`` blocks to a new parent, which is returned; neither is in a tree
        then. Pins and owners are copied, pages and copies in flight are divided."""
        assert 0 < count < self.num_blocks and self.parent is not None, (self, count)
        cut = count * block_bytes
        upper = Segment(self.parent, self.tokens[:cut], count, seq, mark=self.mark)
        upper.pins, upper.uses = self.pins, self.uses
        upper.last_use, upper.last_seq = self.last_use, self.last_seq
        upper.owners = SmallMap(self.owners)
        upper.device, self.device = self.device.divide(count, self, upper)
        upper.host, self.host = self.host.divide(count, self, upper)
        upper.prefetched = min(self.prefetched, len(upper.device))
        self.prefetched -= upper.prefetched
        self.parent, self.tokens, self.mark = upper, self.tokens[cut:], b""
        self.num_blocks -= count
        upper.device_children = int(bool(self.device))
        upper.content_children = int(bool(self.device or self.host))
        return upper

    def join(self, upper: Segment) -> None:
        """Take over the blocks of ``upper``, the parent, and its place; it is in no tree then."""
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
        """``child`` is found by ``key`` from now on."""
        if not self.children:
            self.children = {}
        self.children[key] = child

    def adopt_tail(self, tail: Segment, agent: AgentId) -> None:
        """``tail`` is ``agent``'s from now on."""
        assert agent not in self.tails and tail.parent is self, (self, agent)
        if tail.tail_of is not None:
            del self.tails[tail.tail_of]
        if not self.tails:
            self.tails = {}
        self.tails[agent] = tail
        tail.tail_of = agent

    def leave(self, key: bytes) -> Segment:
        """Leave the parent, which is returned, as a segment without pages and children."""
        parent = self.parent
        assert parent is not None and not self.children and not self.tails, self
        assert not self.device and not self.host and not self.pins, self
        if self.tail_of is not None:
            del parent.tails[self.tail_of]
        else:
            del parent.children[key]
        self.parent = None
        return parent

    # -- who uses it --------------------------------------------------------------------------

    def pin(self) -> bool:
        """A lease holds the segment; whether it is the first."""
        self.pins += 1
        return self.pins == 1

    def unpin(self) -> bool:
        """A lease lets go of the segment; whether it was the last."""
        assert self.pins > 0, self
        self.pins -= 1
        return self.pins == 0

    def touch(self, now: float, seq: int) -> None:
        """It was used at ``now``, as event ``seq``."""
        self.last_use, self.last_seq = now, seq

    def use(self) -> None:
        """A look-up went through to the end."""
        self.uses += 1

    def take_prefetched(self) -> int:
        """How many blocks were loaded ahead; they are asked for now."""
        prefetched, self.prefetched = self.prefetched, 0
        return prefetched

    def expect(self, again: bool) -> None:
        """Whether it counts as used again, whatever look-ups said."""
        self.uses = int(again)

    def own(self, agent: Owner) -> None:
        """``agent``'s newest call took the segment."""
        self.owners[agent] = agent.calls

    def disown(self, agent: Owner) -> None:
        self.owners.pop(agent, None)

    def read_from(self, source: PageSource | None, num_blocks: int) -> None:
        """``source`` gives the content of an attachment; ``None``: the attachment was removed."""
        assert self.is_attachment and num_blocks >= self.num_available, self
        self.source, self.num_blocks = source, num_blocks
        self.expect(source is not None)

    def __repr__(self) -> str:
        return (
            f"Segment#{self.seq}({self.num_blocks} blocks, "
            f"device {self.device.valid}/{len(self.device)}, "
            f"host {self.host.valid}/{len(self.host)}, pins {self.pins})"
        )


def lineage(segment: Segment) -> list[Segment]:
    """``segment`` and its ancestors up to, not including, the root; the deepest first."""
    found = []
    node: Segment | None = segment
    while node is not None and node.parent is not None:
        found.append(node)
        node = node.parent
    return found


def descendants(segment: Segment) -> Iterator[Segment]:
    """Everything below ``segment``, parents before children."""
    stack = [*segment.children.values(), *segment.tails.values()]
    while stack:
        node = stack.pop()
        yield node
        stack += node.children.values()
        stack += node.tails.values()
