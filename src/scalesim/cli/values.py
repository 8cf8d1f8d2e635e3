"""What an option's value may be beside its Python type: each reads a word, and says what it wants.

They stand in ``Annotated[int, COUNT]`` or ``Annotated[int | None, COUNT]``. The parser puts the
option's name in front of what is said. What depends on another option is checked where the command
begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec

from scalesim.config import memory_bytes, parse_bytes

_MOST = 10**9


def _value(metavar: str, read: Callable[[str], Any]) -> PrimitiveConstructorSpec[Any]:
    """``read`` raises ``ValueError`` with what is wrong."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )


def _whole(least: int, most: int = _MOST) -> PrimitiveConstructorSpec[Any]:
    def read(word: str) -> int:
        try:
            found = int(word)
        except ValueError:  # also of a word of thousands of digits
            found = least - 1
        if not least <= found <= most:
            raise ValueError(f"{_cut(word)} must be a whole number, at least {least}, to {most}")
        return found

    return _value("INT", read)


def _real(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{_cut(word)} is no number") from None


def _share(*, zero: bool) -> PrimitiveConstructorSpec[Any]:
    def read(word: str) -> float:
        found = _real(word.removesuffix("%"))
        if word.endswith("%"):
            found /= 100.0
        if not (0.0 <= found <= 1.0 and (zero or found)):
            above = "from 0" if zero else "above 0"
            raise ValueError(f"{_cut(word)} must be a share {above} to 1, like 0.25 or 25%")
        return found

    return _value("SHARE", read)


def _positive(word: str) -> float:
    found = _real(word)
    if not 0.0 < found < math.inf:
        raise ValueError(f"{_cut(word)} must be a number above 0")
    return found


def _sigma(word: str) -> float:
    found = _real(word)
    if not 0.0 <= found <= 4.0:
        raise ValueError(f"{_cut(word)} must be a number from 0 to 4")
    return found


def _memory(parse: Callable[[str, str], int | None]) -> Callable[[str], str]:
    """Reads the word itself, for settings take it as it is."""

    def read(word: str) -> str:
        parse(word, "size")
        return word

    return read


def _cut(word: str) -> str:
    return word[:60] + "..." * (len(word) > 60) or "nothing"


COUNT = _whole(1)
FEW = _whole(1, 256)
MANY = _whole(1, 10**6)
MANY_OR_0 = _whole(0, 10**6)
WHOLE = _whole(0)
SEED = _whole(0, 2**63 - 1)
REAL = _value("FLOAT", _real)
SIGMA = _value("FLOAT", _sigma)
"""Of a lognormal distribution."""
POSITIVE = _value("FLOAT", _positive)
SHARE = _share(zero=False)
"""Above 0, to 1: ``0.25`` or ``25%``."""
SHARE_OR_0 = _share(zero=True)
MEMORY = _value("SIZE", _memory(parse_bytes))
"""An amount of memory, like ``20GB`` or ``512MiB``."""
MEMORY_OR_AUTO = _value("SIZE|auto", _memory(memory_bytes))
