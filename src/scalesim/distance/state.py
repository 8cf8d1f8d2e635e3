"""PlainState as plain values: what a snapshot keeps of an object, and how it is put back.

An object names the attributes that make up its state. Values that were kept are put back only where
they are of the attribute's own kind: a snapshot of another release leaves what it does not know.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

PlainState: TypeAlias = "dict[str, Any]"
"""``None``, truth values, numbers, text, bytes, lists, and arrays of numbers, by name."""


def taken(thing: object, *names: str) -> PlainState:
    """Copies of the attributes ``names`` of ``thing``: numbers, texts, lists, deques, arrays."""
    return {name: _copied(getattr(thing, name)) for name in names}


def put(thing: object, state: Mapping[str, Any], *names: str) -> None:
    """Set the attributes ``names`` of ``thing`` to the values that ``taken`` gave. Raises
    ``ValueError`` for a value of another kind than the attribute's, before any is set."""
    values = {name: _like(name, getattr(thing, name), state[name]) for name in names}
    for name, value in values.items():
        setattr(thing, name, value)


def _copied(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, array):
        return np.array(value)
    return list(value) if isinstance(value, (list, deque)) else value


def _like(name: str, now: Any, value: Any) -> Any:
    """``value`` in the form of ``now``."""
    if isinstance(now, np.ndarray):
        if not isinstance(value, np.ndarray) or value.dtype != now.dtype or value.ndim != now.ndim:
            raise ValueError(f"{name} is not an array of {now.dtype} in {now.ndim} dimensions")
        return value.copy()
    if isinstance(now, array):
        return array(now.typecode, np.asarray(value, now.typecode).tobytes())
    if isinstance(now, deque):
        return deque(map(tuple, value), now.maxlen)
    if isinstance(now, bool) != isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.80}, and was {now!r:.80}")
    if isinstance(now, float):
        return float(value)
    if not isinstance(value, type(now)):
        raise ValueError(f"{name} is {value!r:.80}, and was {now!r:.80}")
    return list(value) if isinstance(value, list) else value
