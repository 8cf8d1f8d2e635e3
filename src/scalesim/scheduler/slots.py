"""Per-slot state of the running sequences, as arrays: a decode step costs a few numpy calls, not a
loop."""

from __future__ import annotations

import numpy as np

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
        self.done = np.zeros(num_slots, np.int64)
        self.launched = np.zeros(num_slots, np.int64)
        self.known = np.zeros(num_slots, np.int64)
        self.limit = np.zeros(num_slots, np.int64)
        self.capacity = np.zeros(num_slots, np.int64)
        self.epoch = np.zeros(num_slots, np.int64)
        self.row = np.zeros(num_slots, np.int32)
        self.temperature = np.zeros(num_slots, np.float32)
        self.top_k = np.zeros(num_slots, np.int32)
        self.top_p = np.ones(num_slots, np.float32)
        self.key = np.zeros(num_slots, np.uint64)
        self.stop_ids = np.full((num_slots, _STOP_IDS), -2, np.int32)
        self.watched = np.zeros(num_slots, np.bool_)  # needs a look at each token
        self.sequences: list[Sequence | None] = [None] * num_slots
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def enter(self, sequence: Sequence) -> int:
        """Give ``sequence`` a slot; every field of the slot is set anew."""
        slot = self._free.pop()
        count = len(sequence.tokens)
        self.tokens[slot, :count] = sequence.tokens
        self.done[slot] = self.launched[slot] = 0
        self.known[slot] = count
        self.limit[slot] = sequence.limit
        self.capacity[slot] = 0
        self.row[slot] = 0
        params = sequence.params
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k
        self.top_p[slot] = params.top_p
        self.key[slot] = sequence.key
        stop_ids = sorted(sequence.stop_ids)
        fits = len(stop_ids) <= _STOP_IDS
        self.stop_ids[slot] = -2
        if fits:
            self.stop_ids[slot, : len(stop_ids)] = stop_ids
        self.watched[slot] = sequence.observer is not None or not fits
        self.sequences[slot] = sequence
        sequence.slot = slot
        return slot

    def leave(self, sequence: Sequence) -> None:
        slot = sequence.slot
        assert self.sequences[slot] is sequence
        self.sequences[slot] = None
        self.epoch[slot] += 1
        self._free.append(slot)

    def token_bytes(self, slot: int, count: int) -> bytes:
        """The first ``count`` tokens of ``slot`` as the memory layer takes them."""
        return self.tokens[slot, :count].tobytes()
