"""Liveness: while requests are open, each goes on within a bounded number of completed copies.

A request goes on when it has more tokens than ever: what a preemption takes back and what is then
computed again do not count, so that two requests that take pages from each other in turn are seen
as what they are. Told of each iteration by the scheduler's world.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.sequence import Phase, Sequence


class LivenessError(AssertionError):
    """Requests wait, and nothing that could help them is bound to happen."""


@dataclass(slots=True)
class _Open:
    """An open request: the most tokens it ever had, and when it came to have them."""

    sequence: Sequence
    best: tuple[int, int] = (-1, -1)  # tokens known, tokens computed
    at: int = 0  # the count of copies and iterations then
    crowd: int = 1  # the most requests that were open since


class Progress:
    """``patience`` is how many copies may end, or iterations pass, without *any* request going on;
    a request may wait for that long for each of those that were open meanwhile."""

    def __init__(self, scheduler: Scheduler, patience: int | None = None) -> None:
        self._scheduler = scheduler
        memory = scheduler.memory
        pages = memory.device.num_usable + memory.host.num_usable
        self.patience = patience or 200 + 8 * pages
        self.longest = 0  # that any request waited so far
        self.longest_for_any = 0
        self._open: list[_Open] = []
        self._now = self._last = 0

    def add(self, sequence: Sequence) -> None:
        self._open.append(_Open(sequence, at=self._now))
        self._last = max(self._last, self._now)

    def observe(self, num_ended: int = 0) -> None:
        """An iteration passed, in which so many copies ended. Raises ``LivenessError`` with the
        wait-for graph."""
        self._now += 1 + num_ended
        self._open = [each for each in self._open if each.sequence.phase is not Phase.FINISHED]
        if not self._open:
            self._last = self._now
            return
        crowd = len(self._open)
        for each in self._open:
            each.crowd = max(each.crowd, crowd)
            tokens = self._tokens(each.sequence)
            if tokens > each.best:
                self.longest = max(self.longest, self._now - each.at)
                each.best, each.at, each.crowd = tokens, self._now, crowd
                self._last = self._now
            elif self._now - each.at > self.patience * each.crowd:
                self._fail(f"{name_of(each.sequence)} did not go on for", self._now - each.at)
        self.longest_for_any = max(self.longest_for_any, self._now - self._last)
        if self._now - self._last > self.patience:
            self._fail("no request went on for", self._now - self._last)

    def _tokens(self, sequence: Sequence) -> tuple[int, int]:
        if sequence.lease is None:
            return len(sequence.tokens), -1
        slots, slot = self._scheduler.slots, sequence.slot
        return int(slots.known[slot]), int(slots.done[slot])

    def _fail(self, what: str, count: int) -> None:
        raise LivenessError(
            f"{what} {count} iterations and copies, {self.patience} for each open request are the "
            f"bound:\n{self.wait_for()}"
        )

    def wait_for(self) -> str:
        """Who waits for what: a line for each open request."""
        memory = self._scheduler.memory
        residency = memory.residency
        holders = [
            f"{each.lease.num_blocks} by {name_of(each)}"
            for each in self._scheduler.slots.sequences.values()
            if each.lease is not None
        ]
        moving = {id(transfer): transfer for transfer in residency.transfers.values()}.values()
        pages = (
            f"pages: {memory.device.num_free} free of {memory.device.num_usable}, pinned "
            f"{', '.join(holders) or 'by nobody'}; {residency.transfers.saving_pages} being saved"
        )
        copies = [
            f"copy {each.direction} ({each.purpose}), tickets {sorted(each.tickets)}"
            for each in moving
        ]
        lines = [f"{name_of(each.sequence)}, {self._waits(each.sequence)}" for each in self._open]
        return "\n".join([*lines, pages, *copies])

    def _waits(self, sequence: Sequence) -> str:
        if sequence.lease is None:
            num_free = self._scheduler.slots.num_free
            return "waits for pages" if num_free else "waits for a slot"
        if not sequence.lease.is_ready:
            transfers = self._scheduler.memory.residency.transfers
            tickets = [
                ticket for ticket, each in transfers.items() if sequence.lease in each.waiters
            ]
            return f"waits for tickets {sorted(tickets)}"
        slots, slot = self._scheduler.slots, sequence.slot
        if slots.launched[slot] >= slots.capacity[slot]:
            return f"waits for a page beyond its {sequence.lease.num_blocks}"
        return f"runs: {slots.done[slot]} of {slots.known[slot]} tokens computed"


def name_of(sequence: Sequence) -> str:
    return f"request {sequence.id} of agent {sequence.agent!r} ({sequence.phase.value})"
