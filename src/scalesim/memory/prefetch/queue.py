"""The prefetch queue: agents whose state should be on the device when they call, the soonest first.

An agent enters when its next use becomes known, and when part of its state leaves a tier; the
planner takes agents out. Residency reports evictions through the owners and need not know the
planner.
"""

from __future__ import annotations

from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.eviction.ranking import MAX_SAVE_FAILURES
from scalesim.memory.prefetch.wake_queue import WakeQueue
from scalesim.memory.timing import Timing
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment


class PrefetchQueue:
    """``loads``: agents that may have something on the host; ``reads``: those whose attachments are
    on no tier. Both stay empty under a policy without look-ahead (``is_used``)."""

    def __init__(self, timing: Timing, *, is_used: bool) -> None:
        self._timing, self._is_used = timing, is_used
        self.loads = WakeQueue()
        self.reads: LazyHeap[AgentState] = LazyHeap(soonest=True)

    def add(self, agent: AgentState) -> None:
        """``agent`` has another next use, or something of its own left a tier."""
        if not self._is_used:
            return
        if agent.next_use is None:
            self.loads.discard(agent)
        else:
            self.loads.add(agent, self._timing.now)
        if agent.attached:
            self._await_read(agent)

    def give_up(self, agent: AgentState) -> None:
        """``agent`` computes what it lacks: that need not be loaded any more."""
        self.loads.discard(agent)

    def _await_read(self, agent: AgentState) -> None:
        if agent.next_use is not None and any(map(is_away, agent.attached)):
            self.reads.add(agent, agent.use())
        else:
            self.reads.discard(agent)


def is_away(segment: Segment) -> bool:
    """Whether it can only be read from its source, and nothing is under way yet."""
    return (
        segment.source is not None
        and segment.num_missing > 0
        and not segment.host
        and segment.device.transfer is None
        and segment.failed_saves < MAX_SAVE_FAILURES
    )
