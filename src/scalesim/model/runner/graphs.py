"""CUDA graphs of decode steps: the captured batch sizes, and the one that a batch runs in.

Each size is captured once, when the engine starts, and a decode batch is padded to the next size. A
graph reads all its inputs from fixed buffers. Used by ``CudaRunner``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from scalesim.device.streams import Work
from scalesim.model.runner.step_inputs import StepShape


def padded_sizes(max_num_seqs: int, multiple: int = 1) -> tuple[int, ...]:
    """The batch sizes to capture, ascending: up to ``max_num_seqs``, each a multiple of
    ``multiple``. Above 8, padding adds at most 7 rows up to 64, and about an eighth beyond."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < max_num_seqs:
        sizes.append(sizes[-1] + max(8, 1 << max(0, sizes[-1].bit_length() - 4)))
    rounded = {-(-min(size, max_num_seqs) // multiple) * multiple for size in sizes}
    return tuple(sorted(rounded))


class DecodeGraphs:
    """Captured steps by their shape. ``sizes`` are the batch sizes to capture, ascending;
    ``num_captures`` counts captures, repeated ones included."""

    def __init__(
        self,
        sizes: Sequence[int],
        record: Callable[[Work], Work],
        compute: Callable[[StepShape], object],
    ) -> None:  # fmt: skip
        self.sizes = tuple(sizes)
        self.num_captures = 0
        self._record, self._compute = record, compute
        self._replay: dict[StepShape, Work] = {}

    def capture(self, shapes: Sequence[StepShape]) -> None:
        """Capture ``compute(shape)`` for each of ``shapes``, which are in ascending order. The
        largest is captured first, so that the smaller ones fit its memory. A shape's earlier graph
        is replaced."""
        for shape in reversed(shapes):
            self._replay[shape] = self._record(partial(self._compute, shape))
            self.num_captures += 1

    def size_for(self, num_seqs: int) -> int | None:
        """The size that a decode batch of ``num_seqs`` is padded to; ``None`` if all sizes are
        smaller."""
        return next((size for size in self.sizes if size >= num_seqs), None)

    def replay(self, shape: StepShape) -> Work | None:
        """The work that replays a step of this shape; ``None`` if the shape was not captured."""
        return self._replay.get(shape)
