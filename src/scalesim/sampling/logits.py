"""Logits processors: penalties, biases, bans and masks, applied to logits before sampling.

A ``LogitsProcessor`` belongs to a sequence and is made from its parameters. ``LogitsProcessors``
keeps the processors of all slots, and makes the ``LogitsBatch`` of a step. Used by the scheduler,
in steps with a sequence that has a processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from scalesim.batch_options import LogitsBatch
from scalesim.core import Bools, Floats, Int32s, Int64s
from scalesim.foreign import Foreign
from scalesim.sampling.params import SamplingParams

OFF = (0.0, 1.0, 0.0, 0.0)  # min_p and the three penalties


class MaskFiller(Protocol):
    """Fills the masks of several constraints at once."""

    def __call__(
        self, constraints: list[Any], tokens: list[Int32s], masks: Int32s
    ) -> list[Exception | None]:
        """Set in ``masks[i]``, which is 0, the bits of the tokens that ``constraints[i]`` allows
        after ``tokens[i]`` (prompt and output so far). Returns an error or ``None`` for each
        constraint; an error ends the sequence."""
        ...


class TokenConstraint(Protocol):
    """Decides which tokens a sequence may sample next. Called on the engine's thread.

    ``num_words`` is the length of its masks, ``ceil(vocab / 32)``. The masks of all constraints
    with the same ``filler`` are filled together.
    """

    @property
    def num_words(self) -> int: ...

    @property
    def filler(self) -> MaskFiller: ...

    def push(self, token: int) -> bool:
        """Note that ``token`` was sampled. Returns True if the text is complete. An exception ends
        the sequence."""
        ...

    def end(self, token: int) -> None:
        """Note that ``token``, an end-of-sequence or stop token, ended the text. An exception ends
        the sequence with an error instead."""
        ...


class LogitsProcessor:
    """The logits processor of a sequence. ``banned`` tokens are not sampled before position
    ``open_at``."""

    def __init__(
        self, params: SamplingParams, prompt_len: int, stop_ids: Iterable[int],
        constraint: TokenConstraint | None = None,
    ) -> None:  # fmt: skip
        self.ratios = ratios_of(params)
        self.penalizes = self.ratios[1:] != OFF[1:]
        self.prompt_len = prompt_len
        self.constraint = constraint
        self.open_at = prompt_len + params.min_tokens
        self.banned = np.array(sorted(stop_ids) if params.min_tokens else [], np.int32)
        bias = dict(params.logit_bias or {})
        self._open = _columns(bias)
        self._shut = _columns({**bias, **dict.fromkeys(self.banned.tolist(), -np.inf)})

    @property
    def is_listed(self) -> bool:
        """Whether the processor has a constraint or biases, and not only ratios."""
        return self.constraint is not None or len(self._shut[0]) > 0

    def biases(self, position: int) -> tuple[Int32s, Floats]:
        """The ids and biases for the token at ``position``. With a constraint, bans are in its
        mask."""
        return self._shut if position < self.open_at and self.constraint is None else self._open

    def ban(self, tokens: Int32s, words: Int32s) -> Int32s:
        """``words``, the mask for the token after ``tokens``, without the tokens that
        ``min_tokens`` bans. If the mask has no other tokens, it stays as it is."""
        if len(tokens) >= self.open_at or not len(self.banned):
            return words
        kept = words.copy()
        unset(kept, self.banned)
        return kept if kept.any() else words


def logits_processor_of(
    params: SamplingParams,
    prompt_len: int,
    stop_ids: Iterable[int],
    constraint: TokenConstraint | None,
) -> LogitsProcessor | None:
    """The processor of a sequence; ``None`` if its logits are sampled as they are."""
    if (
        constraint is None
        and params.logit_bias is None
        and not params.min_tokens
        and ratios_of(params) == OFF
    ):
        return None
    return LogitsProcessor(params, prompt_len, stop_ids, constraint)


def ratios_of(params: SamplingParams) -> tuple[float, float, float, float]:
    return (
        params.min_p,
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
    )


def _columns(biases: dict[int, float]) -> tuple[Int32s, Floats]:
    ids = np.array(list(biases), np.int32)
    return ids, np.array(list(biases.values()), np.float32)


def unset(words: Int32s, ids: Int32s) -> None:
    """Clear the bits of ``ids``."""
    np.bitwise_and.at(words.view(np.uint32), ids >> 5, ~(np.uint32(1) << (ids & 31).astype("u4")))


def _fill(
    filler: MaskFiller, constraints: list[Any], tokens: list[Int32s], masks: Int32s
) -> list[Exception | None]:
    """Call ``filler``. If it raises for several constraints, each constraint is asked alone, so
    that only the constraint at fault fails."""
    errors: list[Exception | None] = []
    with Foreign() as raised:
        errors = filler(constraints, tokens, masks)
    if raised.error is None:
        return errors
    if len(constraints) == 1:
        return [raised.exception]
    masks[:] = 0
    return [
        _fill(filler, [constraint], [known], words)[0]
        for constraint, known, words in zip(
            constraints, tokens, np.split(masks, len(masks)), strict=True
        )
    ]


class LogitsProcessors:
    """The logits processors by slot. ``num_processed`` slots have a processor, ``num_constrained``
    a constraint."""

    def __init__(self, num_slots: int) -> None:
        self.num_processed = self.num_constrained = 0
        self.constrained = np.zeros(num_slots, np.bool_)
        self._processed = np.zeros(num_slots, np.bool_)
        self._ratios = np.tile(np.array(OFF, np.float32), (num_slots, 1))
        self._listed = np.zeros(num_slots, np.bool_)
        self._of: dict[int, LogitsProcessor] = {}
        self._masks: dict[int, Int32s] = {}  # by slot, for the step to come

    def enter(self, slot: int, processor: LogitsProcessor) -> None:
        self._of[slot] = processor
        self._processed[slot] = True
        self._ratios[slot] = processor.ratios
        self._listed[slot] = processor.is_listed
        self.constrained[slot] = processor.constraint is not None
        self.num_processed += 1
        self.num_constrained += processor.constraint is not None

    def leave(self, slot: int) -> None:
        processor = self._of.pop(slot)
        self._processed[slot] = self._listed[slot] = self.constrained[slot] = False
        self._masks.pop(slot, None)
        self.num_processed -= 1
        self.num_constrained -= processor.constraint is not None

    def fill_masks(self, slots: list[int], tokens: list[Int32s]) -> dict[int, Exception]:
        """Make the masks of ``slots``, for the tokens after ``tokens``. Returns errors by slot."""
        failed: dict[int, Exception] = {}
        for filler, members in self._by_filler(slots).items():
            constraints = [self._of[slots[i]].constraint for i in members]
            known = [tokens[i] for i in members]
            masks = np.zeros((len(members), constraints[0].num_words), np.int32)  # type: ignore[union-attr]
            for i, words, error in zip(
                members, masks, _fill(filler, constraints, known, masks), strict=True
            ):
                if error is None:
                    self._masks[slots[i]] = self._of[slots[i]].ban(tokens[i], words)
                else:
                    failed[slots[i]] = error
        return failed

    def _by_filler(self, slots: list[int]) -> dict[MaskFiller, list[int]]:
        groups: dict[MaskFiller, list[int]] = {}
        for i, slot in enumerate(slots):
            constraint = self._of[slot].constraint
            assert constraint is not None, slot
            groups.setdefault(constraint.filler, []).append(i)
        return groups

    def batch(
        self, slot_ids: Int64s, ends: Int64s, sample: Bools, first_chunk: int,
        tokens: Callable[[int], Int32s],
    ) -> LogitsBatch | None:  # fmt: skip
        """The batch for a step of the slots ``slot_ids``, whose next tokens have the positions
        ``ends``. Slots from ``first_chunk`` on sample for the first time since they entered;
        ``tokens(slot)`` are their known tokens."""
        seqs = (self._processed[slot_ids] & sample).nonzero()[0]
        if not len(seqs):
            return None
        slots = slot_ids[seqs]
        min_ps, repetitions, presences, frequencies = self._ratios[slots].T.copy()
        bias_start = np.zeros(len(seqs) + 1, np.int32)
        mask_rows = np.full(len(seqs), -1, np.int32)
        ids: list[Int32s] = []
        biases: list[Floats] = []
        masks: list[Int32s] = []
        for i in self._listed[slots].nonzero()[0].tolist():
            slot = int(slots[i])
            columns = self._of[slot].biases(int(ends[seqs[i]]))
            bias_start[i + 1] = len(columns[0])
            ids.append(columns[0])
            biases.append(columns[1])
            if slot in self._masks:
                mask_rows[i] = len(masks)
                masks.append(self._masks.pop(slot))
        begins = tuple(
            (slot, tokens(slot), self._of[slot].prompt_len)
            for slot in slots[seqs >= first_chunk].tolist()
            if self._of[slot].penalizes
        )
        return LogitsBatch(
            seqs.astype(np.int32), min_ps, repetitions, presences, frequencies,
            np.cumsum(bias_start, dtype=np.int32),
            np.concatenate([*ids, np.zeros(0, np.int32)]),
            np.concatenate([*biases, np.zeros(0, np.float32)]),
            mask_rows, _stacked(masks), begins,
        )  # fmt: skip


def _stacked(masks: list[Int32s]) -> Int32s:
    """``masks`` as rows; those of models with fewer tokens end in zeros."""
    width = max(map(len, masks), default=1)
    rows = np.zeros((len(masks), width), np.int32)
    for row, mask in zip(rows, masks, strict=True):
        row[: len(mask)] = mask
    return rows
