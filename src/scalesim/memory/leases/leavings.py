"""Leavings: state that forgotten agents owned and nobody owns now. It is freed at once, or as soon
as no request and no copy holds it.

Called by the manager and releases, whenever a hold or a copy has ended.
"""

from __future__ import annotations

from collections.abc import Iterable

from scalesim.memory.eviction.residency import Residency
from scalesim.memory.tree.segment import Segment


class Leavings:
    """``len`` counts the segments that still wait to go."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._waiting: dict[Segment, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, segments: Iterable[Segment]) -> None:
        """``segments`` are to go: they, and what nobody owns below and above them."""
        self._waiting.update(dict.fromkeys(segments))
        self.clear_out()

    def clear_out(self) -> None:
        """Let go what can go now."""
        if not self._waiting:
            return
        stack = list(self._waiting)
        while stack:
            segment = stack.pop()
            parent = segment.parent
            if parent is None or segment.owners or segment.source is not None:
                self._waiting.pop(segment, None)  # it went, or is somebody's again
            elif self._residency.drop_if_free(segment):
                self._waiting.pop(segment, None)
                if not parent.is_root and not parent.children and not parent.tails:
                    stack.append(parent)  # a part of it, cut off since
            else:
                self._waiting[segment] = None
