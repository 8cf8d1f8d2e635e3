"""CUDA graphs: the captured shapes of steps, and the one that a batch runs in.

Each shape is captured once, when the engine starts; or, where the model's weights move, when a step
first needs the shape at their present place, since a graph keeps the addresses of what it reads. A
batch of decodes is padded to the next size;
a batch with short prompts or chunks beside them, to the next number of decodes and of tokens. A
graph reads all its inputs from fixed buffers. Used by ``DeviceSteps``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


CHUNKS = ((32, 4), (64, 8), (128, 8), (256, 16), (512, 16))
"""Tokens beside the decodes, and the most sequences that these may belong to. Steps with more
compute long enough to hide that they are submitted kernel by kernel."""
DECODES = (8, 32, 128, 512)


def mixed_shapes(sizes: Sequence[int], max_num_tokens: int, multiple: int = 1) -> list[StepShape]:
    """The shapes to capture of steps in which some sequences compute several tokens, in ascending
    order. ``sizes`` are the captured batch sizes of decodes, none larger than the last."""
    if not sizes:
        return []
    largest = sizes[-1]
    counts = sorted({min(-(-count // multiple) * multiple, largest) for count in DECODES})
    return [
        StepShape.mixed(
            count, -(-tokens // multiple) * multiple, others, min(count + others, largest)
        )
        for tokens, others in CHUNKS
        if tokens <= max_num_tokens
        for count in counts
    ]


class StepGraphs:
    """Captured steps by their shape. ``sizes`` are the batch sizes of pure decodes to capture, and
    ``mixed`` the shapes of other steps, both ascending. ``num_captures`` counts captures, repeated
    ones included."""

    def __init__(
        self,
        sizes: Sequence[int],
        mixed: Sequence[StepShape],
        record: Callable[[Work], Work],
        work: Callable[[StepShape], Work],
    ) -> None:  # fmt: skip
        self.sizes, self.mixed = tuple(sizes), tuple(mixed)
        self.num_captures = 0
        self._record, self._work = record, work
        self._replay: dict[StepShape, Work] = {}

    @property
    def shapes(self) -> list[StepShape]:
        """All shapes to capture of steps without adapters."""
        return [*map(StepShape.decode, self.sizes), *self.mixed]

    def capture(self, shapes: Sequence[StepShape]) -> None:
        """Capture ``work(shape)`` for each of ``shapes``. The one with the most tokens is
        captured first, so that the others fit its memory. A shape's earlier graph is replaced."""
        for shape in sorted(shapes, key=lambda shape: -shape.num_tokens):
            self._replay[shape] = self._record(self._work(shape))
            self.num_captures += 1

    def size_for(self, num_seqs: int) -> int | None:
        """The size that a decode batch of ``num_seqs`` is padded to; ``None`` if all sizes are
        smaller."""
        return next((size for size in self.sizes if size >= num_seqs), None)

    def mixed_for(self, num_decodes: int, num_tokens: int, num_others: int) -> StepShape | None:
        """The shape that a step is padded to whose ``num_others`` sequences compute ``num_tokens``
        beside so many decodes; ``None`` if all shapes are smaller."""
        for shape in self.mixed:
            fits = num_decodes <= shape.num_decodes
            fits = fits and num_tokens <= shape.num_tokens - shape.num_decodes
            if fits and num_others <= shape.num_seqs - shape.num_decodes:
                return shape
        return None

    def __len__(self) -> int:
        """The graphs that there are now."""
        return len(self._replay)

    def forget(self) -> None:
        """Drop all graphs, none of which is running."""
        self._replay.clear()

    def replay(self, shape: StepShape) -> Work | None:
        """The work that replays a step of this shape; ``None`` if the shape was not captured."""
        return self._replay.get(shape)
