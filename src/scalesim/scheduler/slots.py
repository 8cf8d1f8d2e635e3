"""Slots: the state of the running sequences as arrays, a row for each sequence. A decode step costs
a few numpy calls and no loop."""

from __future__ import annotations

import numpy as np

from scalesim.core import Int32s, Int64s
from scalesim.memory.lease import Lease
from scalesim.sampling.logits import LogitsProcessors
from scalesim.scheduler.attachment_columns import AttachmentColumns
from scalesim.scheduler.sequence import Sequence

_NUM_STOP_IDS = 4  # compared at once; a sequence with more of them is watched
_NO_ID = -2  # equals no token, and not NO_TOKEN either


class Slots:
    """``num_slots`` × ``max_len`` tokens, and for each slot:

        tokens    |-- done --|--- launched, not collected ---|--- known, to launch ---|
                  0        done                          launched                   known

    ``launched`` may be one past ``known``: the step in flight samples that token. ``capacity`` is
    how many tokens the pages of the lease take. ``epoch`` tells a slot's sequences apart.
    """

    def __init__(self, num_slots: int, max_len: int) -> None:
        self.tokens = np.zeros((num_slots, max_len), np.int32)
        # the columns of one array, so that entering is one assignment
        numbers = self._numbers = np.zeros((num_slots, 7), np.int64)
        self.done, self.launched, self.known, self.limit = numbers.T[:4]
        self.capacity, self.row, self.top_k = numbers.T[4:]
        self._ratios = np.ones((num_slots, 2), np.float32)
        self.temperature, self.top_p = self._ratios.T
        self.epoch = np.zeros(num_slots, np.int64)
        self.key = np.zeros(num_slots, np.uint64)
        self.stop_ids = np.full((num_slots, _NUM_STOP_IDS), _NO_ID, np.int32)
        self.watched = np.zeros(num_slots, np.bool_)  # each token needs a look
        self.attachments = AttachmentColumns(num_slots)
        self.scored = np.zeros(num_slots, np.bool_)  # asks for log-probabilities
        self.num_scored = 0
        self.logits = LogitsProcessors(num_slots)
        self.sequences: dict[int, Sequence] = {}  # by slot
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def enter(self, sequence: Sequence, lease: Lease) -> int:
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
            lease.num_tokens,
            lease.row,
            params.top_k,
        )
        self._ratios[slot] = (params.temperature, params.top_p)
        self.key[slot] = sequence.key
        self.attachments.enter(slot, lease)
        num_stop_ids = len(sequence.stop_ids)
        self.stop_ids[slot] = _NO_ID
        if num_stop_ids <= _NUM_STOP_IDS:
            self.stop_ids[slot, :num_stop_ids] = sorted(sequence.stop_ids)
        self.watched[slot] = sequence.observer is not None or num_stop_ids > _NUM_STOP_IDS
        if sequence.logprobs_log is not None:
            self.scored[slot] = True
            self.num_scored += 1
        if sequence.logits_processor is not None:
            self.logits.enter(slot, sequence.logits_processor)
            self.watched[slot] |= sequence.logits_processor.constraint is not None
        self.sequences[slot] = sequence
        sequence.slot = slot
        return slot

    def leave(self, sequence: Sequence) -> None:
        slot = sequence.slot
        assert self.sequences[slot] is sequence
        del self.sequences[slot]
        self.attachments.leave(slot)
        if sequence.logprobs_log is not None:
            self.scored[slot] = False
            self.num_scored -= 1
        if sequence.logits_processor is not None:
            self.logits.leave(slot)
        self.epoch[slot] += 1
        self._free.append(slot)

    def clear(self) -> None:
        """Every slot is free, whatever was in it."""
        num_slots = len(self.epoch)
        self.sequences.clear()
        self._free = list(range(num_slots - 1, -1, -1))
        self.attachments = AttachmentColumns(num_slots)
        self.logits = LogitsProcessors(num_slots)
        self.scored[:] = False
        self.num_scored = 0
        self.epoch += 1

    def take_tokens(self, slot_ids: Int64s, tokens: Int32s) -> None:
        """Each of the slots ``slot_ids`` has one more known token."""
        self.tokens[slot_ids, self.known[slot_ids]] = tokens
        self.known[slot_ids] += 1

    def num_unlaunched(self, sequence: Sequence) -> int:
        """How many known tokens of ``sequence`` are not launched yet."""
        return int(self.known[sequence.slot] - self.launched[sequence.slot])

    def known_tokens(self, slot: int) -> Int32s:
        return self.tokens[slot, : self.known[slot]].copy()

    def token_bytes(self, slot: int, count: int) -> bytes:
        """The first ``count`` tokens of ``slot``, in the form in which memory takes them."""
        return self.tokens[slot, :count].tobytes()
