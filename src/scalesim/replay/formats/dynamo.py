"""The format ``dynamo.request.trace.v1`` of NVIDIA Dynamo's request tracing, one event per line.

Each ``request_end`` event is a call; other events are skipped. Sessions are agents. Dependencies on
tools and parents are not read: they show in the times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from scalesim.errors import TraceError
from scalesim.replay.formats.blocks import Ids, pieces_of
from scalesim.replay.formats.mooncake import milliseconds
from scalesim.replay.formats.rows import MAX_SECONDS, Row, Timed, in_order, rows, ticks_of
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick

SCHEMA = "dynamo.request.trace.v1"
BLOCK_SIZE = 64
MAX_BLOCK = 1 << 20


def read(path: Path, block_size: int | None) -> list[TraceTick]:
    """Read ``path``. The trace states its own block size, which ``block_size`` must equal if it is
    given. Raises ``TraceError``."""
    calls: list[Timed] = []
    size = block_size
    for row in rows(path):
        if isinstance(row.fields.get("event"), dict):  # some sinks wrap the event
            row = row.row("event")
        if row.fields.get("event_type") != "request_end":
            continue
        if row.fields.get("schema") != SCHEMA:
            raise row.wrong("schema", f"{SCHEMA!r}")
        request = row.row("request")
        replay = request.row("replay")
        stated = replay.whole("trace_block_size", 1, MAX_BLOCK)
        if size is not None and stated != size:
            raise replay.wrong("trace_block_size", f"{size}, as before or as --block-size says")
        size = stated
        prompt = pieces_of(replay, "input_length", "input_sequence_hashes", size)
        agent = row.row("agent_context").name("session_id") if row.has("agent_context") else None
        output = TracePiece(f"answer {len(calls)}", request.whole("output_tokens", 1))
        calls.append(Timed(_received(row, request), TraceCall(agent, prompt, output)))
    if len({timed.call.agent is None for timed in calls}) > 1:
        raise TraceError(f"{path}: some calls have an agent_context and others none; all or none")
    start = min((call.time for call in calls), default=0.0)
    return ticks_of(Timed(round(timed.time - start, 6), timed.call) for timed in calls)


def _received(row: Row, request: Row) -> float:
    """The time at which the request was received, in seconds since 1970."""
    if request.has("request_received_ms"):
        return request.seconds("request_received_ms")
    ended, took = row.seconds("event_time_unix_ms"), request.seconds("total_time_ms")
    if took > ended:
        raise request.wrong("total_time_ms", "no more than event_time_unix_ms")
    return ended - took


def write(file: IO[str], ticks: Iterable[TraceTick], block_size: int | None) -> None:
    """Write the calls with a duration of 0; times begin at 0. Raises ``TraceError`` if some calls
    have an agent and others none."""
    size = block_size or BLOCK_SIZE
    ids, has_agents = Ids(size), set()
    for number, (time, call) in enumerate(in_order(ticks)):
        has_agents.add(call.agent is not None)
        if len(has_agents) > 1:
            raise TraceError(f"call {number}: {SCHEMA} has agents for all calls, or for none")
        received_ms = milliseconds(min(time, MAX_SECONDS))
        line: dict[str, object] = {
            "schema": SCHEMA,
            "event_type": "request_end",
            "event_time_unix_ms": received_ms,
        }
        if call.agent is not None:
            line["agent_context"] = {"session_id": str(call.agent)}
        line["request"] = {
            "request_id": f"call-{number}",
            "output_tokens": call.output.length,
            "request_received_ms": received_ms,
            "total_time_ms": 0,
            "replay": {
                "trace_block_size": size,
                "input_length": call.prompt_len,
                "input_sequence_hashes": ids.of(call.prompt),
            },
        }
        file.write(json.dumps(line) + "\n")
