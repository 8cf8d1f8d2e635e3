"""Trace files: one JSON object a line, documented in docs/traces.md. Read and written line by line.

Reading checks everything: a line that is wrong raises ``TraceError`` with its number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from scalesim.core import AgentId
from scalesim.errors import TraceError
from scalesim.trace import Content, Hint, Piece, TraceStep, Turn

VERSION = 1
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

    def steps(self, steps: Iterable[TraceStep]) -> None:
        for step in steps:
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
    for number, line in _lines(path):
        where = f"{path} line {number}"
        time = _number(line.get("step"), f"{where}: step")
        if step is None or time > step.time:
            if step is not None:
                yield step
            step = TraceStep(time)
        elif time < step.time:
            raise TraceError(f"{where}: step {time} after step {step.time}; steps do not go back")
        if "prompt" in line:
            step.turns.append(_turn(line, where))
        else:
            _add_hint(step, line, where)
    if step is not None:
        yield step


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except json.JSONDecodeError as error:
                raise TraceError(f"{path} line {number} is not JSON: {error}") from None
            if not isinstance(line, dict):
                raise TraceError(f"{path} line {number} is no JSON object")
            if number == 1:
                if line.get("scalesim_trace") != VERSION:
                    raise TraceError(
                        f'{path} does not begin with {{"scalesim_trace": {VERSION}}}: it is no '
                        "trace, or one of another version"
                    )
                continue
            yield number, line


def _turn(line: dict[str, Any], where: str) -> Turn:
    _only(line, _TURN_KEYS, where)
    pieces = line["prompt"]
    if not isinstance(pieces, list) or not pieces:
        raise TraceError(f"{where}: prompt must be a list of [content, length] with one at least")
    expect, turn_round = line.get("expect"), line.get("round", 0)
    if isinstance(turn_round, bool) or not isinstance(turn_round, int) or turn_round < 0:
        raise TraceError(f"{where}: round {turn_round!r} must be a whole number, at least 0")
    adapter = line.get("adapter")
    if adapter is not None and not isinstance(adapter, str):
        raise TraceError(f"{where}: adapter {adapter!r} must be a name")
    return Turn(
        _agent(line, where, optional=True),
        tuple(_piece(piece, f"{where}: prompt") for piece in pieces),
        _piece(line.get("output"), f"{where}: output"),
        turn_round,
        adapter,
        None if expect is None else _number(expect, f"{where}: expect"),
    )


def _add_hint(step: TraceStep, line: dict[str, Any], where: str) -> None:
    _only(line, _HINT_KEYS, where)
    agent = _agent(line, where, optional=False)
    assert agent is not None
    expect = line.get("expect")
    at = None if expect is None else _number(expect, f"{where}: expect")
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
        raise TraceError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(sorted(keys))}")


def _agent(line: dict[str, Any], where: str, *, optional: bool) -> AgentId | None:
    agent = line.get("agent")
    if agent is None and optional:
        return None
    if isinstance(agent, bool) or not isinstance(agent, (str, int)):
        raise TraceError(f"{where}: agent {agent!r} must be a string or a whole number")
    return agent


def _piece(value: Any, what: str) -> Piece:
    shape = isinstance(value, list) and len(value) in (2, 3)
    if not shape or isinstance(value[0], bool) or not isinstance(value[0], (str, int)):
        raise TraceError(f"{what}: {value!r} must be [content, length] or [content, length, start]")
    length, start = value[1], value[2] if len(value) == 3 else 0
    for name, number, least in (("length", length, 1), ("start", start, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise TraceError(f"{what}: {name} {number!r} must be a whole number, at least {least}")
    content: Content = value[0]
    return Piece(content, length, start)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TraceError(f"{what} is {value!r}; it must be a finite number")
    return float(value)


def _plain(piece: Piece) -> list[Content | int]:
    return list(piece) if piece.start else list(piece[:2])
