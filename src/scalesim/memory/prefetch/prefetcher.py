"""The prefetcher: loads the state of the agents that call next, and saves the next victims of
eviction while the link is idle.

Runs once an iteration of the engine's loop. Agents are loaded in the order of their next uses: for
waiting requests, in the order of service; once no request waits, for the next move of the clock;
and for later moves, when the link would be late otherwise. A load displaces nothing that is
needed at the same move (``Residency.take``), so that it is not paid for with another load.
``Residency`` makes the copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain

from scalesim.memory.links.link import Direction
from scalesim.memory.prefetch.attachment_reads import ASSUMED_BYTES_PER_S, AttachmentReads
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.planner import UNKNOWN, BlockedBy, Forecast
from scalesim.memory.prefetch.queue import PrefetchQueue
from scalesim.memory.prefetch.stages import Stages
from scalesim.memory.residency import Residency
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import any_comes_in_parts, lineage

_LEAST_AHEAD_S = 0.005  # the least work that the link is given in advance


class Prefetcher:
    """The engine's planner. ``due`` are the agents that may have state on the host, by next use;
    ``read_rate`` gives the bytes a second at which sources are read."""

    def __init__(
        self,
        residency: Residency,
        queue: PrefetchQueue,
        config: PlannerConfig,
        read_rate: Callable[[], float] = lambda: ASSUMED_BYTES_PER_S,
    ) -> None:
        self.blocked_by: BlockedBy = None
        self.residency, self._config = residency, config
        self._policy, self._link = residency.policy, residency.link
        self._timing = residency.timing
        self.due, self._queue = queue.due, queue
        self._upcoming: list[AgentState] = []
        self._reads = AttachmentReads(residency, queue.reads, read_rate)
        self._stages = Stages(residency, queue.stages)

    def plan(self, wall_s: float, forecast: Forecast = UNKNOWN) -> None:
        """Start the loads that have to start now, the soonest needed first, and the reads from the
        disk before them; then save dirty segments, and spill saved ones, if the link is idle.

        Nothing is loaded ahead while a request could not get its pages: the two would take pages
        from each other for ever.
        """
        self._timing.begin_iteration(wall_s)
        self.blocked_by = None
        self._upcoming = self._queue.upcoming(forecast.upcoming)
        if forecast.has_more:
            self._rank_next(self._upcoming)
            ahead = forecast.take_next(self._stages.pages_ahead)
            self._rank_next(self._queue.upcoming(ahead))
        if self._policy.look_ahead and not self.residency.allocation_failed:
            self.load(forecast)
            self._reads.plan(lambda agent, count: self._opens_in_s(agent, count, forecast))
        if self._policy.look_ahead:
            self._stages.plan(
                self._upcoming,
                lambda agent, count: self._opens_in_s(agent, count, forecast),
                lambda agent: _is_guess(agent, forecast),
            )
            if self._stages.is_busy:
                self.blocked_by = "disk"
        if self._policy.host:
            self._save_ahead()
            self._stages.spill(self._config.clean_fraction)

    def _rank_next(self, agents: Iterable[AgentState]) -> None:
        """Rank ``agents``, who are served next, before the others that wait."""
        for agent in agents:
            if not agent.is_served_next and self._has_called(agent):
                self.residency.ranking.serve_next(agent)
                self._queue.add(agent)

    def load(self, forecast: Forecast) -> None:
        """Start the loads that have to start now. Each agent leaves ``due``, or is the last."""
        residency = self.residency
        upcoming = (agent for agent in self._upcoming if agent in self.due)
        for agent in chain(upcoming, iter(self.due.peek, None)):
            if any_comes_in_parts(agent.attached):
                self.blocked_by = "link"  # the other parts follow these
                return
            wanted = self.blocks_on_host_only(agent)
            count = sum(blocks for _, blocks in wanted)
            if count == 0:
                self.due.discard(agent)
                continue
            if _is_guess(agent, forecast):
                self.due.discard(agent)  # such a call would take its pages itself
                continue
            has_called = self._has_called(agent)
            if has_called and forecast.has_more and agent.id not in forecast.upcoming:
                return  # others go first, in an order that is told later
            if has_called and forecast.waits_for_pages:
                self.blocked_by = "pool"  # a request takes pages by its admission
                return
            if not has_called:
                if forecast.num_waiting:
                    return  # these take pages first, and what ends then makes better victims
                if self._opens_in_s(agent, count, forecast) > 0.0:
                    return
            if self._link_is_busy("in"):
                self.blocked_by = "link"
                return
            worth = count
            if has_called:  # else there is time until the clock moves
                worth = self._num_worth_loading(wanted, self._needed_s(agent, forecast))
            if worth < count:
                self.blocked_by = "link"
            if worth == 0:  # computing it again is sooner
                self.due.discard(agent)
                continue
            next_use, runs = agent.known_next_use(), runs_of(wanted)
            if runs:  # of weights, the parts for which there is room: the others follow
                pages = residency.take_first(worth, ahead_of=next_use, runs=runs) or None
            else:
                pages = residency.take(worth, ahead_of=next_use)
            if not self.start(agent, wanted, pages):
                self.blocked_by = "pool"
                return
            if agent in self.due:
                self.blocked_by = "link"  # parts that are to follow
                return

    def _num_worth_loading(self, wanted: list[tuple[Segment, int]], starts_in_s: float) -> int:
        """How many blocks of ``wanted`` to load for a request that waits. Attachments cannot be
        computed, and the request starts no sooner than they have come."""
        rule = self.residency.load_or_recompute
        fixed = sum(blocks for segment, blocks in wanted if segment.is_attachment)
        count = sum(blocks for _, blocks in wanted) - fixed
        size = max(segment.block_size for segment, _ in wanted)
        return fixed + rule.num_worth_loading(count, size, max(starts_in_s, rule.load_s(fixed)))

    def start(
        self, agent: AgentState, wanted: list[tuple[Segment, int]], pages: list[int] | None
    ) -> bool:
        """Load ``wanted`` into ``pages``, as far as they go. Returns False if there are no pages,
        or if they no longer fit what is wanted: making room may have merged or dropped segments."""
        residency = self.residency
        if pages is None:
            return False
        still_wanted = self.blocks_on_host_only(agent)
        if still_wanted != wanted:  # taking the pages evicted or merged some of it
            has_runs = any(segment.runs for segment, _ in wanted)
            wanted = still_wanted
            if has_runs or sum(blocks for _, blocks in wanted) < len(pages):
                residency.drops.free(residency.tiers.device, pages)  # with a new fence
                return False
        parts = []
        for segment, blocks in wanted:
            if pages:
                parts.append((segment, pages[:blocks]))
            pages = pages[blocks:]
        residency.start_load(parts, demand=False)
        if not any_comes_in_parts(agent.attached):
            self.due.discard(agent)
        return True

    def _link_is_busy(self, direction: Direction) -> bool:
        """Whether the link has work for more than two iterations. More copies can wait then: a copy
        that waits here can still be overtaken by a more urgent one."""
        ahead_s = 2.0 * self._timing.iteration_s + _LEAST_AHEAD_S
        return self._link.queued_bytes(direction) > ahead_s * self._link.rate(direction)

    def blocks_on_host_only(self, agent: AgentState) -> list[tuple[Segment, int]]:
        """The blocks of ``agent``'s paths that are on the host only: (segment, number of blocks),
        parents first, the most reused path first. What lies below a block that is on its way to
        the device, such as that of a prefix that several agents share, need not wait for it."""
        parts: dict[Segment, int] = {}
        ranking = self.residency.ranking
        for end in sorted(agent.paths, key=lambda path: -agent.paths[path]):
            for segment in reversed(lineage(end)):
                if ranking.unlikely_to_return(segment):
                    break
                if segment.device.transfer is not None and segment.num_missing:
                    break  # one load of a segment after the other
                if segment.source is not None and segment.host.valid < segment.num_blocks:
                    break  # an attachment is loaded whole, or read from its source
                blocks = segment.host.valid - len(segment.device)
                if blocks > 0:
                    parts[segment] = blocks
                if max(len(segment.device), segment.host.valid) < segment.num_blocks:
                    break  # the rest is on the disk, or on no tier
        return list(parts.items())

    def _opens_in_s(self, agent: AgentState, count: int, forecast: Forecast) -> float:
        """Seconds until a load of ``count`` blocks for ``agent`` has to start. The load takes its
        time on the link, and two iterations, since loads are started and found finished only once
        an iteration."""
        num_bytes = self._link.queued_bytes("in") + count * self.residency.page_bytes
        load_s = num_bytes / self._link.rate("in") + 2.0 * self._timing.iteration_s
        return self._needed_s(agent, forecast) - load_s

    def _needed_s(self, agent: AgentState, forecast: Forecast) -> float:
        """Seconds until ``agent`` needs its state at the soonest: the clock may move at any time,
        and later moves are taken to follow one another evenly."""
        if self._has_called(agent):
            return (forecast.starts_in(agent.id) or 0.0) * self._timing.iteration_s
        assert agent.next_use is not None
        ticks, move = agent.next_use - self._timing.now, self._timing.move
        if ticks < 1.5 * move:
            return 0.0
        tick_s = self._timing.tick_s
        return math.inf if tick_s is None else (ticks - move) * tick_s

    def _has_called(self, agent: AgentState) -> bool:
        """Whether ``agent`` needs its state at once: its request waits."""
        assert agent.next_use is not None
        return agent.next_use <= self._timing.now

    def _save_ahead(self) -> None:
        """Save the segments that will be evicted first, so that they can be evicted at once later.
        Only while the device pool is short of free pages and the link has time, and only into host
        pages that are free or whose content is on the disk too: a saved copy is not worth losing
        another one."""
        residency, ranking = self.residency, self.residency.ranking
        target = int(self._config.clean_fraction * residency.device.num_usable)
        while (
            residency.device.num_free < target
            and not residency.transfers.num_demand
            and not self._link_is_busy("out")
            and (segment := ranking.farthest_dirty()) is not None
            and segment.num_unsaved <= residency.host.num_free + ranking.num_clean
            and residency.start_save(segment, may_lose=False)
        ):
            pass


def runs_of(wanted: list[tuple[Segment, int]]) -> list[tuple[int, int]]:
    """Which of the blocks of ``wanted`` have to be consecutive: (offset, length) of each run."""
    runs: list[tuple[int, int]] = []
    first = 0
    for segment, blocks in wanted:
        if segment.runs:
            runs += ((first + offset, length) for offset, length in segment.missing_runs)
        first += blocks
    return runs


def _is_guess(agent: AgentState, forecast: Forecast) -> bool:
    """Whether ``agent`` is due only because it called: that it calls again is a guess."""
    return agent.was_told_by_call and forecast.starts_in(agent.id) is None
