"""The prefetcher: starts the load of an agent's state when its start window opens, and saves the
next victims of eviction while the link is idle.

Runs once an iteration of the engine's loop. The start window follows from the agent's next use, the
link's rate and queue, and the measured lengths of ticks and iterations. ``Residency`` makes the
copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scalesim.memory.links.link import Direction
from scalesim.memory.prefetch.attachment_reads import ASSUMED_BYTES_PER_S, AttachmentReads
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.planner import UNKNOWN, BlockedBy, Forecast
from scalesim.memory.prefetch.queue import PrefetchQueue
from scalesim.memory.residency import Residency
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment, lineage

_SURE = 0.7  # least ``waits_for_all`` of a simulation that waits for all its calls


def start_window_s(num_bytes: int, queued_bytes: int, rate: float, margin: float) -> float:
    """Seconds before its use at which a load of ``num_bytes`` has to start: its own time and that
    of the bytes queued before it at ``rate`` bytes a second, with slack."""
    return (1.0 + margin) * (queued_bytes + num_bytes) / rate


class Prefetcher:
    """The engine's planner. ``due`` are the agents that may have state on the host, by next use.
    ``margin`` is the current slack of the start window; ``read_rate`` gives the bytes a second at
    which sources are read."""

    def __init__(
        self,
        residency: Residency,
        queue: PrefetchQueue,
        config: PlannerConfig,
        read_rate: Callable[[], float] = lambda: ASSUMED_BYTES_PER_S,
    ) -> None:
        self.margin = config.margin
        self.opens_in_s: float | None = None
        self.blocked_by: BlockedBy = None
        self.residency, self._config = residency, config
        self._policy, self._link = residency.policy, residency.link
        self._timing = residency.timing
        self.due = queue.due
        self._reads = AttachmentReads(residency, queue.reads, read_rate)

    def observe_arrival(self, *, late: bool) -> None:
        """Adapt the slack: it grows when state came late, and shrinks slowly when state was in
        time."""
        if late:
            self.margin = min(self._config.max_margin, self.margin * 1.25 + 0.05)
        else:
            self.margin = max(self._config.margin, self.margin * 0.99)

    def plan(self, wall_s: float, forecast: Forecast = UNKNOWN) -> None:
        """Start the loads whose window is open, the soonest needed first; then save dirty segments
        if the link is idle.

        Nothing is loaded ahead while a request could not get its pages: the two would take pages
        from each other for ever.
        """
        self._timing.begin_iteration(wall_s)
        self.opens_in_s = None
        self.blocked_by = None
        if self._policy.look_ahead and not self.residency.allocation_failed:
            self.load(wall_s, forecast)
            self._reads.plan(
                lambda agent, count: self._opens_in_s(
                    self._needed_s(agent, wall_s, forecast), count
                ),
                self.margin,
            )
        if self._policy.host:
            self._save_ahead()

    def load(self, wall_s: float, forecast: Forecast) -> None:
        """Start the loads whose window is open."""
        residency = self.residency
        while (agent := self.due.peek()) is not None:
            wanted = self.blocks_on_host_only(agent)
            count = sum(blocks for _, blocks in wanted)
            if count == 0:
                self.due.discard(agent)
                continue
            needed_s = self._needed_s(agent, wall_s, forecast)
            self.opens_in_s = self._opens_in_s(needed_s, count * self._num_beside(agent, forecast))
            if self.opens_in_s > 0.0:
                return
            if self._link_is_busy("in"):
                self.blocked_by = "link"
                return
            worth = residency.load_or_recompute.num_worth_loading(count, needed_s)
            if worth < count:
                self.blocked_by = "link"
            if worth == 0:  # computing it again is sooner
                self.due.discard(agent)
                continue
            pages = residency.take(worth, ahead_of=agent.known_next_use())
            if not self.start(agent, wanted, pages):
                self.blocked_by = "pool"
                return

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
            wanted = still_wanted
            if sum(blocks for _, blocks in wanted) < len(pages):
                residency.free(residency.tiers.device, pages)  # with a new fence
                return False
        self.due.discard(agent)
        parts = []
        for segment, blocks in wanted:
            if pages:
                parts.append((segment, pages[:blocks]))
            pages = pages[blocks:]
        residency.start_load(parts, demand=False)
        return True

    def _link_is_busy(self, direction: Direction) -> bool:
        """Whether the link has work for more than two iterations. More copies can wait then: a copy
        that waits here can still be overtaken by a more urgent one."""
        ahead_s = 2.0 * self._timing.iteration_s + self._config.jitter_s
        return self._link.queued_bytes(direction) > ahead_s * self._link.rate(direction)

    def blocks_on_host_only(self, agent: AgentState) -> list[tuple[Segment, int]]:
        """The blocks of ``agent``'s paths that are on the host only: (segment, number of blocks),
        parents first, the most reused path first."""
        parts: dict[Segment, int] = {}
        ranking = self.residency.ranking
        for end in sorted(agent.paths, key=lambda path: -agent.paths[path]):
            for segment in reversed(lineage(end)):
                if segment.device.transfer is not None or ranking.unlikely_to_return(segment):
                    break
                if segment.source is not None and segment.host.valid < segment.num_blocks:
                    break  # an attachment is loaded whole, or read from its source
                blocks = segment.host.valid - len(segment.device)
                if blocks > 0:
                    parts[segment] = blocks
                if segment.num_available < segment.num_blocks:
                    break
        return list(parts.items())

    def _opens_in_s(self, needed_s: float, count: int) -> float:
        """Seconds until the start window of ``count`` blocks opens that are needed in ``needed_s``.
        The window includes two iterations, since loads are started and found finished only once an
        iteration."""
        if math.isinf(needed_s):
            return needed_s
        num_bytes = count * self.residency.page_bytes
        queued = self._link.queued_bytes("in")
        window_s = start_window_s(num_bytes, queued, self._link.rate("in"), self.margin)
        return needed_s - window_s - self._config.jitter_s - 2.0 * self._timing.iteration_s

    def _num_beside(self, agent: AgentState, forecast: Forecast) -> int:
        """The number of agents that need about as much at the same time, ``agent`` included. When
        the clock moves, all requests that fit begin at once; waiting requests start one after the
        other."""
        assert agent.next_use is not None
        if agent.next_use <= self._timing.now:
            return 1
        return min(forecast.begin_at_once, self.due.num_near)

    def _needed_s(self, agent: AgentState, wall_s: float, forecast: Forecast) -> float:
        """Seconds until ``agent`` needs its state. Ticks are taken to follow one another evenly,
        but the next tick may come early."""
        assert agent.next_use is not None
        ticks = agent.next_use - self._timing.now
        tick_s = self._timing.pace.seconds_per_tick
        if tick_s is None:  # the length of a tick is unknown: load one tick ahead
            return 0.0 if ticks <= 1.0 else float("inf")
        if ticks <= 0.0:  # the agent has called, and its request waits
            return forecast.starts_in(agent.id) * self._timing.iteration_s
        return self._until_tick_s(tick_s, wall_s, forecast) + (ticks - 1.0) * tick_s

    def _until_tick_s(self, tick_s: float, wall_s: float, forecast: Forecast) -> float:
        """Seconds until the clock moves. A simulation that waits for all its calls moves the clock
        when they have ended; of other simulations only the usual length of a tick is known."""
        if self._timing.waits_for_all > _SURE:
            return forecast.drains_in() * self._timing.iteration_s
        return tick_s - (wall_s - self._timing.pace.last_tick_s) - 2.0 * self._timing.pace.jitter_s

    def _save_ahead(self) -> None:
        """Save the segments that will be evicted first, so that they can be evicted at once later.
        Only while the device pool is short of free pages and the link has time, and only into free
        host pages: a saved copy is not worth dropping another one."""
        residency, ranking = self.residency, self.residency.ranking
        target = int(self._config.clean_fraction * residency.device.num_usable)
        while (
            residency.device.num_free < target
            and not residency.transfers.num_demand
            and not self._link_is_busy("out")
            and (segment := ranking.farthest_dirty()) is not None
            and segment.num_dirty <= residency.host.num_free
        ):
            residency.start_save(segment)
