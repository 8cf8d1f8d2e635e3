"""Reading ahead: attachments on no tier are read from their sources in time for their owners.

Part of ``Prefetcher``, which says when a load would have to start: a read must be over by then.
Decides; residency starts the reads, and a link does them, on a thread of its own.
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
    """Takes the agents in ``queue``, whose attachments are to be read. ``rate``: bytes a second
    of reading."""

    def __init__(
        self, residency: Residency, queue: LazyHeap[AgentState], rate: Callable[[], float]
    ) -> None:
        self._residency, self._queue, self._rate = residency, queue, rate

    def plan(self, opens_in_s: Callable[[AgentState, int], float], margin: float) -> None:
        """Start the reads that must begin now, soonest first. ``opens_in_s(agent, pages)``: seconds
        until a load of so many pages to the device must start."""
        residency = self._residency
        while (agent := self._queue.peek(residency.timing.now)) is not None:
            away = [segment for segment in agent.attached if is_away(segment)]
            if away:
                count = sum(segment.num_blocks for segment in away)
                read_s = (residency.filling_pages + count) * residency.page_bytes / self._rate()
                if opens_in_s(agent, count) > (1.0 + margin) * read_s:
                    return
                for segment in away:
                    self._read(segment, agent)
            self._queue.discard(agent)

    def _read(self, segment: Segment, agent: AgentState) -> None:
        """To the host; where that has no room, to the device, if nothing that is used sooner has to
        leave. Where neither has, it is read when it is asked for."""
        residency = self._residency
        assert segment.source is not None
        if residency.start_fill(segment, segment.source, make_room=True):
            return
        count = segment.num_missing
        pages = residency.take(count, ahead_of=agent.use())
        if pages is not None:
            residency.start_read(segment, pages, demand=False)
