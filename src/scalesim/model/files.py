"""Opens what a model's or an adapter's folder holds. The folder comes from strangers: only regular
files are opened, none is read past a limit, and JSON of any shape costs a bounded amount of work.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from scalesim.errors import ScaleSimError, WeightsError

Json: TypeAlias = Mapping[str, Any]

MAX_JSON_BYTES = 64 << 20  # the index of a checkpoint of some hundred thousand tensors
MAX_DEPTH = 64
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path, error: type[ScaleSimError] = WeightsError) -> os.stat_result:
    """Raise unless ``path`` (links followed) is a regular file: reading a FIFO or a device waits,
    or never ends."""
    try:
        found = os.stat(path)
    except FileNotFoundError as cause:
        raise error(f"{path} is missing") from cause
    except (OSError, ValueError) as cause:  # ValueError: a name that no file can have
        raise error(f"{path!s:.200} cannot be opened: {cause!s:.200}") from cause
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise error(f"{path} is {kind}; only regular files are read")
    return found


def read_bytes(path: Path, most: int, error: type[ScaleSimError] = WeightsError) -> bytes:
    """What the regular file ``path`` holds. Raises ``error`` past ``most`` bytes."""
    check_regular(path, error)
    try:
        # Not blocking: the file may have become a FIFO since.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise error(f"{path} is not a regular file any more")
            content = file.read(most + 1) if found.st_size <= most else None
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause}") from cause
    if content is None or len(content) > most:
        raise error(f"{path} holds more than {most} bytes, the most that is read of such a file")
    return content


def read_text(
    path: Path, most: int = MAX_JSON_BYTES, error: type[ScaleSimError] = WeightsError
) -> str:
    """The same, as UTF-8."""
    try:
        return read_bytes(path, most, error).decode()
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not UTF-8: {cause}") from cause


def read_json(
    path: Path, most: int = MAX_JSON_BYTES, error: type[ScaleSimError] = WeightsError
) -> Json:
    """The object in the JSON file ``path``. Raises ``error`` if it is missing, no regular file, not
    JSON, no object, nested deeper than 64, or names one key twice with different values."""
    if not path.exists():
        raise error(f"{path} is missing: a model is a folder in Hugging Face's layout")
    text = read_text(path, most, error)
    try:
        parsed = json.loads(text, object_pairs_hook=_unique)
        _check_depth(parsed)
    except RecursionError as cause:
        raise error(f"{path} is nested deeper than {MAX_DEPTH}") from cause
    except ValueError as cause:
        raise error(f"{path} is not JSON: {cause!s:.200}") from cause
    if not isinstance(parsed, dict):
        raise error(f"{path} holds a {type(parsed).__name__}, not an object")
    return parsed


def read_json_if_there(
    path: Path, most: int = MAX_JSON_BYTES, error: type[ScaleSimError] = WeightsError
) -> Json:
    """``read_json``; empty where there is no such file."""
    return read_json(path, most, error) if os.path.lexists(path) else {}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen and seen[key] != value:
                raise ValueError(f"key {key[:80]!r} stands twice, with different values")
            seen[key] = value
    return table


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise RecursionError
