"""How often each running sequence has said each token, for the penalties: the CPU runner's counts,
and what a row of them begins with. The kernels' contract (``Adjustments``) gives the format.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scalesim.batch import LogitsBatch
from scalesim.core import Int32s, Int64s


def first_counts(tokens: Int32s, prompt_len: int) -> tuple[Int32s, Int32s]:
    """(ids, counts) of a sequence that begins with ``tokens``: 2 a time generated, 1 if in the
    prompt."""
    prompt, output = tokens[:prompt_len], tokens[prompt_len:]
    ids = np.unique(tokens)
    counts = np.isin(ids, prompt).astype(np.int32)
    said, times = np.unique(output, return_counts=True)
    counts[np.searchsorted(ids, said)] += 2 * times.astype(np.int32)
    return ids, counts


class TokenCounts:
    """``[num_slots, vocab]``, made when a penalty is first asked for."""

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self._shape = (num_slots, vocab_size)
        self._counts: npt.NDArray[np.int32] = np.zeros((0, vocab_size), np.int32)

    def begin(self, adjust: LogitsBatch) -> npt.NDArray[np.int32]:
        """The counts, as the penalties of this step read them."""
        if adjust.begins and not len(self._counts):
            self._counts = np.zeros(self._shape, np.int32)
        for slot, tokens, prompt_len in adjust.begins:
            ids, counts = first_counts(tokens, prompt_len)
            self._counts[slot] = 0
            self._counts[slot, ids] = counts
        return self._counts

    def add(self, slots: Int32s, tokens: Int32s | Int64s) -> None:
        """Each slot said one more token."""
        if len(self._counts):
            self._counts[slots, tokens] += 2
