"""What memory knows of an agent: the paths it owns and when it will use them."""

from __future__ import annotations

from typing import Any

from scalesim.core import AgentId
from scalesim.memory.order import Use
from scalesim.memory.segment import Segment

MAX_PATHS = 16
MANY_OWNERS = 16  # a segment shared by more is ordered by last use: some owner is always near
PERMANENT = 1 << 40  # uses of a path that every call takes: an adapter
_FORGET = 0.25  # weight of the newest observation of whether a fresh path is used again
_TAIL_BELOW = 0.5
_COMMON = 0.05  # weight of the newest call in what all agents tend to do


class Habit:
    """What agents tend to do, for one that has not shown it yet: whether calls go on where the
    last one of the same agent ended."""

    __slots__ = ("going_on",)

    def __init__(self) -> None:
        self.going_on = 1.0

    def observe(self, went_on: bool) -> None:
        self.going_on += _COMMON * (went_on - self.going_on)


class AgentState:
    """An owner of segments.

    ``next_use`` is in steps of the simulation's clock, ``None`` where unknown. ``paths`` maps the
    end of each path that the agent has computed to how often it was used again: bounded, the least
    worth (bytes × reuse) goes first.
    """

    __slots__ = (
        "adapter",
        "awaited",
        "fresh_reuse",
        "going_on",
        "habit",
        "home",
        "id",
        "last_seq",
        "last_use",
        "newest",
        "next_seq",
        "next_use",
        "paths",
        "placed",
    )

    def __init__(self, id: AgentId, habit: Habit) -> None:
        self.id = id
        self.habit = habit
        self.going_on: float | None = None
        self.next_use: float | None = None
        self.next_seq = 0
        self.last_use = 0.0
        self.last_seq = 0
        self.paths: dict[Segment, int] = {}
        self.adapter: Segment | None = None  # also in ``paths``
        self.newest: Segment | None = None  # the end of the last path that was computed
        self.home: Segment | None = None  # where its last look-up ended
        self.fresh_reuse = 1.0
        self.awaited: list[Any] | None = None  # the look-ahead's: see ``Awaited``
        self.placed = False  # whether segments of its own may be in an order: see ``Standing``

    def use(self) -> Use:
        return Use(self.next_use, self.next_seq, self.last_use, self.last_seq)

    @property
    def leaves_tails(self) -> bool:
        """Whether this agent's fresh paths tend not to be used again (templates, not a
        dialogue)."""
        return self.fresh_reuse < _TAIL_BELOW

    def is_over(self, segment: Segment) -> bool:
        """Whether ``segment``, computed and not used again so far, is what this agent's next call
        will not begin with: only the newest text is gone on with, and not by every agent. A first
        text is: what all its calls have in common is somewhere in it."""
        if self.going_on is None:
            return False
        return segment is not self.newest or self.going_on < _TAIL_BELOW

    def likely_end(self) -> Segment | None:
        """Down to where its next look-up will likely match: a cheap guess."""
        newest = self.newest
        if newest is not None and (newest.parent is None or self.is_over(newest)):
            return self.home or newest
        return newest

    def owns_only(self, segment: Segment) -> bool:
        """Whether nothing else is ordered by this agent's next use."""
        parent = segment.parent
        assert parent is not None
        return (
            len(self.paths) == 1
            and segment in self.paths
            and (parent.is_root or len(parent.owners) > MANY_OWNERS)
        )

    def observe_reuse(self, matched_end: Segment) -> None:
        """A look-up matched down to ``matched_end``: every own path that it covers was used
        again."""
        matched = lineage(matched_end)
        self.home = matched_end if matched else None
        if self.newest is not None:
            went_on = self.newest in matched
            self.habit.observe(went_on)
            known = self.habit.going_on if self.going_on is None else self.going_on
            self.going_on = known + _FORGET * (went_on - known)
        for end in matched:
            uses = self.paths.get(end)
            if uses is not None:
                self.paths[end] = uses + 1
                if uses == 0:
                    self.fresh_reuse += _FORGET * (1.0 - self.fresh_reuse)

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

    def __repr__(self) -> str:
        return f"AgentState({self.id!r}, next_use={self.next_use}, paths={len(self.paths)})"


def lineage(segment: Segment) -> list[Segment]:
    """``segment`` and its ancestors up to, not including, the root; the deepest first."""
    found = []
    node: Segment | None = segment
    while node is not None and node.parent is not None:
        found.append(node)
        node = node.parent
    return found
