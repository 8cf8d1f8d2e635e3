"""The expected work of a call: what decides which waiting request goes first.

A simulation waits for a tick's last answer, so an agent with much to generate must begin early.
Work is in tokens to generate, each of which takes a step; prefill runs beside decodes. The length
of an answer is learned from answers of the same kind: equal ``max_tokens``, and prompts that begin
alike.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from scalesim.scheduler.sequence import Sequence

_NEW = 0.1  # weight of the newest answer
_BEGINNING = 32  # tokens that tell templates apart
_MAX_KINDS = 1024

_Kind: TypeAlias = "tuple[int, bytes]"


class ExpectedWork:
    """``output_len`` is the usual length of an answer, of all calls."""

    def __init__(self) -> None:
        self.output_len = 0.0
        self._lengths: OrderedDict[_Kind, float] = OrderedDict()

    def of(self, sequence: Sequence, num_calls: float) -> float:
        """The work from ``sequence`` on, the first of ``num_calls`` that its agent makes one after
        the other. The calls behind it have not come, and are taken to be usual ones; so this
        call counts towards what is usual."""
        longest = float(sequence.limit - sequence.prompt_len)
        expected = min(longest, self._lengths.get(_kind(sequence), longest))
        self.output_len += (_NEW if self.output_len else 1.0) * (expected - self.output_len)
        return expected + (num_calls - 1.0) * self.output_len

    def ended(self, sequence: Sequence) -> None:
        """Learn from the whole answer of ``sequence``."""
        kind, found = _kind(sequence), float(len(sequence.output))
        known = self._lengths.pop(kind, found)
        self._lengths[kind] = known + _NEW * (found - known)
        if len(self._lengths) > _MAX_KINDS:
            self._lengths.popitem(last=False)


def _kind(sequence: Sequence) -> _Kind:
    length = min(_BEGINNING, sequence.prompt_len)
    return sequence.limit - sequence.prompt_len, sequence.tokens[:length].tobytes()
