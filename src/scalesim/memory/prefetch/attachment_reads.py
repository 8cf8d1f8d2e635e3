"""Reading ahead: attachments that are on no tier are read from their sources before their owners
call.

A part of ``Prefetcher``, which says when the load to the device has to start; the read has to be
over by then. ``Residency`` starts the reads, and a link does them on a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.prefetch.queue import is_away
from scalesim.memory.residency import Residency
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment

ASSUMED_BYTES_PER_S = 2e8


class AttachmentReads:
    """Plans the reads for the agents in ``queue``. ``rate`` gives the bytes a second at which
    sources are read."""

    def __init__(
        self, residency: Residency, queue: LazyHeap[AgentState], rate: Callable[[], float]
    ) -> None:
        self._residency, self._queue, self._rate = residency, queue, rate

    def plan(self, opens_in_s: Callable[[AgentState, int], float]) -> None:
        """Start the reads that have to begin now, the soonest needed first. ``opens_in_s(agent,
        pages)`` gives the seconds until a load of so many pages to the device has to start."""
        residency = self._residency
        while (agent := self._queue.peek(residency.timing.now)) is not None:
            away = [segment for segment in agent.attached if is_away(segment)]
            if away:
                count = sum(segment.num_blocks for segment in away)
                if opens_in_s(agent, count) > self._read_s(away):
                    return
                for segment in away:
                    self._read(segment, agent)
            self._queue.discard(agent)

    def _read_s(self, away: list[Segment]) -> float:
        """Seconds until ``away`` is read, behind the reads that are under way."""
        residency = self._residency
        told_s, num_pages = 0.0, residency.transfers.filling_pages
        for segment in away:
            read_s = None if segment.source is None else segment.source.read_s
            if read_s is None:
                num_pages += segment.num_blocks
            else:
                told_s += read_s
        return told_s + num_pages * residency.page_bytes / self._rate()

    def _read(self, segment: Segment, agent: AgentState) -> None:
        """Read to the host. If the host has no room, read to the device, unless state that is used
        sooner would have to be evicted. If neither has room, the attachment is read when a request
        asks for it."""
        residency = self._residency
        assert segment.source is not None
        if residency.start_fill(segment, segment.source, make_room=True):
            return
        count = segment.num_missing
        pages = residency.take(count, ahead_of=agent.known_next_use())
        if pages is not None:
            residency.start_read(segment, pages, demand=False)
