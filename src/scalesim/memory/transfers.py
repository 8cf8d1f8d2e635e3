"""Open transfers: the copies that the link was given and that have not ended, and those that wait
for such a copy: a load of pages that are still on their way from the disk to the host.

``Residency`` submits transfers, and settles them when they are over: which pages become valid or
free is not decided here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from scalesim.core import Fence
from scalesim.foreign import Foreign, words_of
from scalesim.memory.counters import Counters
from scalesim.memory.links.link import Copies, Link, LinkError
from scalesim.memory.tree.run import Transfer

_OWN_TICKETS = 1 << 60  # links number theirs from below


class _Held(NamedTuple):
    """A transfer that is given to the link once all transfers ``awaited`` have succeeded."""

    transfer: Transfer
    copies: Copies
    after: Fence | None
    awaited: Sequence[Transfer]


class OpenTransfers(dict[int, Transfer]):
    """The open transfers by ticket; a transfer has one entry for each of its open tickets.

    ``saving_pages`` are on their way from the device to the host; ``filling_pages`` of attachments
    are on their way from sources to the host; ``spilling_pages`` are on their way from the host to
    the disk; ``num_demand`` transfers are loads that a request waits for.
    """

    def __init__(self, link: Link, counters: Counters) -> None:
        self.saving_pages = self.filling_pages = self.spilling_pages = self.num_demand = 0
        self._link, self._counters = link, counters
        self._rejected: list[tuple[int, Exception | None]] = []  # reported by the next ``poll``
        self._held: dict[int, _Held] = {}
        self._tickets = itertools.count(_OWN_TICKETS)

    def submit(
        self,
        transfer: Transfer,
        copies: Copies,
        after: Fence | None = None,
        awaited: Sequence[Transfer] = (),
    ) -> None:
        """Give ``copies`` to the link, to start once ``after`` is reached; but only when the open
        transfers ``awaited`` are over. If one of those fails, or the link raises, the transfer
        fails with a later ``poll``."""
        self._count(transfer, 1)
        if awaited:
            ticket = next(self._tickets)
            self._held[ticket] = _Held(transfer, copies, after, awaited)
            transfer.tickets.add(ticket)
            self[ticket] = transfer
        else:
            self._start(transfer, copies, after)

    def _start(self, transfer: Transfer, copies: Copies, after: Fence | None) -> None:
        tickets: list[int] = []
        urgent = transfer.purpose in ("demand", "recall")
        with Foreign() as raised:
            tickets = self._link.submit(copies, after, urgent=urgent)
        if isinstance(raised.error, AssertionError):
            raise raised.error  # our code or the link broke an invariant: not a failed copy
        if raised.error is not None:
            tickets = [next(self._tickets)]
            why = f"the link took no copy of {copies.num_pages} pages: {words_of(raised.error)}"
            error = LinkError(why)
            error.__cause__ = raised.error
            self._rejected.append((tickets[0], error))
        transfer.tickets.update(tickets)
        for ticket in tickets:
            self[ticket] = transfer

    def poll(self) -> list[Transfer]:
        """The transfers that have ended since the last call, as done or failed."""
        over = []
        rejected, self._rejected = self._rejected, []
        for ticket, error in (*rejected, *self._link.poll()):
            transfer = self.pop(ticket, None)
            if transfer is None:
                self._counters.stale_completions += 1
                continue
            transfer.tickets.discard(ticket)
            transfer.error = transfer.error or error
            if transfer.is_over:
                self._count(transfer, -1)
                over.append(transfer)
        if self._held:
            over += self._release()
        return over

    def _release(self) -> list[Transfer]:
        """Start the held transfers all of whose awaited ones have succeeded. Returns those that
        cannot start, because one of theirs has not."""
        over = []
        for ticket, held in list(self._held.items()):
            if not all(transfer.is_over for transfer in held.awaited):
                continue
            transfer = held.transfer
            del self[ticket], self._held[ticket]
            transfer.tickets.discard(ticket)
            failed = next((each for each in held.awaited if not each.succeeded), None)
            if failed is None:
                self._start(transfer, held.copies, held.after)
                continue
            transfer.error, transfer.cancelled = failed.error, failed.cancelled
            self._count(transfer, -1)
            over.append(transfer)
        return over

    def cancel(self, transfer: Transfer) -> bool:
        """Cancel the copies of ``transfer`` that have not started. Returns whether the transfer is
        over with that; otherwise ``poll`` reports its end."""
        for ticket in sorted(transfer.tickets):
            if self._held.pop(ticket, None) is not None or self._link.cancel(ticket):
                transfer.cancelled = True
                transfer.tickets.discard(ticket)
                del self[ticket]
        if transfer.tickets or not transfer.cancelled:
            return False
        self._count(transfer, -1)
        return True

    def _count(self, transfer: Transfer, change: int) -> None:
        if transfer.purpose == "save":
            self.saving_pages += change * transfer.num_blocks
        elif transfer.purpose == "fill":
            self.filling_pages += change * transfer.num_blocks
        elif transfer.purpose == "spill":
            self.spilling_pages += change * transfer.num_blocks
        elif transfer.purpose == "demand":
            self.num_demand += change
