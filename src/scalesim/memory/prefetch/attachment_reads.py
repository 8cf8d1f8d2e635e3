"""Reading ahead: attachments on no tier are read from their sources in time for their owners.

A part of ``LookAhead``, which says when a load would have to start: a read must be over by then.
Decides; residency starts the reads, and a link does them, on a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.eviction.ranking import MAX_SAVE_FAILURES
from scalesim.memory.eviction.residency import Residency
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment

_ASSUMED_BYTES_PER_S = 2e8


class AttachmentReads:
    """The awaited agents whose attachments are to be read. ``rate``: bytes a second of reading;
    told by who reads."""

    def __init__(self, residency: Residency) -> None:
        self.rate: Callable[[], float] = lambda: _ASSUMED_BYTES_PER_S
        self._residency = residency
        self._awaited: LazyHeap[AgentState] = LazyHeap(soonest=True)

    def await_agent(self, agent: AgentState) -> None:
        if agent.next_use is not None and any(map(is_away, agent.attached)):
            self._awaited.add(agent, agent.use())
        else:
            self._awaited.discard(agent)

    def plan(self, opens_in_s: Callable[[AgentState, int], float], margin: float) -> None:
        """Start the reads that must begin now, soonest first. ``opens_in_s(agent, pages)``: seconds
        until a load of so many pages to the device must start."""
        residency = self._residency
        while (agent := self._awaited.peek(residency.ranking.now)) is not None:
            away = [segment for segment in agent.attached if is_away(segment)]
            if away:
                count = sum(segment.num_blocks for segment in away)
                read_s = (residency.filling_pages + count) * residency.page_bytes / self.rate()
                if opens_in_s(agent, count) > (1.0 + margin) * read_s:
                    return
                for segment in away:
                    self._read(segment, agent)
            self._awaited.discard(agent)

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


def is_away(segment: Segment) -> bool:
    """Whether it can only be read from its source, and nothing is under way yet."""
    return (
        segment.source is not None
        and segment.num_missing > 0
        and not segment.host
        and segment.device.transfer is None
        and segment.failed_saves < MAX_SAVE_FAILURES
    )
