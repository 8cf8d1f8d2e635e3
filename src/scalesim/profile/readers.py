"""Readers of logs by format. Each returns calls in order; errors name their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from scalesim.checks import shown
from scalesim.core import Int64s
from scalesim.errors import TraceError
from scalesim.profile.calls import LoggedCall, in_ticks, pseudo_tokens
from scalesim.profile.database import rows_of
from scalesim.regular_file import open_regular
from scalesim.trace import records
from scalesim.trace.file import read_trace
from scalesim.trace.trace import TracePiece, TraceTick

ReadLog = Callable[[Path, "float | None"], "list[LoggedCall]"]
MAX_TOKENS = 1 << 29
"""The most tokens of all prompts of a trace, which are held in memory: 4 GiB."""
_NO_TOKENS = np.empty(0, np.int64)


def read_log(path: Path, form: str, tick_s: float | None = None) -> tuple[str, list[LoggedCall]]:
    """The format of ``path`` and its calls, in order. ``tick_s`` is the length of a tick in seconds
    for logs that have times only. Raises ``TraceError``, ``ConfigError``."""
    found = detect(path)  # also if the format is given: raises unless the file is regular
    name = found if form == "auto" else form
    if name is None:
        known = ", ".join(READERS)
        raise TraceError(f"{path} is in no known format; --format can name one of {known}")
    calls = READERS[name](path, tick_s)
    if not calls:
        raise TraceError(f"{path} has no calls, read as {name}; --format names another format")
    return name, calls


def detect(path: Path) -> str | None:
    """The format, from the beginning of the file; ``None`` if it is unknown. Raises ``TraceError``
    if ``path`` is no regular file."""
    with open_regular(path, TraceError) as file:
        head = file.read(4096)
    if head.startswith(b"SQLite format 3\0"):
        return "oasis"
    if b'"scalesim_trace"' in head:
        return "trace"
    if b'"persona_name"' in head or b'"persona"' in head:
        return "generative-agents"
    if b'"messages"' in head or b'"prompt"' in head:
        return "openai"
    return None


def _trace(path: Path, tick_s: float | None) -> list[LoggedCall]:
    """ScaleSim's own traces; see docs/traces.md."""
    return calls_of_trace(read_trace(path), str(path))


def calls_of_trace(ticks: Iterable[TraceTick], source: str = "the trace") -> list[LoggedCall]:
    """The calls of a trace from ``source``, but those that name no agent. Raises ``TraceError`` for
    more than ``MAX_TOKENS``."""
    calls, num_tokens = [], 0
    for tick in ticks:
        for call in tick.calls:
            if call.agent is None:
                continue
            num_tokens += call.prompt_len
            if num_tokens > MAX_TOKENS:
                raise TraceError(
                    f"{source}: the prompts up to tick {tick.time} have more than {MAX_TOKENS} "
                    "tokens; give a part of the trace"
                )
            tokens = np.concatenate([_tokens(piece) for piece in call.prompt])
            calls.append(LoggedCall(
                call.agent, tick.time, tokens, call.output.length, str(call.prompt[0].content),
                call.expect,
            ))  # fmt: skip
    return calls


def _tokens(piece: TracePiece) -> Int64s:
    offsets = np.arange(piece.start, piece.start + piece.length, dtype=np.int64)
    numbers: Int64s = offsets * 0x9E3779B1 + hash(piece.content)
    return numbers


def _oasis(path: Path, tick_s: float | None) -> list[LoggedCall]:
    """OASIS's table ``trace``: user_id, created_at, action, info. It has actions, no prompts. Times
    are ticks where they are small whole numbers, else dates."""
    timed, are_ticks = [], True
    for number, row in enumerate(rows_of(path, "trace", ("user_id", "created_at", "action")), 1):
        where = f"{path}: row {number} of trace"
        agent, when, action = records.agent(row[0], where), row[1], row[2]
        action = records.name(action, f"{where}: action")
        if action in ("sign_up", "refresh"):
            continue
        are_ticks = are_ticks and (isinstance(when, int) or str(when).isdigit())
        seconds = _seconds(when, f"{where}: created_at")
        timed.append((seconds, LoggedCall(agent, 0.0, _NO_TOKENS, 0, action)))
    return in_ticks(timed, tick_s or 1.0 if are_ticks else tick_s)


