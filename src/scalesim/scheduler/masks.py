"""The masks of a step: each sequence with a constraint is asked which tokens it may sample next."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from scalesim.core import Int64s
from scalesim.scheduler.sequence import Chunk
from scalesim.scheduler.slots import Slots


def fill_masks(slots: Slots, decodes: Int64s, chunks: list[Chunk]) -> dict[int, Exception]:
    """Make the masks of the constrained slots that sample in a step of ``decodes`` and ``chunks``;
    returns what went wrong, by slot."""
    constrained = slots.logits.constrained
    sampling: list[int] = decodes[constrained[decodes]].tolist()
    sampling += [
        sequence.slot
        for sequence, count in chunks
        if constrained[sequence.slot] and count == slots.num_unlaunched(sequence)
    ]
    return slots.logits.fill_masks(sampling, [slots.known_tokens(slot) for slot in sampling])


def without(
    failed: Container[int], decodes: Int64s, chunks: list[Chunk]
) -> tuple[Int64s, list[Chunk]]:
    """``decodes`` and ``chunks`` less the slots ``failed``."""
    kept = np.array([slot for slot in decodes if slot not in failed], np.int64)
    return kept, [chunk for chunk in chunks if chunk[0].slot not in failed]
