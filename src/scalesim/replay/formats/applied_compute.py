"""Applied Compute's agentic workloads: a session of tool calls per line, without arrival times.

All sessions begin at time 0. The prompt of each call is all earlier text of its session with the
tools' outputs; sessions share nothing.
"""

from __future__ import annotations

from pathlib import Path

from scalesim.errors import TraceError
from scalesim.replay.formats.rows import (
    MAX_SECONDS,
    MAX_TOKENS,
    MAX_TURNS,
    Row,
    Timed,
    rows,
    ticks_of,
)
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick

_LISTS = ("assistant_response_length", "tool_call_output_length", "tool_call_latency")


def read(path: Path, block_size: int | None) -> list[TraceTick]:
    """Read ``path``. Raises ``TraceError``."""
    calls: list[Timed] = []
    for number, row in enumerate(rows(path)):
        calls += _session(row, f"session {number}")
    return ticks_of(calls)


def _session(row: Row, agent: str) -> list[Timed]:
    num_turns = row.whole("num_turns", 0, MAX_TURNS)
    for name in _LISTS:
        if len(row.items(name)) != num_turns:
            raise row.wrong(name, f"a list of {num_turns}, as num_turns says")
    said = [*row.wholes(_LISTS[0], 1), row.whole("final_assistant_response_length", 1)]
    tools = row.wholes(_LISTS[1])
    waits = [Row(row.where, {_LISTS[2]: wait}).number(_LISTS[2], MAX_SECONDS)
             for wait in row.items(_LISTS[2])]  # fmt: skip
    prompt = (TracePiece(f"{agent} prompt", row.whole("input_prompt_length", 1)),)
    total = prompt[0].length + sum(said) + sum(tools)
    if total > MAX_TOKENS:
        raise TraceError(f"{row.where}: {total} tokens in all; a session may have {MAX_TOKENS}")
    time, calls = 0.0, []
    for index, length in enumerate(said):
        answer = TracePiece(f"{agent} answer {index}", length)
        calls.append(Timed(time, TraceCall(agent, prompt, answer)))
        if index < num_turns:
            given = (TracePiece(f"{agent} tool {index}", tools[index]),) if tools[index] else ()
            prompt = (*prompt, answer, *given)
            time = min(round(time + waits[index], 6), MAX_SECONDS)
    return calls