def _generative_agents(path: Path, tick_s: float | None) -> list[LoggedCall]:
    """Generative Agents' call log: a JSON object of records, a list of them, or one a line, each
    with persona_name (or persona), step, start_time, function_name, input and output."""
    calls = []
    for where, record in _records(path):
        agent = _first(record, "persona_name", "persona")
        if agent is None:
            raise TraceError(f"{where}: no persona_name; is this a Generative Agents log?")
        tick = records.number_of(record.get("step", 0), f"{where}: step")
        start = records.number_of(record.get("start_time") or 0, f"{where}: start_time")
        call = LoggedCall(
            records.name(agent, f"{where}: persona_name"),
            tick,
            pseudo_tokens(_words(_first(record, "input", "prompt"))),
            len(pseudo_tokens(_words(record.get("output")))),
            _template(_first(record, "function_name", "func_name"), where),
        )
        calls.append((tick * 1e9 + start, call))
    calls.sort(key=lambda pair: pair[0])
    if len({call.time for _, call in calls}) > 1:
        return [call for _, call in calls]
    return in_ticks(calls, tick_s)  # all in one tick: by wall time


def _openai(path: Path, tick_s: float | None) -> list[LoggedCall]:
    """OpenAI-style requests, one JSON object a line: messages or prompt, and of agent_id,
    session_id, user or model what there is; ``step``, or a time (timestamp, created, time)."""
    calls, has_ticks = [], True
    for where, record in _records(path):
        body = record.get("body", record.get("request", record))
        merged = {**record, **body} if isinstance(body, dict) else record
        agent = _first(merged, "agent_id", "session_id", "prompt_cache_key", "user", "model")
        if agent is None:
            raise TraceError(f"{where}: no agent_id, session_id, user or model to tell callers by")
        time = merged.get("step")
        if time is None:
            has_ticks = False
            time = _first(merged, "timestamp", "created", "time")
        if time is None:
            raise TraceError(f"{where}: no step and no timestamp, created or time")
        messages = merged.get("messages")
        prompt = merged.get("prompt")
        text = _chat_text(messages) if isinstance(messages, list) else _words(prompt)
        usage = records.record(merged.get("usage") or {}, f"{where}: usage")
        length = usage.get("completion_tokens") or 0
        call = LoggedCall(
            records.agent(agent, where), 0.0, pseudo_tokens(text),
            records.whole(length, f"{where}: completion_tokens"),
            _template(merged.get("template"), where),
        )  # fmt: skip
        calls.append((_seconds(time, where), call))
    return in_ticks(calls, 1.0 if has_ticks else tick_s)


def _first(record: dict[str, Any], *names: str) -> Any:
    """Of these fields, the first that is there."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def _words(value: Any) -> str:
    """The text of a JSON value. Text is only cut and compared, so any value is accepted."""
    return value if isinstance(value, str) else "" if value is None else str(value)


def _template(value: Any, where: str) -> str:
    return "" if value is None else records.name(value, f"{where}: template")


def _chat_text(messages: list[Any]) -> str:
    parts = []
    for message in messages:
        if isinstance(message, dict):
            parts.append(f"<{message.get('role')}>{message.get('content')}")
    return "\n".join(parts)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON file: its values, its items, or one a line."""
    if _is_json_lines(path):
        for where, text in records.lines(path):
            yield where, records.record(records.parsed(text, where), where)
        return
    whole = records.document(path)
    items = whole.values() if isinstance(whole, dict) else whole
    if not isinstance(whole, (dict, list)):
        raise TraceError(f"{path} holds {shown(whole)}, no records")
    for index, item in enumerate(items):
        where = f"{path} record {index}"
        yield where, records.record(item, where)


def _is_json_lines(path: Path) -> bool:
    """Whether the first line is an object by itself."""
    for where, text in records.lines(path):
        try:
            return isinstance(records.parsed(text, where), dict)
        except TraceError:
            break
    return False


def _seconds(value: Any, where: str) -> float:
    """A number of seconds, or a date."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError, OSError):  # also years that no clock knows
            pass
    try:
        return records.number_of(value, where)
    except TraceError:
        raise TraceError(f"{where}: {shown(value)} is neither a date nor a finite number") from None


READERS: dict[str, ReadLog] = {
    "trace": _trace,
    "oasis": _oasis,
    "generative-agents": _generative_agents,
    "openai": _openai,
}
