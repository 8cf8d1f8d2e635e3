"""Value parsers of options: each converts a word, and raises with the rule that the word breaks.

They are used as ``Annotated[int, COUNT]`` or ``Annotated[int | None, COUNT]``. The parser puts the
option's name before the message. Rules between several options are checked when the command begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec

from scalesim.config import memory_bytes, parse_bytes

_MOST = 10**9


def _value(metavar: str, read: Callable[[str], Any]) -> PrimitiveConstructorSpec[Any]:
    """A value read by ``read``, which raises ``ValueError`` with the broken rule."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )


def _whole(minimum: int, maximum: int = _MOST) -> PrimitiveConstructorSpec[Any]:
    def read(word: str) -> int:
        try:
            found = int(word)
        except ValueError:  # also of a word of thousands of digits
            found = minimum - 1
        if not minimum <= found <= maximum:
            raise ValueError(
                f"{_cut(word)} must be a whole number, at least {minimum}, to {maximum}"
            )
        return found

    return _value("INT", read)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{_cut(word)} is no number") from None


def _real(
    rule: str, is_right: Callable[[float], bool] = lambda found: True
) -> PrimitiveConstructorSpec[Any]:
    def read(word: str) -> float:
        found = _number(word)
        if not is_right(found):
            raise ValueError(f"{_cut(word)} must be {rule}")
        return found

    return _value("FLOAT", read)


def _share(*, zero: bool) -> PrimitiveConstructorSpec[Any]:
    def read(word: str) -> float:
        found = _number(word.removesuffix("%"))
        if word.endswith("%"):
            found /= 100.0
        if not (0.0 <= found <= 1.0 and (zero or found)):
            above = "from 0" if zero else "above 0"
            raise ValueError(f"{_cut(word)} must be a share {above} to 1, like 0.25 or 25%")
        return found

    return _value("SHARE", read)


def _memory(metavar: str, parse: Callable[[str, str], int | None]) -> PrimitiveConstructorSpec[Any]:
    """The word itself, if it can be parsed: settings accept it unparsed."""

    def read(word: str) -> str:
        parse(word, "size")
        return word

    return _value(metavar, read)


def _cut(word: str) -> str:
    return word[:60] + "..." * (len(word) > 60) or "nothing"


COUNT = _whole(1)
FEW = _whole(1, 256)
PORT = _whole(0, 65535)
MANY = _whole(1, 10**6)
MANY_OR_0 = _whole(0, 10**6)
WHOLE = _whole(0)
SEED = _whole(0, 2**63 - 1)
REAL = _real("a number")
SIGMA = _real("a number from 0 to 4", lambda found: 0.0 <= found <= 4.0)
"""Of a lognormal distribution."""
POSITIVE = _real("a number above 0", lambda found: 0.0 < found < math.inf)
SHARE = _share(zero=False)
"""Above 0, to 1: ``0.25`` or ``25%``."""
SHARE_OR_0 = _share(zero=True)
MEMORY = _memory("SIZE", parse_bytes)
"""An amount of memory, like ``20GB`` or ``512MiB``."""
MEMORY_OR_AUTO = _memory("SIZE|auto", memory_bytes)
