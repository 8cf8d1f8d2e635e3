"""Trace formats: the table of readers and writers, and detection. See docs/traces.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scalesim.checks import shown
from scalesim.errors import ConfigError, TraceError
from scalesim.replay.formats import agentic, applied_compute, azure, dynamo, mooncake, town
from scalesim.replay.formats.rows import Row, in_rounds, lines
from scalesim.trace.file import TraceWriter, read_trace
from scalesim.trace.records import MAX_NUMBER
from scalesim.trace.trace import TraceTick

ReadTrace = Callable[[Path, "int | None"], "list[TraceTick]"]
WriteTrace = Callable[[IO[str], Iterable[TraceTick], "int | None"], None]


@dataclass(frozen=True, slots=True)
class Format:
    """A trace format. ``in_seconds``: times are in seconds, not in ticks of a simulation.
    ``blocks``: prompts are given as ids of blocks, whose size ``--block-size`` can set. ``write``
    is ``None`` for a format that is only read."""

    name: str
    read: ReadTrace
    write: WriteTrace | None
    in_seconds: bool = True
    blocks: bool = False


def _read_own(path: Path, block_size: int | None) -> list[TraceTick]:
    return list(read_trace(path))


def _write_own(file: IO[str], ticks: Iterable[TraceTick], block_size: int | None) -> None:
    TraceWriter(file).ticks(ticks)


FORMATS = {
    form.name: form
    for form in (
        Format("scalesim", _read_own, _write_own, in_seconds=False),
        Format("mooncake", mooncake.read, mooncake.write, blocks=True),
        Format("mooncake-delta", mooncake.read_delta, None, blocks=True),
        Format("dynamo", dynamo.read, dynamo.write, blocks=True),
        Format("agentic-mooncake", agentic.read, agentic.write, blocks=True),
        Format("applied-compute", applied_compute.read, None),
        Format("azure", azure.read, azure.write),
        Format("town", town.read, None, in_seconds=False),
    )
}


def detect(path: Path) -> Format:
    """The format of ``path``, from its first line. ``mooncake-delta`` is never detected, because
    its lines look like those of ``mooncake``. Raises ``TraceError``."""
    first = next(lines(path), None)
    if first is None:
        raise TraceError(f"{path} is empty; give a trace")
    where, text = first
    if text.split(",")[0].strip() == azure.COLUMNS[0]:
        return FORMATS["azure"]
    try:
        keys = Row.parsed(text, where).fields
    except TraceError:
        keys = {}
    for name, is_it in (
        ("scalesim", "scalesim_trace" in keys),
        ("agentic-mooncake", keys.get("schema") == agentic.SCHEMA),
        ("dynamo", keys.get("schema") == dynamo.SCHEMA or keys.keys() & {"event_type", "event"}),
        ("applied-compute", "input_prompt_length" in keys),
        ("town", "kind" in keys and "step" in keys),
        ("mooncake", keys.keys() & {"hash_ids", "input_length", "input_tokens"}),
    ):
        if is_it:
            return FORMATS[name]
    raise TraceError(f"{where} is in no known format; --format can name one: {_names()}")


def format_named(name: str, path: Path) -> Format:
    """The format called ``name``, or for ``auto`` the detected format of ``path``. Raises
    ``ConfigError``, ``TraceError``."""
    if name == "auto":
        return detect(path)
    if name not in FORMATS:
        raise ConfigError(f"unknown format {name!r}; there are: auto, {_names()}")
    return FORMATS[name]


def format_to_write(name: str, block_size: int | None = None) -> Format:
    """The format called ``name``, for writing with blocks of ``block_size``. Raises ``ConfigError``
    if that is not possible."""
    form = FORMATS.get(name)
    if form is None or form.write is None:
        raise _not_written(name)
    if block_size is not None and not form.blocks:
        raise ConfigError(f"--out-block-size {block_size}: traces in {form.name} have no blocks")
    return form


def read(path: Path, form: Format, block_size: int | None = None) -> list[TraceTick]:
    """All ticks of ``path``, one for each time. Raises ``TraceError``, ``ConfigError``."""
    if block_size is not None and not form.blocks:
        raise ConfigError(f"--block-size {block_size}: traces in {form.name} have no blocks")
    if block_size is not None and not 1 <= block_size <= dynamo.MAX_BLOCK:
        raise ConfigError(f"--block-size {block_size}; it must be 1 to {dynamo.MAX_BLOCK} tokens")
    if next(lines(path), None) is None:
        raise TraceError(f"{path} is empty; give a trace")
    ticks = form.read(path, block_size)
    if not any(tick.calls for tick in ticks):
        raise TraceError(f"{path} has no calls, read as {form.name}; --format names another format")
    return ticks


def write(
    path: Path, ticks: Iterable[TraceTick], form: Format, block_size: int | None = None
) -> None:
    """Write the new file ``path`` atomically. Raises ``TraceError``, ``ConfigError``."""
    if form.write is None:
        raise _not_written(form.name)
    if path.exists():
        raise ConfigError(f"{path} is there already; remove it or name another file")
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            form.write(file, ticks, block_size)
        os.replace(part, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def _not_written(name: str) -> ConfigError:
    written = ", ".join(name_ for name_, form in FORMATS.items() if form.write is not None)
    return ConfigError(f"{shown(name)} is no format that can be written; there are: {written}")


def gathered(ticks: Iterable[TraceTick], seconds: float) -> list[TraceTick]:
    """Ticks of a simulation from times in seconds: each interval of ``seconds`` becomes one tick,
    numbered from 0. An agent's calls of different times get successive rounds. Raises
    ``ConfigError`` if a tick's number is too large for a float."""
    found: dict[int, list[TraceTick]] = {}
    for tick in ticks:
        if tick.time > seconds * MAX_NUMBER:
            raise ConfigError(f"--tick {seconds}; the trace lasts {tick.time:g} s, too many ticks")
        found.setdefault(int(tick.time // seconds), []).append(tick)
    return [
        TraceTick(
            float(number),
            [hint for tick in together for hint in tick.hints],
            in_rounds([tick.calls for tick in together]),
        )
        for number, together in sorted(found.items())
    ]


def _names() -> str:
    return ", ".join(FORMATS)
