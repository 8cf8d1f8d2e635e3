"""A call of a log, independent of the log's format."""

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
    """A logged call. ``time`` is in ticks. ``tokens`` are numbers that stand for tokens: equal for
    equal text, and empty if the log has no prompts. ``template`` names the kind of call. ``expect``
    is the next use that was declared after the call."""

    agent: AgentId
    time: float
    tokens: Int64s
    output_len: int = 0
    template: str = ""
    expect: float | None = None


def pseudo_tokens(text: str) -> Int64s:
    """Numbers for pieces of ``text`` of up to four letters, about as long as a tokenizer's tokens.
    For English, the length is within some ten percent of a real tokenizer's."""
    pieces = _PIECES.findall(text)
    return np.fromiter((hash(piece) for piece in pieces), np.int64, len(pieces))


def in_ticks(calls: Iterable[tuple[float, LoggedCall]], tick_s: float | None) -> list[LoggedCall]:
    """Calls with times in seconds, converted to ticks of ``tick_s`` seconds (``None``: a hundredth
    of the log), in order. Raises ``ConfigError`` if a tick's number is too large for a float."""
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
