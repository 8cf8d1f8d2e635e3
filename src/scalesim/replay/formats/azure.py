"""Azure's public traces of LLM inference: a CSV of times and token counts.

The traces have no users, sessions or prompts. So every call is without an agent and shares nothing:
no state can be reused, and all policies give the same result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from scalesim.errors import TraceError
from scalesim.replay.formats.rows import Row, Timed, in_order, lines, ticks_of
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)?")
_UNITS_A_SECOND = 10**7  # the resolution of the traces' times
_ORIGIN = datetime(2000, 1, 1)


def read(path: Path, block_size: int | None) -> list[TraceTick]:
    """Read ``path``; times are seconds since the first call. Raises ``TraceError``."""
    found = lines(path)
    header = tuple(name.strip() for name in next(found)[1].split(","))
    if header != COLUMNS:
        raise TraceError(f"{path} begins with {header!r}; it must begin with {','.join(COLUMNS)}")
    calls = []
    for number, (where, text) in enumerate(found):
        cells = [cell.strip() for cell in text.split(",")]
        if len(cells) != len(COLUMNS):
            raise TraceError(f"{where} has {len(cells)} cells; it must have {len(COLUMNS)}")
        numbers = [int(cell) if re.fullmatch(r"\d{1,18}", cell) else cell for cell in cells[1:]]
        row = Row(where, dict(zip(COLUMNS, [cells[0], *numbers], strict=True)))
        prompt = TracePiece(f"prompt {number}", row.whole("ContextTokens", 1))
        output = TracePiece(f"answer {number}", row.whole("GeneratedTokens", 1))
        calls.append((_units(row), TraceCall(None, (prompt,), output)))
    start = min((units for units, _ in calls), default=0)
    return ticks_of(Timed((units - start) / _UNITS_A_SECOND, call) for units, call in calls)


def _units(row: Row) -> int:
    match = _TIME.fullmatch(row.fields["TIMESTAMP"])
    try:
        assert match is not None
        date = datetime.fromisoformat(f"{match[1]} {match[2]}")
    except (AssertionError, ValueError):
        raise row.wrong("TIMESTAMP", "a time like 2023-11-16 18:15:46.6805900") from None
    fraction = (match[3] or "").ljust(9, "0")
    return (date - _ORIGIN) // timedelta(seconds=1) * _UNITS_A_SECOND + int(fraction) // 100


def write(file: IO[str], ticks: Iterable[TraceTick], block_size: int | None) -> None:
    """Write times and token counts only. Raises ``TraceError`` for times beyond the calendar."""
    file.write(",".join(COLUMNS) + "\n")
    for time, call in in_order(ticks):
        seconds, units = divmod(round(time * _UNITS_A_SECOND), _UNITS_A_SECOND)
        try:
            date = _ORIGIN + timedelta(seconds=seconds)
        except OverflowError:
            raise TraceError(
                f"time {time:g} s is past the year 9999; this format ends there"
            ) from None
        file.write(f"{date:%Y-%m-%d %H:%M:%S}.{units:07d},{call.prompt_len},{call.output.length}\n")
