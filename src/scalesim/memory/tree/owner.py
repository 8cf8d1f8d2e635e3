"""Owners: what memory knows of an agent, which paths the agent owns, and whether it will use them
again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from scalesim.core import AgentId
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.small_map import SmallMap
from scalesim.memory.tree.walk import lineage

MAX_PATHS = 16
# A segment with more owners is ranked by its last use: one of them always calls soon.
MANY_OWNERS = 16
PERMANENT = 1 << 40  # reuses of a path that every call uses: an attachment
_FORGET = 0.25  # weight of the newest observation in an agent's own moving averages
_RARE_REUSE = 0.5
# State that returns with a lower probability is ranked as never used again. At 0.25, 2 % of the
# calls of W2 (benchmark replay-bound, 25 % resident) did not find their state; at 0.15, 0.2 %.
_UNLIKELY = 0.15
_PRIOR = 2.0  # weight of the statistics of all agents, in calls of an agent's own
_COMMON = 0.05  # weight of the newest call in the statistics of all agents


class ReuseStats:
    """How all agents reuse their paths: the prior for an agent about which little is known.

    ``continuation_rate`` is the share of calls that begin where the agent's last call ended.
    ``return_rate[age]`` concerns paths that were used more than once: of the calls of an agent that
    last used such a path ``age`` or more of its own calls ago, the share that return to a path of
    that age. Templates used in turn return; a dialogue that was cut or summarized does not.
    """

    __slots__ = ("continuation_rate", "num_observed", "return_rate")

    def __init__(self) -> None:
        self.continuation_rate = 1.0
        self.num_observed = 0
        self.return_rate = [1.0] * (MAX_PATHS + 1)

    def restore(
        self, continuation_rate: float, num_observed: int, return_rate: list[float]
    ) -> None:
        """Go on with these rates."""
        assert len(return_rate) == len(self.return_rate), return_rate
        self.continuation_rate, self.num_observed = continuation_rate, num_observed
        self.return_rate = list(return_rate)

    def observe(self, continued: bool) -> None:
        """Update ``continuation_rate`` with one call: a mean at first, then a moving average."""
        self.num_observed += 1
        weight = max(_COMMON, 1.0 / (1 + self.num_observed))
        self.continuation_rate += weight * (continued - self.continuation_rate)

    def observe_return(self, returned: int, passed_over: int) -> None:
        """Update ``return_rate`` with a call that used a path of age ``returned``, and did not use
        a path of age ``passed_over``."""
        for age in range(2, min(max(returned, passed_over), MAX_PATHS) + 1):
            self.return_rate[age] += _COMMON * ((age <= returned) - self.return_rate[age])


class AgentStatistics(NamedTuple):
    """What is known of an agent's calls: fields of ``AgentState``."""

    calls: int
    last_path_blocks: int
    continued: float
    could_continue: float
    fresh_reuse: float


