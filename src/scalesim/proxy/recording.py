"""The record of a program's calls: a trace without text, and a line of figures for each call."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeGuard

import xxhash

from scalesim.core import AgentId
from scalesim.proxy.answer import ReadAnswer
from scalesim.proxy.texts import answer_of, prompt_of
from scalesim.replay.formats import gathered
from scalesim.trace.file import read_trace
from scalesim.trace.recorder import Recorder
from scalesim.trace.records import MAX_NUMBER
from scalesim.trace.trace import TraceTick

_BLOCK_SIZE = 16  # tokens: how finely common beginnings of different agents are found


@dataclass(slots=True)
class CallRecord:
    """Figures of a call. Times are seconds from the recording's beginning. ``rung`` says what the
    agent was known by, ``digest`` is equal for equal prompts. ``status`` is HTTP's, 0 while the
    call is open and 499 if the program went away. Token counts are the server's where it reported
    them, else estimates; ``cached_tokens`` is ``None`` where it did not."""

    agent: AgentId | None
    rung: str
    start_s: float
    prompt_tokens: int
    digest: int
    first_s: float | None = None
    end_s: float | None = None
    status: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None

    @property
    def is_ok(self) -> bool:
        return self.status == 200


class Recording:
    """Notes calls while they happen, from one event loop; afterwards gives them as ticks.

    The trace at ``path`` has seconds for ticks until ``ticks`` is asked. Raises ``ConfigError`` if
    the file cannot be made.
    """

    def __init__(self, path: Path, time_s: Callable[[], float] = time.monotonic) -> None:
        self.calls: list[CallRecord] = []
        self._path, self._time_s, self._start_s = path, time_s, time_s()
        self._recorder = Recorder(path, _BLOCK_SIZE)
        self._ids = count()
        self._ticks: list[tuple[float, float]] = []  # (seconds, tick): the program's clock

    @property
    def now_s(self) -> float:
        return self._time_s() - self._start_s

    def begins(
        self, body: Mapping[str, Any], agent: AgentId | None, rung: str
    ) -> tuple[int, CallRecord]:
        """Note a request; the number identifies it until ``ends``."""
        tokens, now_s, call = prompt_of(body), self.now_s, next(self._ids)
        record = CallRecord(
            agent, rung, now_s, len(tokens), xxhash.xxh3_64_intdigest(tokens.tobytes())
        )
        self.calls.append(record)
        self._recorder.begins(call, agent, now_s, now_s, tokens)
        return call, record

    def ends(self, call: int, record: CallRecord, answer: ReadAnswer) -> None:
        """Note that a request ended; ``record.status`` is set. One that failed is in no trace."""
        record.end_s = self.now_s
        output = answer_of(answer.text, answer.tool_calls)
        record.output_tokens = len(output) if answer.output_tokens is None else answer.output_tokens
        if answer.prompt_tokens is not None:
            record.prompt_tokens = answer.prompt_tokens
        record.cached_tokens = answer.cached_tokens
        self._recorder.ends(call, output if record.is_ok else output[:0])

    def ticks_to(self, tick: object, ticks_on: object = None) -> None:
        """Note that the program's own clock is at ``tick``, or went ``ticks_on``; what is no time
        is passed over."""
        now = self._ticks[-1][1] if self._ticks else 0.0
        if tick is None and _is_time(ticks_on):
            tick = now + ticks_on
        if _is_time(tick) and (not self._ticks or tick > now):
            self._ticks.append((self.now_s, float(tick)))

    def close(self) -> None:
        self._recorder.close()

    def ticks(self, tick_s: float | None = None) -> list[TraceTick]:
        """The calls by tick: of the program's clock if it said one, else of ``tick_s`` seconds
        (``None``: a hundredth of the run). Raises ``ConfigError`` for ticks that are too short."""
        found = list(read_trace(self._path))
        if self._ticks and tick_s is None:
            return self._by_clock(found)
        last_s = max((tick.time for tick in found), default=0.0)
        return gathered(found, tick_s or max(last_s / 100.0, 1e-3))

    def _by_clock(self, found: list[TraceTick]) -> list[TraceTick]:
        moments = [moment for moment, _ in self._ticks]
        first = min(0.0, self._ticks[0][1] - 1.0)
        times = [first, *(tick for _, tick in self._ticks)]
        for tick in found:
            tick.time = float(bisect_right(moments, tick.time))
        renamed = gathered(found, 1.0)
        for tick in renamed:
            tick.time = times[int(tick.time)]
        return renamed


def _is_time(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= MAX_NUMBER
