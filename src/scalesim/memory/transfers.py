"""Open transfers: the copies that the link was given and that have not ended.

``Residency`` submits transfers, and settles them when they are over: which pages become valid or
free is not decided here.
"""

from __future__ import annotations

from scalesim.core import Fence
from scalesim.foreign import Foreign, words_of
from scalesim.memory.counters import Counters
from scalesim.memory.links.link import Copies, Link, LinkError
from scalesim.memory.tree.run import Transfer


class OpenTransfers(dict[int, Transfer]):
    """The open transfers by ticket; a transfer has one entry for each of its open tickets.

    ``saving_pages`` are on their way to the host; ``filling_pages`` of attachments are on their way
    from sources to the host; ``num_demand`` transfers are loads that a request waits for.
    """

    def __init__(self, link: Link, counters: Counters) -> None:
        self.saving_pages = self.filling_pages = self.num_demand = 0
        self._link, self._counters = link, counters
        self._rejected: list[tuple[int, Exception | None]] = []  # reported by the next ``poll``
        self._num_rejected = 0

    def submit(self, transfer: Transfer, copies: Copies, after: Fence | None = None) -> None:
        """Give ``copies`` to the link, to start once ``after`` is reached. If the link raises, the
        transfer fails with the next ``poll``."""
        self._count(transfer, 1)
        tickets: list[int] = []
        with Foreign() as raised:
            tickets = self._link.submit(copies, after, urgent=transfer.purpose == "demand")
        if isinstance(raised.error, AssertionError):
            raise raised.error  # our code or the link broke an invariant: not a failed copy
        if raised.error is not None:
            self._num_rejected += 1
            tickets = [-self._num_rejected]
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
        return over

    def cancel(self, transfer: Transfer) -> bool:
        """Cancel the copies of ``transfer`` that have not started. Returns whether the transfer is
        over with that; otherwise ``poll`` reports its end."""
        for ticket in sorted(transfer.tickets):
            if self._link.cancel(ticket):
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
        elif transfer.purpose == "demand":
            self.num_demand += change
