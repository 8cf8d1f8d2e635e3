"""The running sequences, by what each does next: wait for a load, prefill, or decode.

Used by the scheduler, which gives slots and leases to sequences, and takes them.
"""

from __future__ import annotations

import numpy as np

from scalesim.config import SchedulerConfig
from scalesim.core import Bools, Int64s
from scalesim.memory.lease import Lease
from scalesim.scheduler.sequence import Chunk, Phase, Sequence
from scalesim.scheduler.slots import Slots
from scalesim.scheduler.step_costs import StepCosts

_NO_SLOTS: Int64s = np.empty(0, np.int64)
_LEAST_SHARE = 8  # a step prefills an eighth of the largest one at least, so that prompts get done


class Running:
    """``prefilling`` is in order of admission. ``decoding`` are slots, in the order in which their
    sequences began to decode."""

    def __init__(
        self, slots: Slots, config: SchedulerConfig, costs: StepCosts | None = None
    ) -> None:
        self._slots, self._costs = slots, costs
        self._max_tokens = config.max_num_batched_tokens
        self.prefilling: list[Sequence] = []
        self.decoding = _NO_SLOTS
        self._loading: dict[int, Sequence] = {}  # by id of the lease

    def wait(self, sequence: Sequence, lease: Lease) -> None:
        """``sequence`` waits for the loads of ``lease``."""
        sequence.phase = Phase.LOADING
        self._loading[id(lease)] = sequence

    def loaded(self, lease: Lease) -> Sequence:
        """The loads of ``lease`` are over: its sequence waits no more, and is returned."""
        return self._loading.pop(id(lease))

    def prefill(self, sequence: Sequence) -> None:
        sequence.phase = Phase.PREFILL
        self.prefilling.append(sequence)
        self.prefilling.sort(key=lambda queued: queued.admission)

    def decode(self, sequences: list[Sequence], step: int) -> None:
        """``sequences`` decode from now on: the last chunks of their prompts are in ``step``."""
        if not sequences:
            return
        for sequence in sequences:
            sequence.phase = Phase.DECODE
            if sequence.first_step is None:
                sequence.first_step = step
            self.prefilling.remove(sequence)
        slot_ids = np.array([sequence.slot for sequence in sequences], np.int64)
        self.decoding = np.concatenate([self.decoding, slot_ids])

    def wanted_decodes(self) -> Int64s:
        """The decoding slots that have a token to compute."""
        slot_ids, slots = self.decoding, self._slots
        unfinished: Bools = slots.launched[slot_ids] < slots.limit[slot_ids] - 1
        if slots.logits.num_constrained:  # a constraint must have seen the token in flight
            known: Bools = slots.launched[slot_ids] < slots.known[slot_ids]
            unfinished &= known | ~slots.logits.constrained[slot_ids]
        return slot_ids[unfinished]

    def chunks(self, decodes: Int64s) -> list[Chunk]:
        """What is prefilled in the next step, beside ``decodes``: the oldest sequences first."""
        chunks, budget = [], self._prefill_budget(decodes)
        for sequence in self.prefilling:
            if budget <= 0:
                break
            count = min(self._slots.num_unlaunched(sequence), budget)
            if count > 0:
                chunks.append((sequence, count))
                budget -= count
        return chunks

    def _prefill_budget(self, decodes: Int64s) -> int:
        """The most prompt tokens of a step: what runs beside ``decodes`` without delaying them.
        Where nothing decodes, or the decodes alone keep the arithmetic busy, later is no better
        than now."""
        budget = self._max_tokens - len(decodes)
        if self._costs is None or not self.prefilling or not len(decodes):
            return budget
        launched = self._slots.launched
        context_tokens, position = launched[decodes].sum(), launched[self.prefilling[0].slot]
        balanced = self._costs.balanced_tokens(len(decodes), int(context_tokens), int(position))
        if balanced <= 0.0:
            return budget
        return int(min(budget, max(balanced, self._max_tokens // _LEAST_SHARE)))

    def leave(self, sequence: Sequence) -> None:
        """``sequence`` runs no more; it still has its slot and its lease."""
        if sequence.phase is Phase.LOADING:
            del self._loading[id(sequence.lease)]
        elif sequence.phase is Phase.PREFILL:
            self.prefilling.remove(sequence)
        elif sequence.phase is Phase.DECODE:
            self.decoding = self.decoding[self.decoding != sequence.slot]

    def clear(self) -> None:
        self.prefilling.clear()
        self._loading.clear()
        self.decoding = _NO_SLOTS
