"""Reading of files in the folder of a model or an adapter.

The folder is not trusted: only regular files are opened, none is read past a limit, and parsing
JSON costs a bounded amount of work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from scalesim.errors import ScaleSimError, WeightsError
from scalesim.regular_file import open_regular
from scalesim.strict_json import decode_utf8, parse_json

Json: TypeAlias = Mapping[str, Any]

MAX_JSON_BYTES = 64 << 20  # the index of a checkpoint of some hundred thousand tensors


def read_bytes(path: Path, max_bytes: int, error: type[ScaleSimError] = WeightsError) -> bytes:
    """The content of the regular file ``path``. Raises ``error`` if it cannot be read or holds more
    than ``max_bytes`` bytes."""
    with open_regular(path, error) as file:
        try:
            # A file whose stated size is too large is not read at all.
            content = (
                file.read(max_bytes + 1) if os.fstat(file.fileno()).st_size <= max_bytes else None
            )
        except OSError as cause:
            raise error(f"{path} cannot be read: {cause}") from cause
    if content is None or len(content) > max_bytes:
        raise error(
            f"{path} holds more than {max_bytes} bytes, the most that is read of such a file"
        )
    return content


def read_text(
    path: Path, max_bytes: int = MAX_JSON_BYTES, error: type[ScaleSimError] = WeightsError
) -> str:
    """``read_bytes`` decoded as UTF-8."""
    return decode_utf8(read_bytes(path, max_bytes, error), str(path), error)


def read_json(
    path: Path, max_bytes: int = MAX_JSON_BYTES, error: type[ScaleSimError] = WeightsError
) -> Json:
    """The object in the JSON file ``path``. Raises ``error`` if the file is missing, not regular,
    not JSON, not an object, nested deeper than 64, or has a key twice with different values."""
    if not path.exists():
        raise error(f"{path} is missing: a model is a folder in Hugging Face's layout")
    return json_object(read_bytes(path, max_bytes, error), str(path), error)


def json_object(content: bytes, name: str, error: type[ScaleSimError] = WeightsError) -> Json:
    """The object in the JSON ``content`` of a file that is called ``name``. Raises ``error`` as
    ``read_json``."""
    parsed = parse_json(decode_utf8(content, name, error), name, error, repeats=False)
    if not isinstance(parsed, dict):
        raise error(f"{name} holds a {type(parsed).__name__}, not an object")
    return parsed


def read_json_if_there(path: Path, error: type[ScaleSimError] = WeightsError) -> Json:
    """``read_json``; empty where there is no such file."""
    return read_json(path, error=error) if os.path.lexists(path) else {}
