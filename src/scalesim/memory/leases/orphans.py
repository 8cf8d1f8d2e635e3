"""Orphans: segments all of whose owners were forgotten. An orphan is freed as soon as no lease pins
it and no copy uses it.

The manager and the releases try again whenever a pin or a copy has ended.
"""

from __future__ import annotations

from collections.abc import Iterable

from scalesim.memory.residency import Residency
from scalesim.memory.tree.segment import Segment


class Orphans:
    """The orphans that are not freed yet."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._waiting: dict[Segment, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, segments: Iterable[Segment]) -> None:
        """Free ``segments``, which no agent owns, and what lies above and below them without an
        owner."""
        self._waiting.update(dict.fromkeys(segments))
        self.drop_unpinned()

    def drop_unpinned(self) -> None:
        """Free the orphans that no lease pins and no copy uses."""
        if not self._waiting:
            return
        stack = list(self._waiting)
        while stack:
            segment = stack.pop()
            parent = segment.parent
            if parent is None or segment.owners or segment.source is not None:
                self._waiting.pop(segment, None)  # it has left the tree, or has an owner again
            elif self._residency.drops.drop_if_idle(segment):
                self._waiting.pop(segment, None)
                if not parent.is_root and not parent.children and not parent.partials:
                    stack.append(parent)  # split off from the orphan since
            else:
                self._waiting[segment] = None
