"""What memory knows of an agent: the paths it owns and when it will use them."""

from __future__ import annotations

from typing import Any

from scalesim.core import AgentId
from scalesim.memory.tree.segment import Segment, lineage
from scalesim.memory.tree.small_map import SmallMap
from scalesim.memory.tree.use import UseTime

MAX_PATHS = 16
MANY_OWNERS = 16  # a segment shared by more is ordered by last use: some owner is always near
PERMANENT = 1 << 40  # uses of a path that every call takes: an attachment
_FORGET = 0.25  # weight of the newest observation of whether a fresh path is used again
_TAIL_BELOW = 0.5
# State that is used again no more often than this is not waited for. At 0.25, 2 % of the calls of
# W2 (benchmark replay-bound, 25 % resident) did not find theirs; at 0.15, 0.2 %.
_UNLIKELY = 0.15
_PRIOR = 2.0  # calls that what all agents do counts for, beside an agent's own
_COMMON = 0.05  # weight of the newest call in what all agents tend to do


class ReuseStats:
    """What agents tend to do.

    ``going_on``: share of the calls that begin where the agent's last one ended.
    ``coming_back[age]``: of the calls of an agent with a path that it used more than once, and last
    ``age`` or more of its calls ago, the share that take a path as old as that: templates in turn
    come back, a dialogue that was cut or summed up does not.
    """

    __slots__ = ("coming_back", "going_on")

    def __init__(self) -> None:
        self.going_on = 1.0
        self.coming_back = [1.0] * (MAX_PATHS + 1)

    def observe(self, went_on: bool) -> None:
        self.going_on += _COMMON * (went_on - self.going_on)

    def observe_return(self, returned: int, passed_over: int) -> None:
        """A call took a path ``returned`` calls old, and left one of ``passed_over``."""
        for age in range(2, min(max(returned, passed_over), MAX_PATHS) + 1):
            self.coming_back[age] += _COMMON * ((age <= returned) - self.coming_back[age])


