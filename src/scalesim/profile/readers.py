"""Readers of logs by format. Each gives calls in order; what is wrong names its place."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from scalesim.errors import ConfigError, TraceError
from scalesim.profile.calls import LoggedCall, in_steps, pseudo_tokens
from scalesim.trace import Piece
from scalesim.trace_file import read_trace

Reader = Callable[[Path, "float | None"], "list[LoggedCall]"]
_NO_TOKENS = np.empty(0, np.int64)


def read_log(path: Path, form: str, step_s: float | None = None) -> tuple[str, list[LoggedCall]]:
    """The calls of ``path``, in order, and the format that it has. ``step_s`` is the length of a
    step in logs that have times only. Raises ``TraceError``, ``ConfigError``."""
    if not path.is_file():
        raise ConfigError(f"{path} is no file; give the path of a log")
    if step_s is not None and not 0.0 < step_s < float("inf"):
        raise ConfigError(f"--step {step_s}; a step must last above 0 seconds")
    name = detect(path) if form == "auto" else form
    calls = READERS[name](path, step_s)
    if not calls:
        raise TraceError(f"{path} has no calls, read as {name}; --format names another format")
    return name, calls


def detect(path: Path) -> str:
    """The format, from the beginning of the file."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"SQLite format 3\0"):
        return "oasis"
    if b'"scalesim_trace"' in head:
        return "trace"
    if b'"persona_name"' in head or b'"persona"' in head:
        return "generative-agents"
    if b'"messages"' in head or b'"prompt"' in head:
        return "openai"
    raise TraceError(f"{path} is in no known format; --format can name one of {', '.join(READERS)}")


def _trace(path: Path, step_s: float | None) -> list[LoggedCall]:
    """ScaleSim's own; see docs/traces.md."""
    return [
        LoggedCall(
            turn.agent, step.time, np.concatenate([_piece(piece) for piece in turn.prompt]),
            turn.output.length, str(turn.prompt[0].content), turn.expect,
        )
        for step in read_trace(path)
        for turn in step.turns
        if turn.agent is not None
    ]  # fmt: skip


def _piece(piece: Piece) -> Any:
    at = np.arange(piece.start, piece.start + piece.length, dtype=np.int64)
    return at * 0x9E3779B1 + hash(piece.content)


def _oasis(path: Path, step_s: float | None) -> list[LoggedCall]:
    """OASIS's table ``trace``: user_id, created_at, action, info. It has actions, no prompts. Times
    are steps where they are small whole numbers, else dates."""
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            rows = database.execute("SELECT user_id, created_at, action FROM trace").fetchall()
    except sqlite3.Error as error:
        raise TraceError(f"{path}: {error}; an OASIS database has a table trace") from None
    acts = [row for row in rows if row[2] not in ("sign_up", "refresh")]
    timed = [
        (_seconds(at, f"{path}: created_at"), LoggedCall(agent, 0.0, _NO_TOKENS, 0, str(action)))
        for agent, at, action in acts
    ]
    if all(isinstance(at, int) or str(at).isdigit() for _, at, _ in acts):
        return in_steps(timed, step_s or 1.0)
    return in_steps(timed, step_s)


def _generative_agents(path: Path, step_s: float | None) -> list[LoggedCall]:
    """Generative Agents' call log: a JSON object of records, a list of them, or one a line, each
    with persona_name (or persona), step, start_time, function_name, input and output."""
    calls = []
    for where, record in _records(path):
        agent = record.get("persona_name", record.get("persona"))
        if agent is None:
            raise TraceError(f"{where}: no persona_name; is this a Generative Agents log?")
        calls.append(
            (
                float(record.get("step", 0)) * 1e9 + float(record.get("start_time", 0) or 0),
                LoggedCall(
                    str(agent),
                    float(record.get("step", 0)),
                    pseudo_tokens(str(record.get("input", record.get("prompt", "")))),
                    len(pseudo_tokens(str(record.get("output", "")))),
                    str(record.get("function_name", record.get("func_name", ""))),
                ),
            )
        )
    calls.sort(key=lambda each: each[0])
    if len({call.time for _, call in calls}) > 1:
        return [call for _, call in calls]
    return in_steps(calls, step_s)  # all in one step: by wall time


def _openai(path: Path, step_s: float | None) -> list[LoggedCall]:
    """OpenAI-style requests, one JSON object a line: messages or prompt, and of agent_id,
    session_id, user or model what there is; ``step``, or a time (timestamp, created, time)."""
    calls, has_steps = [], True
    for where, record in _records(path):
        body = record.get("body", record.get("request", record))
        merged = {**record, **body} if isinstance(body, dict) else record
        agent = next(
            (merged[key] for key in ("agent_id", "session_id", "prompt_cache_key", "user", "model")
             if merged.get(key) is not None), None,
        )  # fmt: skip
        if agent is None:
            raise TraceError(f"{where}: no agent_id, session_id, user or model to tell callers by")
        time = merged.get("step")
        if time is None:
            has_steps = False
            time = next(
                (merged[key] for key in ("timestamp", "created", "time") if key in merged), None
            )
        if time is None:
            raise TraceError(f"{where}: no step and no timestamp, created or time")
        messages = merged.get("messages")
        text = _chat_text(messages) if isinstance(messages, list) else str(merged.get("prompt", ""))
        usage = merged.get("usage") or {}
        call = LoggedCall(
            str(agent), 0.0, pseudo_tokens(text), int(usage.get("completion_tokens", 0)),
            str(merged.get("template", "")),
        )  # fmt: skip
        calls.append((_seconds(time, where), call))
    return in_steps(calls, 1.0 if has_steps else step_s)


def _chat_text(messages: list[Any]) -> str:
    parts = []
    for message in messages:
        if isinstance(message, dict):
            parts.append(f"<{message.get('role')}>{message.get('content')}")
    return "\n".join(parts)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON file: its values, its items, or one a line."""
    with path.open(encoding="utf-8") as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        try:
            whole_line = isinstance(json.loads(first), dict)
        except json.JSONDecodeError:
            whole_line = False
        try:
            if whole_line:
                found = [(f"{path} line {number}", json.loads(line))
                         for number, line in enumerate(file, 1) if line.strip()]  # fmt: skip
            else:
                whole = json.load(file)
                items = whole.values() if isinstance(whole, dict) else whole
                found = [(f"{path} record {index}", item) for index, item in enumerate(items)]
        except json.JSONDecodeError as error:
            raise TraceError(f"{path} is not JSON: {error}") from None
    for where, record in found:
        if not isinstance(record, dict):
            raise TraceError(f"{where} is no JSON object")
        yield where, record


def _seconds(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        raise TraceError(f"{where}: {value!r} is neither a number nor a date") from None


READERS: dict[str, Reader] = {
    "trace": _trace,
    "oasis": _oasis,
    "generative-agents": _generative_agents,
    "openai": _openai,
}
