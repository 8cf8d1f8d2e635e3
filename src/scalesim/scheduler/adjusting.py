"""What sequences' logits go through before they are sampled: penalties, biases, bans, masks.

``Adjust`` is one sequence's part, made from its parameters; ``Adjusting`` keeps those of all slots
and makes a step's ``AdjustBatch``. Used by the scheduler, and only in steps that hold a sequence
with any of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from scalesim.core import AdjustBatch, Bools, Floats, Int32s, Int64s, SamplingParams

OFF = (0.0, 1.0, 0.0, 0.0)  # min_p and the three penalties


class Guide(Protocol):
    """Decides what one sequence may say next. On the engine's thread, token by token.
    ``num_words`` is the length of its masks, ``ceil(vocab / 32)``."""

    num_words: int

    def fill(self, tokens: Int32s, words: Int32s) -> None:
        """Set the bits of the allowed tokens in ``words`` (``[ceil(vocab / 32)]``, all 0).

        tokens : prompt and output so far. What it raises ends the sequence.
        """

    def push(self, token: int) -> bool:
        """``token`` was sampled; True when the text is complete."""
        ...


class Adjust:
    """One sequence's. ``banned`` tokens do not come before position ``open_at``."""

    def __init__(
        self, params: SamplingParams, prompt_len: int, stop_ids: Iterable[int],
        guide: Guide | None = None,
    ) -> None:  # fmt: skip
        self.ratios = ratios_of(params)
        self.penalizes = self.ratios[1:] != OFF[1:]
        self.prompt_len = prompt_len
        self.guide = guide
        self.open_at = prompt_len + params.min_tokens
        self.banned = np.array(sorted(stop_ids) if params.min_tokens else [], np.int32)
        bias = dict(params.logit_bias or {})
        self._open = _columns(bias)
        self._shut = _columns({**bias, **dict.fromkeys(self.banned.tolist(), -np.inf)})

    @property
    def is_listed(self) -> bool:
        """Whether it has more than numbers."""
        return self.guide is not None or len(self._shut[0]) > 0

    def biases(self, position: int) -> tuple[Int32s, Floats]:
        """(ids, biases) for the token at ``position``; the guide's mask holds its own bans."""
        return self._shut if position < self.open_at and self.guide is None else self._open

    def mask(self, tokens: Int32s) -> Int32s:
        """The mask for the token behind ``tokens``. Where the guide allows nothing but an end, it
        may end before ``min_tokens``."""
        assert self.guide is not None
        words = np.zeros(self.guide.num_words, np.int32)
        self.guide.fill(tokens, words)
        if len(tokens) < self.open_at and len(self.banned):
            kept = words.copy()
            unset(kept, self.banned)
            return kept if kept.any() else words
        return words


def adjust_of(
    params: SamplingParams, prompt_len: int, stop_ids: Iterable[int], guide: Guide | None
) -> Adjust | None:
    """``None`` where the logits are sampled as they are."""
    if (
        guide is None
        and params.logit_bias is None
        and not params.min_tokens
        and ratios_of(params) == OFF
    ):
        return None
    return Adjust(params, prompt_len, stop_ids, guide)


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


class Adjusting:
    """Per slot, what its sequence asked for. ``num_adjusted`` and ``num_guided`` slots do."""

    def __init__(self, num_slots: int) -> None:
        self.num_adjusted = self.num_guided = 0
        self.guided = np.zeros(num_slots, np.bool_)
        self._adjusted = np.zeros(num_slots, np.bool_)
        self._ratios = np.tile(np.array(OFF, np.float32), (num_slots, 1))
        self._listed = np.zeros(num_slots, np.bool_)
        self._of: dict[int, Adjust] = {}
        self._masks: dict[int, Int32s] = {}  # by slot, for the step to come

    def enter(self, slot: int, adjust: Adjust) -> None:
        self._of[slot] = adjust
        self._adjusted[slot] = True
        self._ratios[slot] = adjust.ratios
        self._listed[slot] = adjust.is_listed
        self.guided[slot] = adjust.guide is not None
        self.num_adjusted += 1
        self.num_guided += adjust.guide is not None

    def leave(self, slot: int) -> None:
        adjust = self._of.pop(slot)
        self._adjusted[slot] = self._listed[slot] = self.guided[slot] = False
        self._masks.pop(slot, None)
        self.num_adjusted -= 1
        self.num_guided -= adjust.guide is not None

    def ask(self, slot: int, tokens: Int32s) -> None:
        """Ask the guide of ``slot`` what may follow ``tokens``. Raises what it raises."""
        self._masks[slot] = self._of[slot].mask(tokens)

    def batch(
        self, at: Int64s, ends: Int64s, sample: Bools, first_chunk: int,
        tokens: Callable[[int], Int32s],
    ) -> AdjustBatch | None:  # fmt: skip
        """For a step of the slots ``at`` whose next tokens come at ``ends``. Those from
        ``first_chunk`` on sample for the first time since they entered; ``tokens(slot)`` are what
        they know."""
        seqs = (self._adjusted[at] & sample).nonzero()[0]
        if not len(seqs):
            return None
        slots = at[seqs]
        ratios = np.ascontiguousarray(self._ratios[slots].T)
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
        return AdjustBatch(
            seqs.astype(np.int32), *ratios, np.cumsum(bias_start, dtype=np.int32),
            np.concatenate([*ids, np.zeros(0, np.int32)]),
            np.concatenate([*biases, np.zeros(0, np.float32)]),
            mask_rows, np.stack(masks) if masks else np.zeros((0, 1), np.int32), begins,
        )  # fmt: skip


class HookGuide:
    """A caller's ``LogitsMask`` as a guide. Raises ``ValueError`` for what is no mask."""

    def __init__(
        self, hook: Callable[[Int32s, Int32s], object], prompt_len: int, vocab_size: int
    ) -> None:
        self._hook, self._prompt_len, self._vocab_size = hook, prompt_len, vocab_size
        self.num_words = -(-vocab_size // 32)

    def fill(self, tokens: Int32s, words: Int32s) -> None:
        tokens = tokens.copy()
        found = self._hook(tokens[: self._prompt_len], tokens[self._prompt_len :])
        if found is None:
            words[:] = -1
            return
        allowed: npt.NDArray[np.bool_] = np.zeros(32 * len(words), np.bool_)
        allowed[: self._vocab_size] = self._as_mask(np.asarray(found))
        if not allowed.any():
            raise ValueError(
                f"mask {self._hook!r} allows no token at position {len(tokens)}; allow one at "
                "least, or return None for all"
            )
        words[:] = np.packbits(allowed, bitorder="little").view(np.int32)

    def _as_mask(self, found: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
        if found.dtype == np.bool_ and found.shape == (self._vocab_size,):
            return found  # type: ignore[return-value]
        mask = np.zeros(self._vocab_size, np.bool_)
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
            raise ValueError(
                f"mask {self._hook!r} gave {found.dtype} of shape {found.shape}; it must give "
                f"token ids, a bool array of shape ({self._vocab_size},), or None"
            )
        ids = found.astype(np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocab_size:
            bad = int(ids.min() if ids.min() < 0 else ids.max())
            raise ValueError(
                f"mask {self._hook!r} allows token {bad}, which is outside the vocabulary, 0 to "
                f"{self._vocab_size - 1}"
            )
        mask[ids] = True
        return mask

    def push(self, token: int) -> bool:
        return False
