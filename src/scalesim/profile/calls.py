"""One call of a log, whatever wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from scalesim.core import AgentId, Int64s
from scalesim.errors import ConfigError
from scalesim.trace.records import MAX_NUMBER

_PIECES = re.compile(r"\s?\w{1,4}|\s?[^\w\s]|\s")


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """``time`` in ticks. ``tokens`` are numbers that stand for tokens: equal where the text is
    equal; empty where the log has no prompts. ``template`` names the kind of call. ``expect`` is
    the next use that was declared after it."""

    agent: AgentId
    time: float
    tokens: Int64s
    output_len: int = 0
    template: str = ""
    expect: float | None = None


def pseudo_tokens(text: str) -> Int64s:
    """``text`` cut into pieces of up to four letters, about as long as a tokenizer's, as numbers:
    lengths are within some ten percent of a real tokenizer's for English."""
    pieces = _PIECES.findall(text)
    return np.fromiter((hash(piece) for piece in pieces), np.int64, len(pieces))


def in_ticks(calls: Iterable[tuple[float, LoggedCall]], tick_s: float | None) -> list[LoggedCall]:
    """Calls with times in seconds as calls in ticks of ``tick_s``, in order; a hundredth of the log
    a tick if ``None``. Raises ``ConfigError`` for more ticks than can be told apart."""
    timed = sorted(calls, key=lambda pair: pair[0])
    if not timed:
        return []
    start, end = timed[0][0], timed[-1][0]
    length = tick_s or max((end - start) / 100.0, 1e-9)
    if end - start > length * MAX_NUMBER:
        raise ConfigError(f"--tick {length}; the log lasts {end - start} s, too many such ticks")
    return [
        LoggedCall(
            call.agent, float(int((time - start) / length)), call.tokens, call.output_len,
            call.template, call.expect,
        )
        for time, call in timed
    ]  # fmt: skip
