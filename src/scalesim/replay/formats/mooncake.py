"""Mooncake's JSON lines: arrival times in milliseconds, lengths, and ids of the prompt's blocks.

A row may name its session. If it does not, the session is inferred: a call continues the session
whose latest prompt, up to its last whole block, is a proper beginning of the call's prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from scalesim.errors import TraceError
from scalesim.replay.formats.blocks import Ids, pieces_of
from scalesim.replay.formats.rows import MAX_TOKENS, MAX_TURNS, Row, Timed, in_order, rows, ticks_of
from scalesim.trace.trace import Content, TraceCall, TracePiece, TraceTick

BLOCK_SIZE = 512  # of the public traces


def read(path: Path, block_size: int | None) -> list[TraceTick]:
    """Read a trace whose rows have whole prompts. Raises ``TraceError``."""
    size = block_size or BLOCK_SIZE
    sessions = _Sessions(size)
    last_s: dict[str, float] = {}
    calls = []
    for number, row in enumerate(rows(path)):
        prompt = pieces_of(row, row.either("input_length", "input_tokens"), "hash_ids", size)
        agent = row.name("session_id") if row.has("session_id") else sessions.of(prompt)
        calls.append(Timed(_time(row, agent, last_s), _call(row, number, agent, prompt)))
    return ticks_of(calls)


def read_delta(path: Path, block_size: int | None) -> list[TraceTick]:
    """Read a trace whose rows have only the new part of a prompt, behind all earlier text of their
    session. Raises ``TraceError``."""
    size = block_size or BLOCK_SIZE
    said: dict[str, tuple[TracePiece, ...]] = {}
    last_s: dict[str, float] = {}
    calls = []
    for number, row in enumerate(rows(path)):
        agent = row.name("session_id") if row.has("session_id") else f"call {number}"
        new = pieces_of(row, row.either("input_length", "input_tokens"), "hash_ids", size)
        call = _call(row, number, agent, (*said.get(agent, ()), *new))
        if call.prompt_len > MAX_TOKENS or len(call.prompt) > MAX_TURNS * 2 + len(new):
            raise TraceError(
                f"{row.where}: session {agent!r} has grown to {call.prompt_len} tokens in "
                f"{len(call.prompt)} pieces; it may have {MAX_TOKENS} in {MAX_TURNS} rows"
            )
        said[agent] = (*call.prompt, call.output)
        calls.append(Timed(_time(row, agent, last_s), call))
    return ticks_of(calls)


def write(file: IO[str], ticks: Iterable[TraceTick], block_size: int | None) -> None:
    size = block_size or BLOCK_SIZE
    ids = Ids(size)
    for time, call in in_order(ticks):
        line = {
            **({} if call.agent is None else {"session_id": str(call.agent)}),
            "timestamp": milliseconds(time),
            "input_length": call.prompt_len,
            "output_length": call.output.length,
            "hash_ids": ids.of(call.prompt),
        }
        file.write(json.dumps(line) + "\n")


def milliseconds(seconds: float) -> int | float:
    found = round(seconds * 1000, 6)
    return int(found) if found == int(found) else found


def _call(row: Row, number: int, agent: str | None, prompt: tuple[TracePiece, ...]) -> TraceCall:
    length = row.whole(row.either("output_length", "output_tokens"), 1)
    return TraceCall(agent, prompt, TracePiece(f"answer {number}", length))


def _time(row: Row, agent: str | None, last_s: dict[str, float]) -> float:
    """The time of a call in seconds: its timestamp, or its delay after its session's last call."""
    if row.has(row.either("timestamp", "created_time")):
        found = row.seconds(row.either("timestamp", "created_time"))
    elif agent in last_s and row.has(row.either("delay", "delay_ms")):
        found = last_s[agent] + row.seconds(row.either("delay", "delay_ms"))
    else:
        raise TraceError(
            f"{row.where}: no timestamp, and no delay after an earlier row of its session"
        )
    if agent is not None:
        last_s[agent] = found
    return found


class _Sessions:
    """Sessions inferred from prompts. A block belongs to the session that had it first; a session's
    end is the last whole block of its latest prompt."""

    def __init__(self, block_size: int) -> None:
        self._block_size, self._count = block_size, 0
        self._owners: dict[Content, str] = {}
        self._ends: dict[str, Content] = {}

    def of(self, prompt: tuple[TracePiece, ...]) -> str:
        whole = [piece.content for piece in prompt if piece.length == self._block_size]
        known = next((name for name in reversed(whole) if name in self._owners), None)
        session = None if known is None else self._owners[known]
        goes_on = session is not None and self._ends.get(session) == known and known != whole[-1]
        if session is None or not goes_on:
            session = f"session {self._count}"
            self._count += 1
        for name in whole:
            self._owners.setdefault(name, session)
        if whole and self._owners[whole[-1]] == session:
            self._ends[session] = whole[-1]
        return session
