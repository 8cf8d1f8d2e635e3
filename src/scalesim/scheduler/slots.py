"""Per-slot state of the running sequences, as arrays: a decode step costs a few numpy calls, not a
loop."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scalesim.batch import AttachmentBatch
from scalesim.memory.lease import Lease
from scalesim.sampling.logits import LogitsProcessors
from scalesim.scheduler.sequence import Sequence

_STOP_IDS = 4  # compared in one go; a sequence with more is looked at one by one


class Slots:
    """``num_slots`` × ``max_len`` tokens, and for each slot:

        tokens    |-- done --|--- launched, not collected ---|--- known, to launch ---|
                  0        done                          launched                   known

    ``launched`` may run one past ``known``: the step in flight samples that token. ``capacity`` is
    how many tokens the pages at hand take. ``epoch`` tells a slot's sequences apart.
    """

    def __init__(self, num_slots: int, max_len: int) -> None:
        self.tokens = np.zeros((num_slots, max_len), np.int32)
        # one row of numbers a slot, so that entering is one assignment
        numbers = self._numbers = np.zeros((num_slots, 7), np.int64)
        self.done, self.launched, self.known, self.limit = numbers.T[:4]
        self.capacity, self.row, self.top_k = numbers.T[4:]
        self._ratios = np.ones((num_slots, 2), np.float32)
        self.temperature, self.top_p = self._ratios.T
        self.epoch = np.zeros(num_slots, np.int64)
        self.key = np.zeros(num_slots, np.uint64)
        self.stop_ids = np.full((num_slots, _STOP_IDS), -2, np.int32)
        self.watched = np.zeros(num_slots, np.bool_)  # needs a look at each token
        # of each kind: each slot's row of the block table (0: none), layout, first position
        self._attached: dict[str, npt.NDArray[np.int32]] = {}
        self._num_attached = 0
        self.scored = np.zeros(num_slots, np.bool_)  # asks for log-probabilities
        self.num_scored = 0
        self.adjusting = LogitsProcessors(num_slots)
        self.sequences: list[Sequence | None] = [None] * num_slots
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def enter(self, sequence: Sequence, lease: Lease, block_size: int) -> int:
        """Give ``sequence`` a slot for the work on ``lease``; every field of the slot is set
        anew."""
        slot = self._free.pop()
        count = len(sequence.tokens)
        self.tokens[slot, :count] = sequence.tokens
        params = sequence.params
        self._numbers[slot] = (
            lease.num_cached,
            lease.num_cached,
            count,
            sequence.limit,
            lease.num_blocks * block_size,
            lease.row,
            params.top_k,
        )
        self._ratios[slot] = (params.temperature, params.top_p)
        self.key[slot] = sequence.key
        for use, _, row in lease.attachments:
            if use.kind not in self._attached:
                self._attached[use.kind] = np.zeros((len(self.sequences), 3), np.int32)
            self._attached[use.kind][slot] = (row, use.layout, use.start)
            self._num_attached += 1
        stop_ids = sorted(sequence.stop_ids)
        fits = len(stop_ids) <= _STOP_IDS
        self.stop_ids[slot] = (stop_ids if fits else []) + [-2] * (
            _STOP_IDS - len(stop_ids) if fits else _STOP_IDS
        )
        self.watched[slot] = sequence.observer is not None or not fits
        if sequence.score_log is not None:
            self.scored[slot] = True
            self.num_scored += 1
        if sequence.adjust is not None:
            self.adjusting.enter(slot, sequence.adjust)
            self.watched[slot] |= sequence.adjust.guide is not None
        self.sequences[slot] = sequence
        sequence.slot = slot
        return slot

    def leave(self, sequence: Sequence) -> None:
        slot = sequence.slot
        assert self.sequences[slot] is sequence
        self.sequences[slot] = None
        for use in sequence.attachments:
            self._attached[use.kind][slot] = 0
            self._num_attached -= 1
        if sequence.score_log is not None:
            self.scored[slot] = False
            self.num_scored -= 1
        if sequence.adjust is not None:
            self.adjusting.leave(slot)
        self.epoch[slot] += 1
        self._free.append(slot)

    def clear(self) -> None:
        """Every slot is free, whatever was in it."""
        self.sequences = [None] * len(self.sequences)
        self._free = list(range(len(self.sequences) - 1, -1, -1))
        self._attached.clear()
        self.scored[:] = False
        self._num_attached = self.num_scored = 0
        self.adjusting = LogitsProcessors(len(self.sequences))
        self.epoch += 1

    def attached(self, kind: str, slot_ids: npt.NDArray[np.int64]) -> AttachmentBatch | None:
        """The attachments of this kind that the slots ``slot_ids`` have."""
        if not self._num_attached or kind not in self._attached:
            return None
        rows, layouts, starts = self._attached[kind][slot_ids].T.copy()
        return AttachmentBatch(rows, layouts, starts) if rows.any() else None

    def at(self, slot: int) -> Sequence:
        """Whose ``slot`` is; it must be somebody's."""
        sequence = self.sequences[slot]
        assert sequence is not None, slot
        return sequence

    def entered(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence is not None]

    def take_tokens(self, slot_ids: npt.NDArray[np.int64], tokens: npt.NDArray[np.int32]) -> None:
        """Each of the slots ``slot_ids`` has come to know one more token."""
        self.tokens[slot_ids, self.known[slot_ids]] = tokens
        self.known[slot_ids] += 1

    def left(self, sequence: Sequence) -> int:
        """Known tokens of ``sequence`` that are not launched yet."""
        return int(self.known[sequence.slot] - self.launched[sequence.slot])

    def known_tokens(self, slot: int) -> npt.NDArray[np.int32]:
        return self.tokens[slot, : self.known[slot]].copy()

    def token_bytes(self, slot: int, count: int) -> bytes:
        """The first ``count`` tokens of ``slot`` as the memory layer takes them."""
        return self.tokens[slot, :count].tobytes()
