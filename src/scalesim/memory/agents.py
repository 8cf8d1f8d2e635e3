"""What memory knows of an agent: the paths it owns and when it will use them."""

from __future__ import annotations

from scalesim.core import AgentId
from scalesim.memory.order import Use
from scalesim.memory.segment import Segment

MAX_PATHS = 16
PERMANENT = 1 << 40  # uses of a path that every call takes: an adapter
_FORGET = 0.25  # weight of the newest observation of whether a fresh path is used again
_TAIL_BELOW = 0.5


class AgentState:
    """An owner of segments.

    ``next_use`` is in steps of the simulation's clock, ``None`` where unknown. ``paths`` maps the
    end of each path that the agent has computed to how often it was used again: bounded, the least
    worth (bytes × reuse) goes first.
    """

    __slots__ = (
        "adapter",
        "fresh_reuse",
        "id",
        "last_seq",
        "last_use",
        "newest",
        "next_seq",
        "next_use",
        "paths",
    )

    def __init__(self, id: AgentId) -> None:
        self.id = id
        self.next_use: float | None = None
        self.next_seq = 0
        self.last_use = 0.0
        self.last_seq = 0
        self.paths: dict[Segment, int] = {}
        self.adapter: Segment | None = None  # also in ``paths``
        self.newest: Segment | None = None  # the end of the last path that was computed
        self.fresh_reuse = 1.0

    def use(self) -> Use:
        return Use(self.next_use, self.next_seq, self.last_use, self.last_seq)

    @property
    def leaves_tails(self) -> bool:
        """Whether this agent's fresh paths tend not to be used again (templates, not a
        dialogue)."""
        return self.fresh_reuse < _TAIL_BELOW

    def observe_reuse(self, matched_end: Segment) -> None:
        """A look-up matched down to ``matched_end``: every own path that it covers was used
        again."""
        for end in lineage(matched_end):
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
