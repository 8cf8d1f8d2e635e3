"""Stages: what is on the disk is read to the host before it has to be loaded to the device, and
what will leave the host is written to the disk before.

A part of ``Prefetcher``, which says when the load to the device has to start; the read has to be
over by then. The disk has a rate and queues of its own, so each edge has a start window of its own.
``DiskMoves`` makes the copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.links.link import Direction, seconds_at
from scalesim.memory.prefetch.queue import order_of_reads
from scalesim.memory.residency import Residency
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import lineage

_AHEAD_S = 0.02  # the least work that the disk is given in advance
_LARGEST_SHARE = 2  # 1 / 2 of the host at most is for what requests in line, or one agent, need


class Stages:
    """Plans the reads for the agents in ``queue``, and the spills. ``is_busy``: the disk kept a
    read from starting that had to start, as of the last ``plan``; ``lacks_room``: the host did."""

    def __init__(self, residency: Residency, queue: LazyHeap[AgentState]) -> None:
        self._residency, self._queue = residency, queue
        self._disk, self._link = residency.disk, residency.link
        self.is_busy = self.lacks_room = False

    @property
    def pages_ahead(self) -> int:
        """The host pages that may be filled ahead of requests that wait; 0 where there is nothing
        to read."""
        may_read = len(self._queue) and self._disk.is_there
        return self._residency.host.num_usable // _LARGEST_SHARE if may_read else 0

    def plan(
        self,
        upcoming: Sequence[AgentState],
        opens_in_s: Callable[[AgentState, int], float],
        is_guess: Callable[[AgentState], bool] = lambda agent: False,
    ) -> None:
        """Start the reads that have to begin now: for the ``upcoming``, in the order of service,
        then for the others who are served next, then for all others, the soonest needed first.
        ``opens_in_s(agent, pages)`` gives the seconds until a load of so many pages to the device
        has to start. Nothing is read for an agent whose next call ``is_guess``, nor for one that is
        served next and would compute before the read is over."""
        self.is_busy = self.lacks_room = False
        residency = self._residency
        timing, rule = residency.timing, residency.load_or_recompute
        if not len(self._queue) or not self._disk.is_there:
            return
        first, passed = [agent for agent in upcoming if agent in self._queue], list[AgentState]()
        for agent in chain(first, iter(lambda: self._queue.peek(timing.now), None)):
            on_disk = self.blocks_on_disk_only(agent)
            wanted = _up_to(residency.host.num_usable // _LARGEST_SHARE, on_disk or [])
            count = sum(blocks for _, blocks in wanted)
            if on_disk is None:
                passed.append(agent)
            elif count and not is_guess(agent):
                num_bytes = self._link.queued_bytes("up") + count * residency.page_bytes
                read_s = seconds_at(self._link.rate("up"), num_bytes) + 2.0 * timing.iteration_s
                late_s = read_s - opens_in_s(agent, count)
                is_next = agent in first or agent.is_served_next
                if late_s < 0.0 and not is_next:
                    break
                if self._is_busy():
                    self.is_busy = True
                    break
                size = wanted[0][0].block_size
                if is_next and not rule.is_sooner(late_s, count, size):
                    passed.append(agent)  # it computes instead
                elif not self._disk.start_stage(wanted, agent.known_next_use()):
                    self.lacks_room = True
                    break
            self._queue.discard(agent)
        for agent in passed:
            self._queue.add(agent, order_of_reads(agent))

    def spill(self, clean_fraction: float) -> None:
        """Copy the segments that leave the host first to the disk, while the disk has time and less
        than ``clean_fraction`` of the host can be freed without loss; or while a read lacks room,
        as what can be freed is then needed as soon as what is to be read."""
        residency, ranking = self._residency, self._residency.ranking
        target = int(clean_fraction * residency.host.num_usable)
        if target and self.lacks_room:
            target = residency.host.num_usable
        if not target or residency.host.num_free + ranking.num_clean >= target:
            return
        if not self._disk.is_writable:
            return
        while (
            residency.host.num_free + ranking.num_clean + residency.transfers.spilling_pages
            < target
            and not self._is_busy("down")
            and (segment := ranking.farthest_to_spill()) is not None
        ):
            if not self._disk.start_spill(segment):
                ranking.pass_over(segment)

    def blocks_on_disk_only(self, agent: AgentState) -> list[tuple[Segment, int]] | None:
        """The blocks of ``agent``'s paths that are to be read to the host: (segment, number of
        blocks), parents first, the most reused path first. ``None`` if another copy of the first
        of them has to end before."""
        parts: dict[Segment, int] = {}
        is_moving = False
        ranking = self._residency.ranking
        for end in sorted(agent.paths, key=lambda path: -agent.paths[path]):
            for segment in reversed(lineage(end)):
                if ranking.unlikely_to_return(segment):
                    break
                reach = max(len(segment.device), len(segment.host))
                if reach < segment.disk.valid:
                    is_moving = segment.is_moving
                    if is_moving:
                        break  # one copy after the other
                    parts[segment] = segment.disk.valid - len(segment.host)
                if segment.num_available < segment.num_blocks:
                    break
        return None if is_moving and not parts else list(parts.items())

    def _is_busy(self, direction: Direction = "up") -> bool:
        """Whether the disk has work for more than two iterations. More copies can wait then: a copy
        that waits here can still be overtaken by a more urgent one."""
        ahead_s = 2.0 * self._residency.timing.iteration_s + _AHEAD_S
        return self._link.queued_bytes(direction) > ahead_s * self._link.rate(direction)


def _up_to(most: int, parts: list[tuple[Segment, int]]) -> list[tuple[Segment, int]]:
    """The first ``most`` blocks of ``parts``."""
    found = []
    for segment, blocks in parts:
        blocks = min(blocks, most)
        if blocks:
            found.append((segment, blocks))
        most -= blocks
    return found
