"""Trace files: one JSON object a line, documented in docs/traces.md. Read and written line by line.

Reading checks everything: a line that is wrong raises ``TraceError`` with its number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from scalesim.checks import shown
from scalesim.core import AgentId
from scalesim.errors import TraceError
from scalesim.trace import records
from scalesim.trace.trace import Content, Hint, TracePiece, TraceStep, Turn

VERSION = 1
MAX_PROMPT = 1 << 24
"""Tokens of a prompt, and of an output."""
_MAX_START = 1 << 31
_TURN_KEYS = {"step", "agent", "prompt", "output", "round", "adapter", "expect", "at_s"}
_HINT_KEYS = {"step", "agent", "expect"}


class TraceWriter:
    """Appends lines to ``file``; the first one says what it is."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._write({"scalesim_trace": VERSION})

    def turn(self, step: float, turn: Turn, at_s: float | None = None) -> None:
        line: dict[str, Any] = {"step": step, "agent": turn.agent}
        line["prompt"] = [_plain(piece) for piece in turn.prompt]
        line["output"] = _plain(turn.output)
        for name in ("round", "adapter", "expect"):
            if getattr(turn, name):
                line[name] = getattr(turn, name)
        if at_s is not None:
            line["at_s"] = round(at_s, 6)
        self._write(line)

    def hint(self, step: float, hint: Hint) -> None:
        self._write({"step": step, "agent": hint.agent, "expect": hint.expect})

    def tick(self, step: float) -> None:
        """The clock moved, whoever speaks then."""
        self._write({"step": step})

    def steps(self, steps: Iterable[TraceStep]) -> None:
        for step in steps:
            if not step.hints and not step.turns:
                self.tick(step.time)
            for hint in step.hints:
                self.hint(step.time, hint)
            for turn in step.turns:
                self.turn(step.time, turn)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


def write_trace(path: Path, steps: Iterable[TraceStep]) -> None:
    with path.open("w", encoding="utf-8") as file:
        TraceWriter(file).steps(steps)


def read_trace(path: Path) -> Iterator[TraceStep]:
    """The steps of the trace in ``path``. A hint that follows a call of its agent in the same step
    belongs to that call: it is said when the call has ended."""
    step: TraceStep | None = None
    for where, line in _lines(path):
        time = records.number(line.get("step"), f"{where}: step")
        if step is None or time > step.time:
            if step is not None:
                yield step
            step = TraceStep(time)
        elif time < step.time:
            raise TraceError(f"{where}: step {time} after step {step.time}; steps do not go back")
        if line.keys() == {"step"}:
            continue  # a tick
        if "prompt" in line:
            step.turns.append(_turn(line, where))
        else:
            _add_hint(step, line, where)
    if step is not None:
        yield step


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


def _turn(line: dict[str, Any], where: str) -> Turn:
    _only(line, _TURN_KEYS, where)
    pieces = line["prompt"]
    if not isinstance(pieces, list) or not pieces:
        raise TraceError(f"{where}: prompt must be a list of [content, length] with one at least")
    expect, adapter = line.get("expect"), line.get("adapter")
    prompt = tuple(_piece(piece, f"{where}: prompt") for piece in pieces)
    if sum(piece.length for piece in prompt) > MAX_PROMPT:
        raise TraceError(f"{where}: the prompt has more than {MAX_PROMPT} tokens")
    return Turn(
        _agent(line, where, optional=True),
        prompt,
        _piece(line.get("output"), f"{where}: output"),
        records.whole(line.get("round", 0), f"{where}: round"),
        None if adapter is None else records.name(adapter, f"{where}: adapter"),
        None if expect is None else records.number(expect, f"{where}: expect"),
    )


def _add_hint(step: TraceStep, line: dict[str, Any], where: str) -> None:
    _only(line, _HINT_KEYS, where)
    agent = _agent(line, where, optional=False)
    assert agent is not None
    expect = line.get("expect")
    at = None if expect is None else records.number(expect, f"{where}: expect")
    for index in range(len(step.turns) - 1, -1, -1):
        turn = step.turns[index]
        if turn.agent == agent:
            step.turns[index] = Turn(
                agent, turn.prompt, turn.output, turn.round, turn.adapter, at, turn.truth
            )
            return
    step.hints.append(Hint(agent, at))


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
