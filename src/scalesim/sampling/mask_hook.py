"""Mask hooks: a caller's function of the next tokens (``LogitsMask``) as a constraint."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from scalesim.checks import reading, shown
from scalesim.core import Int32s
from scalesim.errors import RequestError
from scalesim.foreign import Foreign
from scalesim.sampling.logits import MaskFiller


def ask_each(
    constraints: list[MaskHook], tokens: list[Int32s], masks: Int32s
) -> list[Exception | None]:
    """The filler of mask hooks: calls one hook after the other."""
    return [_ask(*asked) for asked in zip(constraints, tokens, masks, strict=True)]


def _ask(constraint: MaskHook, tokens: Int32s, words: Int32s) -> Exception | None:
    with Foreign() as raised:  # an exception ends the request of the hook
        constraint.fill(tokens, words)
    return raised.exception


class MaskHook:
    """A caller's ``LogitsMask`` as a constraint."""

    filler: MaskFiller = staticmethod(ask_each)

    def __init__(
        self, hook: Callable[[Int32s, Int32s], object], prompt_len: int, vocab_size: int
    ) -> None:
        self._hook, self._prompt_len, self._vocab_size = hook, prompt_len, vocab_size
        self.num_words = -(-vocab_size // 32)

    def fill(self, tokens: Int32s, words: Int32s) -> None:
        """Write the tokens that the hook allows into ``words``. Raises what the hook raises, and
        ``RequestError`` for a result that is no mask."""
        found = self._hook(tokens[: self._prompt_len], tokens[self._prompt_len :])
        if found is None:
            words[:] = -1
            return
        allowed: npt.NDArray[np.bool_] = np.zeros(32 * len(words), np.bool_)
        with reading("what mask gave"):
            array = np.asarray(found)
        allowed[: self._vocab_size] = self._as_mask(array)
        if not allowed.any():
            raise RequestError(
                f"mask {shown(self._hook)} allows no token at position {len(tokens)}; allow one at "
                "least, or return None for all"
            )
        words[:] = np.packbits(allowed, bitorder="little").view(np.int32)

    def _as_mask(self, found: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
        if found.dtype == np.bool_ and found.shape == (self._vocab_size,):
            return found  # type: ignore[return-value]
        mask = np.zeros(self._vocab_size, np.bool_)
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
            raise RequestError(
                f"mask {shown(self._hook)} gave {found.dtype} of shape {found.shape}; it must give "
                f"token ids, a bool array of shape ({self._vocab_size},), or None"
            )
        ids = found.astype(np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocab_size:
            bad = int(ids.min() if ids.min() < 0 else ids.max())
            raise RequestError(
                f"mask {shown(self._hook)} allows token {bad}, which is outside the vocabulary, "
                f"0 to {self._vocab_size - 1}"
            )
        mask[ids] = True
        return mask

    def push(self, token: int) -> bool:
        return False

    def end(self, token: int) -> None:
        pass
