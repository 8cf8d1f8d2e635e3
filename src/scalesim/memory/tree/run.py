"""Runs: the pages of one segment on one tier, and the transfers that fill them.

Segments are typed ``Any`` in this file: a segment is built of runs, and a run never looks into its
segment.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from scalesim.core import TierName
from scalesim.memory.links.link import WAYS, Direction

if TYPE_CHECKING:
    _Pages = array[int]
else:
    _Pages = array

TIERS: tuple[TierName, ...] = ("device", "host", "disk")
"""The tier nearest to the compute first. ``Segment`` has an attribute of each name: its run."""

Loss: TypeAlias = Literal["recompute", "reread", "fatal"]
"""What it means that the content of a segment is on no tier: it is computed again from its tokens,
read again from its source, or gone. What is ``"fatal"`` to lose keeps its pages on the host."""


class Run(_Pages):
    """The pages of a segment's first blocks on one tier, as an array of int32 page ids.

    The first ``valid`` pages hold the content of their blocks; ``transfer`` is filling the others,
    and there are others only while there is a transfer.
    """

    __slots__ = ("transfer", "valid")

    valid: int
    transfer: Transfer | None

    def __new__(cls, pages: Iterable[int] = (), valid: int = 0) -> Run:
        run = cast(Run, super().__new__(cls, "i", pages))
        run.valid, run.transfer = valid, None
        return run

    def put(self, pages: Sequence[int], transfer: Transfer | None) -> None:
        """Append ``pages`` for the next blocks. Their content is valid now or, with ``transfer``,
        once that has succeeded."""
        assert self.transfer is None and self.valid == len(self), self
        self.extend(pages)
        if transfer is None:
            self.valid = len(self)
        else:
            self.transfer = transfer

    def end_transfer(self) -> Transfer:
        """Detach the transfer, which is over, and return it. If it succeeded, all blocks are
        valid."""
        transfer, self.transfer = self.transfer, None
        assert transfer is not None and transfer.is_over, self
        if transfer.succeeded:
            self.valid = len(self)
        return transfer

    def cut(self, keep: int) -> list[int]:
        """Remove the pages from block ``keep`` on, and return them."""
        assert self.transfer is None, self
        pages: list[int] = self[keep:].tolist()
        del self[keep:]
        self.valid = min(self.valid, keep)
        return pages

    def divide(self, count: int, segment: Any, upper: Any) -> tuple[Run, Run]:
        """Divide the run after ``count`` blocks: (run of ``upper``, run of ``segment``). ``upper``
        is the segment of the first blocks, ``segment`` keeps the others; a transfer under way
        continues with both."""
        above = Run(self[:count], min(self.valid, count))
        below = Run(self[count:], max(0, self.valid - count))
        if self.transfer is not None:
            parts = [(upper, len(above) - above.valid), (segment, len(below) - below.valid)]
            parts = [(part, blocks) for part, blocks in parts if blocks]
            self.transfer.divide(segment, parts)
            above.transfer = self.transfer if len(above) > above.valid else None
            below.transfer = self.transfer if len(below) > below.valid else None
        return above or NOWHERE, below or NOWHERE


class _Nowhere(tuple[int, ...]):
    """The empty run of a segment without pages on a tier. All such segments share it, so it cannot
    be written to."""

    __slots__ = ()
    valid = 0
    transfer = None

    def divide(self, count: int, segment: Any, upper: Any) -> tuple[Run, Run]:
        return NOWHERE, NOWHERE


NOWHERE = cast(Run, _Nowhere())


Purpose: TypeAlias = Literal["demand", "prefetch", "save", "fill", "recall", "stage", "spill"]
"""To the device, for a lease that waits (``"demand"``) or ahead of time (``"prefetch"``). To the
host, before an eviction (``"save"``), from a source (``"fill"``), or from the disk, for a lease
that waits (``"recall"``) or ahead of time (``"stage"``). To the disk: ``"spill"``."""


@dataclass(eq=False, slots=True)
class Transfer:
    """A copy of some segments' blocks from one tier to another, from its submission until the last
    of its tickets has ended.

    ``parts`` lists the segments whose blocks are copied, in order, each with its number of blocks;
    a split of a segment during the copy turns one part into two. ``waiters`` are the leases that
    wait for the copy.
    """

    direction: Direction
    purpose: Purpose
    parts: list[tuple[Any, int]]  # (segment, blocks of it)
    tickets: set[int] = field(default_factory=set)
    error: Exception | None = None
    cancelled: bool = False
    waiters: list[Any] = field(default_factory=list)

    @property
    def num_blocks(self) -> int:
        return sum(count for _, count in self.parts)

    @property
    def tier(self) -> TierName:
        """The tier that the copy goes to."""
        return WAYS[self.direction][1]

    @property
    def is_over(self) -> bool:
        return not self.tickets

    @property
    def succeeded(self) -> bool:
        return self.error is None and not self.cancelled

    def divide(self, segment: Any, parts: list[tuple[Any, int]]) -> None:
        """Replace the part of ``segment`` by ``parts``, which have as many blocks together."""
        index = next(i for i, (part, _) in enumerate(self.parts) if part is segment)
        assert self.parts[index][1] == sum(count for _, count in parts), (segment, parts)
        self.parts[index : index + 1] = parts