class AgentState:
    """An owner of segments.

    ``next_use`` is in ticks of the simulation's clock, ``None`` where unknown. ``paths`` maps the
    end of each path that the agent has computed to how often it was used again: bounded, the least
    worth (bytes × reuse) goes first.
    """

    __slots__ = (
        "attached",
        "calls",
        "could_go_on",
        "fresh_reuse",
        "habit",
        "id",
        "is_gone",
        "last_match",
        "may_be_ranked",
        "newest",
        "next_seq",
        "next_use",
        "num_left",
        "paths",
        "wake_bucket",
        "went_on",
    )

    def __init__(self, id: AgentId, habit: ReuseStats) -> None:
        self.id = id
        self.habit = habit
        self.calls = 0  # look-ups so far
        self.went_on = self.could_go_on = 0.0  # of its latest calls, the older the less
        self.next_use: float | None = None
        self.next_seq = 0
        self.paths: SmallMap[Segment] = SmallMap()
        self.attached: tuple[Segment, ...] = ()  # one of a kind; also in ``paths``
        self.newest: Segment | None = None  # the end of the last path that was computed
        self.num_left = 0  # blocks of the path that its last request left
        self.last_match: Segment | None = None  # where its last look-up ended
        self.fresh_reuse = 1.0
        self.wake_bucket: list[Any] | None = None  # where it waits: see ``WakeQueue``
        self.is_gone = False  # forgotten; leases that still have it leave nothing to it
        self.may_be_ranked = False  # whether segments of its own may be ranked: see ``Owners``

    def expect(self, next_use: float | None, seq: int) -> None:
        """Its next use, as event ``seq`` tells it; ``None`` = unknown."""
        self.next_use, self.next_seq = next_use, seq

    def use(self) -> UseTime:
        """Its next use, which must be known: where it is not, what counts is when a segment was
        used last."""
        assert self.next_use is not None
        return UseTime(self.next_use, self.next_seq, 0.0, 0)

    @property
    def leaves_tails(self) -> bool:
        """Whether this agent's fresh paths tend not to be used again (templates, not a
        dialogue)."""
        return self.fresh_reuse < _TAIL_BELOW

    def unlikely_to_return(self, segment: Segment) -> bool:
        """Whether this agent is unlikely to call with the prefix that ends in ``segment`` again.

        A segment that was used again is unlikely to return when the agent used it last so many
        calls ago that agents rarely come back to anything as old. A segment that was not used again
        may return only as the end of the newest path, if this agent tends to continue there. Until
        an agent's third call nothing is known of it, and everything may return."""
        if segment in self.attached:
            return False
        if segment.uses:
            age = self.calls + 1 - segment.owners[self]  # at the next call
            return self.habit.coming_back[min(age, MAX_PATHS)] < _UNLIKELY
        if self.could_go_on == 0.0:
            return False
        return segment is not self.newest or self.going_on < _UNLIKELY

    @property
    def going_on(self) -> float:
        """How likely its next call begins where the last one ended."""
        prior = _PRIOR * self.habit.going_on
        return (self.went_on + prior) / (self.could_go_on + _PRIOR)

    def likely_end(self) -> Segment | None:
        """Down to where its next look-up will likely match: a cheap guess."""
        newest = self.newest
        if newest is not None and (newest.parent is None or self.unlikely_to_return(newest)):
            return self.last_match or newest
        return newest

    def owns_only(self, segment: Segment) -> bool:
        """Whether nothing else is ordered by this agent's next use."""
        return (
            segment is self.paths.sole
            and self.id not in segment.tails
            and all(
                len(above.owners) > MANY_OWNERS and self.id not in above.tails
                for above in lineage(segment)[1:]
            )
        )

    def observe_reuse(self, matched_end: Segment) -> None:
        """A look-up matched down to ``matched_end``: every own path that it covers was used
        again."""
        matched = lineage(matched_end)
        self._observe_return(matched)
        self.last_match = matched_end if matched else None
        if self.newest is not None and self.calls > 2:  # any call begins like the first one
            went_on = self.newest in matched
            self.habit.observe(went_on)
            self.went_on += went_on - _FORGET * self.went_on
            self.could_go_on += 1.0 - _FORGET * self.could_go_on
        for end in matched:
            uses = self.paths.get(end)
            if uses is not None:
                self.paths[end] = uses + 1
                if uses == 0:
                    self.fresh_reuse += _FORGET * (1.0 - self.fresh_reuse)

    def _observe_return(self, matched: list[Segment]) -> None:
        """How old what this call takes is, beside the oldest used path that it leaves."""
        self.calls += 1
        returned = passed_over = 0
        for node in self.paths:
            while node.parent is not None and not node.uses:
                node = node.parent
            if node.parent is None or node in self.attached:
                continue
            age = self.calls - node.owners[self]
            if node in matched:
                returned = max(returned, age)
            else:
                passed_over = max(passed_over, age)
        self.habit.observe_return(returned, passed_over)
        for segment in matched:
            if self in segment.owners:
                segment.own(self)

    def remember(self, end: Segment) -> Segment | None:
        """Own the path to ``end``; returns the end of the path that had to give way, if one did.

        A path that gives way before it was used again says that such paths are not worth keeping.
        That is the only sign against them: with several templates in turn, each comes back late.
        """
        self.newest = end
        self.paths.setdefault(end, 0)
        if len(self.paths) <= MAX_PATHS:
            return None
        worst = min(
            (path for path in self.paths if path is not end),
            key=lambda path: (self.paths[path] * path.num_blocks, path.last_seq),
        )
        if self.paths.pop(worst) == 0:
            self.fresh_reuse -= _FORGET * self.fresh_reuse
        return worst

    def fork(self, child: AgentState) -> None:
        """``child`` has the paths and the attachments that this agent has."""
        for end, uses in self.paths.items():
            child.paths[end] = uses
        child.attached = self.attached

    def attach(self, segment: Segment) -> None:
        """``segment`` is a path that each call takes."""
        assert all(segment.parent is not other.parent for other in self.attached), segment
        self.attached += (segment,)
        self.paths[segment] = PERMANENT

    def detach(self, segment: Segment) -> None:
        self.attached = tuple(other for other in self.attached if other is not segment)
        self.paths.pop(segment, None)

    def leave(self, num_blocks: int) -> None:
        """The last request left a path of ``num_blocks``."""
        self.num_left = num_blocks

    def path_joined(self, upper: Segment, lower: Segment) -> None:
        """``lower`` took over the blocks of ``upper``."""
        if self.last_match is upper:
            self.last_match = lower
        if upper in self.paths:
            uses = self.paths.pop(upper)
            self.paths[lower] = max(uses, self.paths.get(lower, 0))

    def path_cut(self, segment: Segment, parent: Segment) -> None:
        """``segment`` left the tree. A path that ended there ends at ``parent``, and was used more
        than once: another branches off there."""
        above = None if parent.is_root else parent
        if self.last_match is segment:
            self.last_match = above
        uses = self.paths.pop(segment, None)
        if uses is not None and above is not None:
            self.paths[above] = max(uses, self.paths.get(above, 0), 1)

    def go(self) -> list[Segment]:
        """The agent is forgotten; returns the ends of the paths that were its own."""
        self.is_gone, self.next_use = True, None
        self.newest = self.last_match = None
        self.attached = ()
        ends = list(self.paths)
        self.paths.clear()
        return ends

    def __repr__(self) -> str:
        return f"AgentState({self.id!r}, next_use={self.next_use}, paths={len(self.paths)})"
