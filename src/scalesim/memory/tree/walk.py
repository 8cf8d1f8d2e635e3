"""Ways through the prefix tree: up from a segment, and down; and what several segments have in
common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from scalesim.memory.tree.segment import Segment


def lineage(segment: Segment) -> list[Segment]:
    """``segment`` and its ancestors without the root, the deepest first."""
    found = []
    node: Segment | None = segment
    while node is not None and node.parent is not None:
        found.append(node)
        node = node.parent
    return found


def descendants(segment: Segment) -> Iterator[Segment]:
    """All segments below ``segment``, parents before children."""
    stack = [*segment.children.values(), *segment.partials.values()]
    while stack:
        node = stack.pop()
        yield node
        stack += node.children.values()
        stack += node.partials.values()


def any_comes_in_parts(attached: Iterable[Segment]) -> bool:
    """Whether of one of these attachments some blocks are on their way to the device, and further
    ones have to follow."""
    return any(segment.device.transfer and segment.num_missing > 0 for segment in attached)
