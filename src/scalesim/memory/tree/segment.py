"""A segment: a run of blocks with one owner set, and where each block lives. A node of the prefix
tree.

                 0        saved        len(host)
    host      |--copy valid--|--saving--|
    device    |---ready---|--loading--|                 blocks 0 … num_blocks - 1
                 0        ready       len(device)

Both runs start at block 0 and end anywhere: loaded from the front, evicted from the tail. A block
below both ``ready`` and ``saved`` is clean; one on the device only is dirty; one on neither is not
in the tree at all.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from scalesim.core import AgentId
from scalesim.memory.tree.small_map import SmallMap

if TYPE_CHECKING:
    from scalesim.memory.links.link import PageSource
    from scalesim.memory.tree.owner import AgentState

# of those that have none, which are many; writing to one raises
_NOBODY: dict[Any, Any] = cast("dict[Any, Any]", MappingProxyType({}))
NO_PAGES: list[int] = cast("list[int]", ())
TOKEN_BYTES = 4  # token ids are kept as little-endian int32


class Branch(NamedTuple):
    """The block of a sequence in which an adapter comes into force, and what tells its KV from
    other KV of the same tokens: the adapter's digest and the place in the block."""

    block: int
    mark: bytes


class Segment:
    """Token ids, pages on both tiers, pins and owners of a run of full blocks (or of one partial
    block).

    ``tokens`` is the token log. ``pins`` counts the leases that hold the segment; a pinned
    segment's device pages do not move. ``uses`` counts the look-ups that went through it to its
    end. A *tail* is a partial block: it hangs under its parent by agent, has no children and is
    never saved. ``mark`` is the branch's, where one begins here. ``source`` gives the content of
    what is not made from tokens (an adapter, which has none): it stays in the tree without pages.
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
        "load",
        "mark",
        "num_blocks",
        "owners",
        "parent",
        "pins",
        "prefetched",
        "ready",
        "save",
        "saved",
        "seq",
        "source",
        "tail_of",
        "tails",
        "tokens",
        "uses",
    )

    def __init__(self, parent: Segment | None, tokens: bytes, num_blocks: int, seq: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.num_blocks = num_blocks
        self.seq = seq
        self.mark = b""
        self.source: PageSource | None = None
        # by the tokens of the child's first block, and its mark; the leaves of a million agents
        # have no dictionaries of their own: see ``adopt``
        self.children: dict[bytes, Segment] = _NOBODY
        self.tails: dict[AgentId, Segment] = _NOBODY
        self.tail_of: AgentId | None = None
        self.device = NO_PAGES
        self.ready = 0
        self.host = array("i")  # four bytes a page: those of idle agents are many
        self.saved = 0
        self.load: Transfer | None = None
        self.save: Transfer | None = None
        self.pins = 0
        self.owners: SmallMap[AgentState] = SmallMap()  # by which of its calls each took it last
        self.uses = 0
        self.last_use = 0.0
        self.last_seq = 0
        self.device_children = 0  # children and tails with pages on the device
        self.content_children = 0  # children and tails with pages anywhere
        self.failed_saves = 0
        self.prefetched = 0  # blocks loaded ahead and not yet asked for

    def adopt(self, child: Segment, key: bytes) -> None:
        """``child`` is found by ``key`` from now on."""
        if not self.children:
            self.children = {}
        self.children[key] = child

    def adopt_tail(self, tail: Segment, agent: AgentId) -> None:
        if not self.tails:
            self.tails = {}
        self.tails[agent] = tail

    @property
    def is_root(self) -> bool:
        return self.parent is None

    @property
    def is_tail(self) -> bool:
        return self.tail_of is not None

    @property
    def is_adapter(self) -> bool:
        """Whether it holds what is read from a source; one that was removed has none any more."""
        return self.mark != b"" and not self.tokens

    @property
    def num_available(self) -> int:
        """Blocks, from the front, whose content is on a tier or on its way to the device."""
        return max(len(self.device), self.saved)

    @property
    def num_dirty(self) -> int:
        """Blocks whose only copy is on the device."""
        return max(0, self.ready - self.saved)

    def __repr__(self) -> str:
        return (
            f"Segment#{self.seq}({self.num_blocks} blocks, device {self.ready}/{len(self.device)}, "
            f"host {self.saved}/{len(self.host)}, pins {self.pins})"
        )


@dataclass(eq=False, slots=True)
class Transfer:
    """Copies in flight for a run of blocks; over when the last of its tickets has ended.

    ``parts`` are the segments that the run belongs to, in order, with the block count of each; a
    split meanwhile turns one part into two. ``waiters`` are told of the end (the leases of waiting
    requests).
    """

    direction: Literal["in", "out"]
    purpose: Literal["demand", "prefetch", "save", "fill"]  # fill: from a source to the host
    parts: list[tuple[Segment, int]]
    tickets: set[int] = field(default_factory=set)
    error: Exception | None = None
    cancelled: bool = False
    waiters: list[Any] = field(default_factory=list)

    @property
    def num_blocks(self) -> int:
        return sum(count for _, count in self.parts)


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
