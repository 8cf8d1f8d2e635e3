"""Runs of pages, and the transfers that fill them: what a segment has on one tier.

Segments are ``Any`` here: they are built of runs, and a run only hands them on.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

if TYPE_CHECKING:
    _Pages = array[int]
else:
    _Pages = array

TierName: TypeAlias = Literal["device", "host"]
TIERS: tuple[TierName, ...] = ("device", "host")
"""The nearest to the compute first; each is an attribute of ``Segment``."""


class Run(_Pages):
    """The pages of a segment's first blocks on one tier, four bytes each. The first ``valid`` pages
    hold their block's content; ``transfer`` is filling the others."""

    __slots__ = ("transfer", "valid")

    valid: int
    transfer: Transfer | None

    def __new__(cls, pages: Iterable[int] = (), valid: int = 0) -> Run:
        run = cast(Run, super().__new__(cls, "i", pages))
        run.valid, run.transfer = valid, None
        return run

    def put(self, pages: Sequence[int], transfer: Transfer | None) -> None:
        """``pages`` hold the next blocks: their content is there, or comes with ``transfer``."""
        assert self.transfer is None and self.valid == len(self), self
        self.extend(pages)
        if transfer is None:
            self.valid = len(self)
        else:
            self.transfer = transfer

    def end_transfer(self) -> Transfer:
        """The transfer is over, and returned: where it succeeded, all blocks are valid."""
        transfer, self.transfer = self.transfer, None
        assert transfer is not None and transfer.is_over, self
        if transfer.succeeded:
            self.valid = len(self)
        return transfer

    def cut(self, keep: int) -> list[int]:
        """Take back the pages from block ``keep`` on."""
        assert self.transfer is None, self
        pages: list[int] = self[keep:].tolist()
        del self[keep:]
        self.valid = min(self.valid, keep)
        return pages

    def divide(self, count: int, segment: Any, upper: Any) -> tuple[Run, Run]:
        """The runs of ``upper``, which is the first ``count`` blocks of ``segment``, and of the
        others; a transfer goes on with both."""
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
    """The run of every segment that has no page on a tier; nobody can write to it."""

    __slots__ = ()
    valid = 0
    transfer = None

    def divide(self, count: int, segment: Any, upper: Any) -> tuple[Run, Run]:
        return NOWHERE, NOWHERE


NOWHERE = cast(Run, _Nowhere())


@dataclass(eq=False, slots=True)
class Transfer:
    """Copies in flight for a run of blocks; over when the last of its tickets has ended.

    ``parts`` are the segments that the run belongs to, in order, with the block count of each; a
    split meanwhile turns one part into two. ``waiters`` are told of the end (the leases of waiting
    requests).
    """

    direction: Literal["in", "out"]
    purpose: Literal["demand", "prefetch", "save", "fill"]  # fill: from a source to the host
    parts: list[tuple[Any, int]]  # (segment, blocks of it)
    tickets: set[int] = field(default_factory=set)
    error: Exception | None = None
    cancelled: bool = False
    waiters: list[Any] = field(default_factory=list)

    @property
    def num_blocks(self) -> int:
        return sum(count for _, count in self.parts)

    @property
    def is_read(self) -> bool:
        """Whether its content comes from a source, not from tokens."""
        return bool(self.parts[0][0].is_attachment)

    @property
    def tier(self) -> TierName:
        """Where the copies go."""
        return "device" if self.direction == "in" else "host"

    @property
    def is_over(self) -> bool:
        return not self.tickets

    @property
    def succeeded(self) -> bool:
        return self.error is None and not self.cancelled

    def divide(self, segment: Any, parts: list[tuple[Any, int]]) -> None:
        """``parts`` stand for that of ``segment``."""
        index = next(i for i, (part, _) in enumerate(self.parts) if part is segment)
        assert self.parts[index][1] == sum(count for _, count in parts), (segment, parts)
        self.parts[index : index + 1] = parts
