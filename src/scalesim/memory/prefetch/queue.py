"""The prefetch queue: agents whose state should be on the device when they call, the soonest first.

An agent enters the queue when its next use becomes known, and when part of its state leaves a tier;
the planner takes agents out. ``Owners`` is told of evictions and fills the queue, so that residency
does not depend on the planner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from scalesim.core import AgentId
from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.eviction.ranking import MAX_SAVE_FAILURES
from scalesim.memory.prefetch.wake_queue import WakeQueue
from scalesim.memory.timing import Timing
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment


class PrefetchQueue:
    """``agents``: all agents by name, as ``Owners`` knows them. ``due``: agents that may have state
    on the host. ``stages``: agents that may have state on the disk, where there ``has_disk``.
    ``reads``: agents whose attachments are on no tier. These three stay empty unless ``enabled``,
    which is where the policy looks ahead."""

    def __init__(self, timing: Timing, *, enabled: bool, has_disk: bool = False) -> None:
        self.agents: dict[AgentId, AgentState] = {}
        self._timing, self._enabled, self._has_disk = timing, enabled, has_disk
        self.due = WakeQueue()
        self.stages: LazyHeap[AgentState] = LazyHeap(soonest=True)
        self.reads: LazyHeap[AgentState] = LazyHeap(soonest=True)

    def upcoming(self, ids: Iterable[AgentId]) -> list[AgentState]:
        """The agents called ``ids`` whose next use is known, in the same order."""
        found = [self.agents.get(id) for id in ids]
        return [agent for agent in found if agent is not None and agent.next_use is not None]

    def add(self, agent: AgentState) -> None:
        """Add ``agent``, whose next use changed or of whose state something left a tier; or move it
        to its place."""
        if not self._enabled:
            return
        if agent.next_use is None:
            self.due.discard(agent)
            self.stages.discard(agent)
        else:
            self.due.add(agent, self._timing.now)
            if self._has_disk:
                self.stages.add(agent, order_of_reads(agent))
        if agent.attached:
            self._await_read(agent)

    def discard_load(self, agent: AgentState) -> None:
        """Remove ``agent`` from ``due``: it computes what it lacks instead of loading it. An
        attachment cannot be computed, so the agent stays in ``reads``."""
        self.due.discard(agent)
        self.stages.discard(agent)

    def _await_read(self, agent: AgentState) -> None:
        if agent.next_use is not None and any(map(is_away, agent.attached)):
            self.reads.add(agent, agent.known_next_use())
        else:
            self.reads.discard(agent)


def order_of_reads(agent: AgentState) -> NextUse:
    """The place of ``agent`` in ``stages``. Those who are served next go first, in that order,
    whenever they were to call; ``serve_next`` numbers them."""
    next_use = agent.known_next_use()
    return next_use._replace(time=-math.inf) if agent.is_served_next else next_use


def is_away(segment: Segment) -> bool:
    """Whether the attachment ``segment`` can only be read from its source, and is not being
    read."""
    return (
        segment.source is not None
        and segment.num_missing > 0
        and not segment.host
        and segment.device.transfer is None
        and segment.failed_saves < MAX_SAVE_FAILURES
    )
