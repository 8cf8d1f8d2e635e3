"""Traces as files, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scalesim.trace.file import TraceWriter
from scalesim.trace.trace import TraceTick


def write_trace(path: Path, ticks: Iterable[TraceTick]) -> None:
    with path.open("w", encoding="utf-8") as file:
        TraceWriter(file).ticks(ticks)
