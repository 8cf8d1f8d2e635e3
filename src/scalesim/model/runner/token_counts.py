"""Token counts of running sequences, for the penalties.

The format of a count is that of the kernels' contract (``Adjustments``): twice the number of times
the token was generated, plus 1 if the prompt has it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scalesim.batch_options import LogitsBatch
from scalesim.core import Int32s, Int64s


def first_counts(tokens: Int32s, prompt_len: int) -> tuple[Int32s, Int32s]:
    """The first counts of a sequence of ``tokens`` ``[n]``, of which ``prompt_len`` are the prompt:
    token ids and their counts, both ``[m]``."""
    prompt, output = tokens[:prompt_len], tokens[prompt_len:]
    ids = np.unique(tokens)
    counts = np.isin(ids, prompt).astype(np.int32)
    said, times = np.unique(output, return_counts=True)
    counts[np.searchsorted(ids, said)] += 2 * times.astype(np.int32)
    return ids, counts


class TokenCounts:
    """The counts of the CPU's runner, ``[num_slots, vocab]``, allocated at the first penalty."""

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self._shape = (num_slots, vocab_size)
        self._counts: npt.NDArray[np.int32] = np.zeros((0, vocab_size), np.int32)

    def begin(self, adjust: LogitsBatch) -> npt.NDArray[np.int32]:
        """Set the counts of slots that begin in this step. Returns all counts."""
        if adjust.begins and not len(self._counts):
            self._counts = np.zeros(self._shape, np.int32)
        for slot, tokens, prompt_len in adjust.begins:
            ids, counts = first_counts(tokens, prompt_len)
            self._counts[slot] = 0
            self._counts[slot, ids] = counts
        return self._counts

    def add(self, slots: Int32s, tokens: Int32s | Int64s) -> None:
        """Count one more generated token for each of ``slots``; both arguments are ``[n]``."""
        if len(self._counts):
            self._counts[slots, tokens] += 2
