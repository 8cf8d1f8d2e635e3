"""Orphans: state whose owners were all forgotten. An orphan is freed at once, or as soon as no
lease pins it and no copy touches it.

The manager and the releases free what they can whenever a pin or a copy has ended.
"""

from __future__ import annotations

from collections.abc import Iterable

from scalesim.memory.residency import Residency
from scalesim.memory.tree.segment import Segment


class Orphans:
    """The segments that still wait to be freed."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._waiting: dict[Segment, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, segments: Iterable[Segment]) -> None:
        """Free ``segments``, and what no agent owns below and above them."""
        self._waiting.update(dict.fromkeys(segments))
        self.drop_unheld()

    def drop_unheld(self) -> None:
        """Free the orphans that no lease pins and no copy touches."""
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