class AgentState:
    """An owner of segments: an agent's next use, its paths, and statistics of its calls.

    ``next_use`` is in ticks of the simulation's clock, ``None`` where unknown. ``paths`` maps the
    end of each path that the agent has computed to the number of times that the path was reused. At
    most ``MAX_PATHS`` are kept; the path with the least value (blocks × reuses) is dropped first.
    Attachments are paths as well, and stay.
    """

    __slots__ = (
        "attached",
        "calls",
        "continued",
        "could_continue",
        "fresh_reuse",
        "id",
        "is_forgotten",
        "last_match",
        "last_path_blocks",
        "may_be_ranked",
        "newest_end",
        "next_seq",
        "next_use",
        "paths",
        "reuse_stats",
        "wake_bucket",
        "was_told_by_call",
    )

    def __init__(self, id: AgentId, reuse_stats: ReuseStats) -> None:
        self.id = id
        self.reuse_stats = reuse_stats
        self.calls = 0  # prefix lookups so far
        self.continued = self.could_continue = 0.0  # decaying counts of its calls
        self.next_use: float | None = None
        self.next_seq = 0
        self.was_told_by_call = False  # whether ``next_use`` is now because the agent called
        self.paths: SmallMap[Segment] = SmallMap()
        self.attached: tuple[Segment, ...] = ()  # also in ``paths``
        self.newest_end: Segment | None = None  # the end of the path that was computed last
        self.last_path_blocks = 0  # of the path that the last request left
        self.last_match: Segment | None = None  # where the last prefix lookup ended
        self.fresh_reuse = 1.0
        self.wake_bucket: list[Any] | None = None  # belongs to ``WakeQueue``
        self.is_forgotten = False  # open leases leave nothing to a forgotten agent
        self.may_be_ranked = False  # whether the ranking may have segments of this agent

    def expect(self, next_use: float | None, seq: int) -> None:
        """Set the next use, as told by event ``seq``; ``None`` = unknown."""
        self.next_use, self.next_seq, self.was_told_by_call = next_use, seq, False

    def served_next(self, seq: int) -> None:
        """Of all with this next use, those with a greater ``seq`` are served later. Negative for
        those who go before many others that wait."""
        self.next_seq = seq

    @property
    def is_served_next(self) -> bool:
        """Whether this agent's request goes before many others that wait."""
        return self.next_use is not None and self.next_seq < 0

    def called(self) -> None:
        """The next use is now because the agent called."""
        self.was_told_by_call = True

    def known_next_use(self) -> NextUse:
        """The next use as a key of the orders. It must be known."""
        assert self.next_use is not None
        return NextUse(self.next_use, self.next_seq, 0.0, 0)

    @property
    def rarely_reuses_paths(self) -> bool:
        """Whether paths that this agent has just computed are seldom used again: prompts made from
        templates, unlike a dialogue."""
        return self.fresh_reuse < _RARE_REUSE

    def unlikely_to_return(self, segment: Segment) -> bool:
        """Whether this agent is unlikely to call again with the prefix that ends in ``segment``.

        A segment that was hit before is unlikely to return if the agent used it so many calls ago
        that agents rarely return to paths of that age. A segment without a hit can return only as
        the end of the agent's newest path, if this agent tends to continue where it ended. Before
        an agent's third call nothing is known, and every segment may return.
        """
        if segment in self.attached:
            return False
        if segment.num_hits:
            age = self.calls + 1 - segment.owners[self]  # as of the next call
            return self.reuse_stats.return_rate[min(age, MAX_PATHS)] < _UNLIKELY
        if self.could_continue == 0.0:
            return False
        return segment is not self.newest_end or self.continuation_rate < _UNLIKELY

    @property
    def continuation_rate(self) -> float:
        """The probability that the next call begins where the last one ended."""
        prior = _PRIOR * self.reuse_stats.continuation_rate
        return (self.continued + prior) / (self.could_continue + _PRIOR)

    def likely_end(self) -> Segment | None:
        """The segment down to which the next prompt will likely match: a cheap guess."""
        newest = self.newest_end
        if newest is not None and (newest.parent is None or self.unlikely_to_return(newest)):
            return self.last_match or newest
        return newest

    def is_ordered_by_only(self, segment: Segment) -> bool:
        """Whether ``segment`` is the only segment whose place in an order depends on this agent's
        next use."""
        return (
            segment is self.paths.sole
            and self.id not in segment.partials
            and all(
                len(above.owners) > MANY_OWNERS and self.id not in above.partials
                for above in lineage(segment)[1:]
            )
        )

    def observe_reuse(self, matched_end: Segment) -> None:
        """Record a prefix lookup of this agent that matched down to ``matched_end``: every own path
        that ends on the way was reused."""
        matched = lineage(matched_end)
        self._observe_return(matched)
        self.last_match = matched_end if matched else None
        if self.newest_end is not None and self.calls > 2:  # a second call begins like the first
            continued = self.newest_end in matched
            self.reuse_stats.observe(continued)
            self.continued += continued - _FORGET * self.continued
            self.could_continue += 1.0 - _FORGET * self.could_continue
        for end in matched:
            reuses = self.paths.get(end)
            if reuses is not None:
                self.paths[end] = reuses + 1
                if reuses == 0:
                    self.fresh_reuse += _FORGET * (1.0 - self.fresh_reuse)

    def _observe_return(self, matched: list[Segment]) -> None:
        """Record the age of the path that this call uses, and the age of the oldest reused path
        that it does not use."""
        self.calls += 1
        returned = passed_over = 0
        for node in self.paths:
            while node.parent is not None and not node.num_hits:
                node = node.parent
            if node.parent is None or node in self.attached:
                continue
            age = self.calls - node.owners[self]
            if node in matched:
                returned = max(returned, age)
            else:
                passed_over = max(passed_over, age)
        self.reuse_stats.observe_return(returned, passed_over)
        for segment in matched:
            if self in segment.owners:
                segment.own(self)

    def remember(self, end: Segment) -> Segment | None:
        """Own the path to ``end``. Returns the end of the path that was dropped for it, if there
        were too many.

        Dropping a path that was never reused counts as evidence that such paths are not worth
        keeping. It is the only evidence against them, since with several templates used in turn
        each one returns late.
        """
        self.newest_end = end
        self.paths.setdefault(end, 0)
        if len(self.paths) - len(self.attached) <= MAX_PATHS:
            return None
        worst = min(
            (path for path in self.paths if path is not end and path not in self.attached),
            key=lambda path: (self.paths[path] * path.num_blocks, path.last_seq),
        )
        if self.paths.pop(worst) == 0:
            self.fresh_reuse -= _FORGET * self.fresh_reuse
        return worst

    def fork(self, child: AgentState) -> None:
        """Give ``child`` the paths and attachments of this agent."""
        for end, reuses in self.paths.items():
            child.paths[end] = reuses
        child.attached = self.attached

    def restore(
        self,
        statistics: AgentStatistics,
        paths: Iterable[tuple[Segment, int]],
        newest_end: Segment | None,
        last_match: Segment | None,
    ) -> None:
        """Go on as an agent with these ``statistics`` and ``paths`` (end, reuses)."""
        self.calls, self.last_path_blocks = statistics.calls, statistics.last_path_blocks
        self.continued, self.could_continue = statistics.continued, statistics.could_continue
        self.fresh_reuse = statistics.fresh_reuse
        self.newest_end, self.last_match = newest_end, last_match
        for end, reuses in paths:
            self.paths[end] = reuses

    @property
    def statistics(self) -> AgentStatistics:
        """What is known of its calls."""
        return AgentStatistics(
            self.calls, self.last_path_blocks, self.continued, self.could_continue, self.fresh_reuse
        )

    def attach(self, segment: Segment) -> None:
        """Add an attachment: a path that every call uses."""
        assert segment not in self.attached, segment
        self.attached += (segment,)
        self.paths[segment] = PERMANENT

    def detach(self, segment: Segment) -> None:
        self.attached = tuple(other for other in self.attached if other is not segment)
        self.paths.pop(segment, None)

    def record_release(self, num_blocks: int) -> None:
        """Record that the last request left a path of ``num_blocks``."""
        self.last_path_blocks = num_blocks

    def path_joined(self, upper: Segment, lower: Segment) -> None:
        """Update the paths: ``lower`` has taken over the blocks of ``upper``."""
        if self.last_match is upper:
            self.last_match = lower
        if upper in self.paths:
            reuses = self.paths.pop(upper)
            self.paths[lower] = max(reuses, self.paths.get(lower, 0))

    def path_cut(self, segment: Segment, parent: Segment) -> None:
        """Update the paths: ``segment`` left the tree. A path that ended there ends at ``parent``
        now and counts as reused, as other paths branch off there."""
        above = None if parent.is_root else parent
        if self.last_match is segment:
            self.last_match = above
        reuses = self.paths.pop(segment, None)
        if reuses is not None and above is not None:
            self.paths[above] = max(reuses, self.paths.get(above, 0), 1)

    def forget(self) -> list[Segment]:
        """Mark the agent as forgotten: open leases leave nothing to it. Returns the ends of the
        paths that it owned."""
        self.is_forgotten, self.next_use = True, None
        self.newest_end = self.last_match = None
        self.attached = ()
        ends = list(self.paths)
        self.paths.clear()
        return ends

    def __repr__(self) -> str:
        return f"AgentState({self.id!r}, next_use={self.next_use}, paths={len(self.paths)})"
