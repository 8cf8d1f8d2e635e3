"""The log of a town's day: one action or chat per line, with its tick and agents.

The log has no prompts. An action is one call, a chat one call for each utterance by its speaker.
Lengths are those of workload W3, but an utterance has one token per character.
"""

from __future__ import annotations

from pathlib import Path

from scalesim.replay.formats.rows import Row, Timed, rows, ticks_of
from scalesim.replay.workloads import WORKLOADS
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick

MAX_TICKS = 10**9
_SIZES = WORKLOADS["w3"].knobs


def read(path: Path, block_size: int | None) -> list[TraceTick]:
    """Read ``path``; times are ticks. Raises ``TraceError``."""
    calls: list[Timed] = []

    def call(time: int, agent: str, said: int) -> None:
        number = len(calls)
        prompt = (
            TracePiece("town", _SIZES.shared),
            TracePiece(f"{agent} self", _SIZES.private),
            TracePiece(f"news {number}", _SIZES.new),
        )
        calls.append(
            Timed(float(time), TraceCall(agent, prompt, TracePiece(f"answer {number}", said)))
        )

    for row in rows(path):
        time = row.whole("step", 0, MAX_TICKS)
        kind = row.fields.get("kind")
        if kind == "action":
            call(time, row.name("agent"), _SIZES.output)
        elif kind == "chat":
            for turn in row.items("turns"):
                if not isinstance(turn, list) or len(turn) != 2:
                    raise row.wrong("turns", "a list of [speaker, characters]")
                said = Row(f"{row.where}: turns", {"speaker": turn[0], "characters": turn[1]})
                call(time, said.name("speaker"), max(1, said.whole("characters")))
        else:
            raise row.wrong("kind", "'action' or 'chat'")
    return ticks_of(calls)
