"""Trace files in JSON lines, as documented in docs/traces.md; read and written line by line.

Reading validates everything: a wrong line raises ``TraceError`` with the line's number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from scalesim.checks import shown
from scalesim.core import MAX_MORE_CALLS, AgentId
from scalesim.errors import TraceError
from scalesim.trace import records
from scalesim.trace.trace import Content, Hint, TraceCall, TracePiece, TraceTick

VERSION = 1
MAX_PROMPT = 1 << 24
"""The most tokens of a prompt, and of an output."""
_MAX_START = 1 << 31
_CALL_KEYS = {
    "step", "agent", "prompt", "output", "round", "adapter", "expect", "more_calls", "at_s",
}  # fmt: skip
_HINT_KEYS = {"step", "agent", "expect"}


class TraceWriter:
    """Appends lines to ``file``; the first line states the format and its version. Times are in
    ticks."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._write({"scalesim_trace": VERSION})

    def call(self, tick: float, call: TraceCall, at_s: float | None = None) -> None:
        """Write a call; ``at_s`` is its wall time in seconds from the recording's beginning."""
        line: dict[str, Any] = {"step": tick, "agent": call.agent}
        line["prompt"] = [_plain(piece) for piece in call.prompt]
        line["output"] = _plain(call.output)
        for name in ("round", "adapter", "expect"):
            if getattr(call, name):
                line[name] = getattr(call, name)
        if call.more_calls is not None:
            line["more_calls"] = call.more_calls
        if at_s is not None:
            line["at_s"] = round(at_s, 6)
        self._write(line)

    def hint(self, tick: float, hint: Hint) -> None:
        self._write({"step": tick, "agent": hint.agent, "expect": hint.expect})

    def tick(self, tick: float) -> None:
        """Write a move of the clock, with or without calls in that tick."""
        self._write({"step": tick})

    def ticks(self, ticks: Iterable[TraceTick]) -> None:
        for tick in ticks:
            if not tick.hints and not tick.calls:
                self.tick(tick.time)
            for hint in tick.hints:
                self.hint(tick.time, hint)
            for call in tick.calls:
                self.call(tick.time, call)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


def read_trace(path: Path) -> Iterator[TraceTick]:
    """The ticks of the trace in ``path``, read as they are needed.

    A hint that follows a call of its agent in the same tick belongs to that call: it is given when
    the call has ended. Raises ``TraceError`` for a file that is no such trace.
    """
    tick: TraceTick | None = None
    for where, line in _lines(path):
        time = records.number(line.get("step"), f"{where}: step")
        if tick is None or time > tick.time:
            if tick is not None:
                yield tick
            tick = TraceTick(time)
        elif time < tick.time:
            raise TraceError(f"{where}: step {time} after step {tick.time}; steps do not go back")
        if line.keys() == {"step"}:
            continue  # a tick
        if "prompt" in line:
            tick.calls.append(_call(line, where))
        else:
            _add_hint(tick, line, where)
    if tick is not None:
        yield tick


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    is_trace = False
    for where, text in records.lines(path):
        line = records.record(records.parsed(text, where), where)
        if is_trace:
            yield where, line
        elif line.get("scalesim_trace") != VERSION:
            raise TraceError(
                f'{path} does not begin with {{"scalesim_trace": {VERSION}}}: it is no trace, or '
                "one of another version"
            )
        is_trace = True
    if not is_trace:
        raise TraceError(f'{path} is empty; a trace begins with {{"scalesim_trace": {VERSION}}}')


def _call(line: dict[str, Any], where: str) -> TraceCall:
    _only(line, _CALL_KEYS, where)
    pieces = line["prompt"]
    if not isinstance(pieces, list) or not pieces:
        raise TraceError(f"{where}: prompt must be a list of [content, length] with one at least")
    expect, adapter, more = line.get("expect"), line.get("adapter"), line.get("more_calls")
    if more is not None:
        more = records.whole(more, f"{where}: more_calls", 0, MAX_MORE_CALLS)
    prompt = tuple(_piece(piece, f"{where}: prompt") for piece in pieces)
    if sum(piece.length for piece in prompt) > MAX_PROMPT:
        raise TraceError(f"{where}: the prompt has more than {MAX_PROMPT} tokens")
    return TraceCall(
        _agent(line, where, optional=True),
        prompt,
        _piece(line.get("output"), f"{where}: output"),
        records.whole(line.get("round", 0), f"{where}: round"),
        None if adapter is None else records.name(adapter, f"{where}: adapter"),
        None if expect is None else records.number(expect, f"{where}: expect"),
        more_calls=more,
    )


def _add_hint(tick: TraceTick, line: dict[str, Any], where: str) -> None:
    _only(line, _HINT_KEYS, where)
    agent = _agent(line, where, optional=False)
    assert agent is not None
    expect = line.get("expect")
    time = None if expect is None else records.number(expect, f"{where}: expect")
    for index in range(len(tick.calls) - 1, -1, -1):
        call = tick.calls[index]
        if call.agent == agent:
            tick.calls[index] = replace(call, expect=time)
            return
    tick.hints.append(Hint(agent, time))


def _only(line: dict[str, Any], keys: set[str], where: str) -> None:
    unknown = sorted(line.keys() - keys)
    if unknown:
        known = ", ".join(sorted(keys))
        raise TraceError(f"{where}: unknown field {shown(unknown[0])}; known: {known}")


def _agent(line: dict[str, Any], where: str, *, optional: bool) -> AgentId | None:
    agent = line.get("agent")
    return None if agent is None and optional else records.agent(agent, where)


def _piece(value: Any, what: str) -> TracePiece:
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise TraceError(
            f"{what}: {shown(value)} must be [content, length] or [content, length, start]"
        )
    content: Content = records.name_or_number(value[0], f"{what}: content")
    length = records.whole(value[1], f"{what}: length", 1, MAX_PROMPT)
    start = records.whole(value[2] if len(value) == 3 else 0, f"{what}: start", 0, _MAX_START)
    return TracePiece(content, length, start)


def _plain(piece: TracePiece) -> list[Content | int]:
    return list(piece) if piece.start else list(piece[:2])
