"""JSON from strangers, parsed within limits: what no format of ours needs is refused."""

from __future__ import annotations

import json
from typing import Any

from scalesim.errors import ScaleSimError

MAX_DEPTH = 64


def parse_json(text: str, where: str, error: type[ScaleSimError], *, repeats: bool = True) -> Any:
    """The value of ``text``, which messages call ``where``. Raises ``error`` for what is no JSON,
    has a number of thousands of digits, or is nested deeper than ``MAX_DEPTH``; unless ``repeats``,
    also where an object has one key twice with different values (slower: for single documents)."""
    try:
        value = json.loads(text, object_pairs_hook=None if repeats else _unique)
    except RecursionError:
        raise error(f"{where} is nested deeper than {MAX_DEPTH}") from None
    except ValueError as cause:  # also of integers with thousands of digits
        raise error(f"{where} is not JSON: {cause!s:.200}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and not is_flat(value):
        raise error(f"{where} is nested deeper than {MAX_DEPTH}")
    return value


def decode_utf8(raw: bytes, where: str, error: type[ScaleSimError]) -> str:
    """Raises ``error`` for what is no UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise error(f"{where} is not UTF-8, at byte {cause.start}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen and seen[key] != value:
                raise ValueError(f"key {key[:80]!r} stands twice, with different values")
            seen[key] = value
    return table


def is_flat(value: Any) -> bool:
    """Whether ``value`` is nested no deeper than ``MAX_DEPTH``."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return True
    return False
