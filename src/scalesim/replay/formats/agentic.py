"""The format ``dynamo.agentic_mooncake``, version 2: calls of a workflow with dependencies.

A dependency is converted to a time: a call comes at its ``not_before_ms``, or at its delay after
the times of the calls that it depends on, whichever is later. The durations of those calls are not
known before a replay, so they count as 0.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from scalesim.errors import TraceError
from scalesim.replay.formats.blocks import Ids, pieces_of
from scalesim.replay.formats.dynamo import BLOCK_SIZE, MAX_BLOCK
from scalesim.replay.formats.mooncake import milliseconds
from scalesim.replay.formats.rows import MAX_SECONDS, Row, Timed, in_order, rows, ticks_of
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick

SCHEMA, VERSION = "dynamo.agentic_mooncake", 2
_AT_LEAST = 0.001  # least delay in seconds after another session's call; the clock's resolution


def read(path: Path, block_size: int | None) -> list[TraceTick]:
    """Read ``path``. The trace states its own block size, which ``block_size`` must equal if it is
    given. Raises ``TraceError``."""
    found = rows(path)
    size = _header(next(found), block_size)
    requests: dict[str, Row] = {}
    for row in found:
        name = row.name("request_id")
        if name in requests:
            raise row.wrong("request_id", "another one: an earlier line has it")
        requests[name] = row
    plays = {row.name("play_id") for row in requests.values()}
    times = _times(requests)
    calls = []
    for number, name in enumerate(times):
        row = requests[name]
        scope = f"{row.name('play_id')}/" if len(plays) > 1 else ""  # of block ids and sessions
        prompt = pieces_of(row, row.either("input_length", "input_tokens"), "hash_ids", size, scope)
        length = row.whole(row.either("output_length", "output_tokens"), 1)
        agent = scope + row.name("session_id")
        calls.append(
            Timed(times[name], TraceCall(agent, prompt, TracePiece(f"answer {number}", length)))
        )
    return ticks_of(calls)


def _header(row: Row, block_size: int | None) -> int:
    for name, value in (("schema", SCHEMA), ("version", VERSION), ("hash_id_scope", "local")):
        if row.fields.get(name) != value:
            raise row.wrong(name, f"{value!r}")
    size = row.whole("block_size", 1, MAX_BLOCK)
    if block_size not in (None, size):
        raise row.wrong("block_size", f"{block_size}, as --block-size says")
    return size


def _times(rows: dict[str, Row]) -> dict[str, float]:
    """The time of each call in seconds, in topological order. Raises ``TraceError`` for circular
    dependencies."""
    waits: dict[str, list[tuple[str, float]]] = {}
    followers: dict[str, list[str]] = {name: [] for name in rows}
    for name, row in rows.items():
        waits[name] = [_wait(other, row, rows) for other in row.rows("dependencies")]
        for before, _ in waits[name]:
            followers[before].append(name)
    names = list(rows)
    places = {name: place for place, name in enumerate(names)}
    num_awaited = {name: len(before) for name, before in waits.items()}
    # sorted, and therefore a heap
    ready = [places[name] for name, count in num_awaited.items() if not count]
    times: dict[str, float] = {}
    while ready:
        name = names[heapq.heappop(ready)]
        start = rows[name].seconds("not_before_ms")
        found = max([start, *(times[before] + delay for before, delay in waits[name])])
        times[name] = round(min(found, MAX_SECONDS), 6)
        for follower in followers[name]:
            num_awaited[follower] -= 1
            if not num_awaited[follower]:
                heapq.heappush(ready, places[follower])
    if len(times) < len(rows):
        name = next(name for name in rows if name not in times)
        raise rows[name].wrong("dependencies", "calls that do not wait for this one in turn")
    return times


def _wait(other: Row, row: Row, rows: dict[str, Row]) -> tuple[str, float]:
    """The call that ``row`` waits for by its dependency ``other``, and the delay in seconds."""
    before = other.name("request_id")
    if before not in rows:
        raise other.wrong("request_id", "that of a line of this trace")
    trigger = other.fields.get("trigger")
    if trigger not in ("dispatch", "completion"):
        raise other.wrong("trigger", "'dispatch' or 'completion'")
    delay = other.seconds("delay_ms") if other.has("delay_ms") else 0.0
    is_own = rows[before].fields.get("session_id") == row.fields.get("session_id")
    return before, delay if is_own or trigger == "dispatch" else max(delay, _AT_LEAST)


def write(file: IO[str], ticks: Iterable[TraceTick], block_size: int | None) -> None:
    """Write one play, so that agents can share blocks. Its first call is the root on which the
    first call of every other agent depends. A call without an agent is a session of its own."""
    size = block_size or BLOCK_SIZE
    ids = Ids(size)
    source = {"format": "scalesim", "digest": "none"}
    header = {"schema": SCHEMA, "version": VERSION, "block_size": size, "hash_id_scope": "local",
              "source": source}  # fmt: skip
    file.write(json.dumps(header) + "\n")
    latest: dict[str, str] = {}
    start = 0.0
    for number, (time, call) in enumerate(in_order(ticks)):
        name = f"call-{number}"
        session = str(call.agent) if call.agent is not None else f"nobody {number}"
        waits = []
        if session in latest:
            waits = [_dependency(latest[session], "completion", 0, "sequence")]
        elif number:
            waits = [_dependency("call-0", "dispatch", milliseconds(time - start), "spawn")]
        else:
            start = time
        latest[session] = name
        line = {
            "request_id": name,
            "play_id": "trace",
            "session_id": session,
            "model": "any",
            "input_length": call.prompt_len,
            "output_length": call.output.length,
            "hash_ids": ids.of(call.prompt),
            "not_before_ms": milliseconds(time),
            "dependencies": waits,
        }
        file.write(json.dumps(line) + "\n")
    if not latest:
        raise TraceError("no calls to write")


def _dependency(name: str, trigger: str, delay: int | float, relation: str) -> dict[str, object]:
    return {"request_id": name, "trigger": trigger, "delay_ms": delay, "relation": relation}
