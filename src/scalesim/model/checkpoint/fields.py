"""Typed access to the fields of an untrusted JSON object: each has a type and a range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scalesim.checks import shown
from scalesim.errors import ScaleSimError, UnsupportedModelError
from scalesim.model.checkpoint.files import Json

MOST_CHARS = 200  # of a name
MOST_WHOLE = 2**31 - 1  # positions, ids and sizes are stored as int32
_NEEDED: Any = object()


class MalformedError(UnsupportedModelError):
    """A field has a wrong type or is out of range: neither native nor hosted layers can run the
    model."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of ``raw``, an object that messages call ``where``.

    A field of another type or range than asked for raises ``error``, naming file, key, value and
    rule. ``default`` is the value of an absent field; without one, the field is required. A JSON
    ``null`` is refused, unless ``null=True`` says that it means the default, as in transformers.
    """

    where: str
    raw: Json
    error: type[ScaleSimError] = MalformedError

    def __contains__(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def whole(
        self, key: str, default: Any = _NEEDED, *, minimum: int = 1, maximum: int = MOST_WHOLE,
        null: bool = False,
    ) -> Any:  # fmt: skip
        """An integer from ``minimum`` to ``maximum``; JSON's ``true`` and ``4.0`` are refused."""
        value = self._given(key, default, null)
        if value is default:
            return default
        if type(value) is not int or not minimum <= value <= maximum:
            kind = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
            raise self.wrong(
                key, value, kind + (f", at most {maximum}" if maximum < MOST_WHOLE else "")
            )
        return value

    def number(
        self, key: str, default: Any = _NEEDED, *, above: float = -math.inf, minimum: float = -1e30,
        maximum: float = 1e30, null: bool = False,
    ) -> Any:  # fmt: skip
        """A finite float above ``above``, from ``minimum`` to ``maximum``; integers are
        accepted."""
        value = self._given(key, default, null)
        if value is default:
            return default
        if type(value) not in (int, float) or not (above < value and minimum <= value <= maximum):
            rule = f"above {above:g}" if above > -math.inf else f"of at least {minimum:g}"
            raise self.wrong(key, value, f"a number {rule}, at most {maximum:g}")
        return float(value)

    def flag(self, key: str, default: bool = False, *, null: bool = False) -> bool:
        value = self._given(key, default, null)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def name(self, key: str, default: Any = _NEEDED, *, null: bool = False) -> Any:
        """A short string."""
        value = self._given(key, default, null)
        if value is not default and not _is_name(value):
            raise self.wrong(key, value, f"a string of at most {MOST_CHARS} characters")
        return value

    def names(self, key: str) -> list[str]:
        """A list of short strings; empty where it is absent or null."""
        value = self._given(key, [], True)
        if not isinstance(value, list) or not all(map(_is_name, value)):
            raise self.wrong(key, value, f"a list of strings of at most {MOST_CHARS} characters")
        return value

    def numbers(self, key: str, *, above: float) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self._given(key, _NEEDED, False)
        if not isinstance(value, list):
            raise self.wrong(key, value, "a list of numbers")
        parts = self.items(key, value)
        return tuple(parts.number(name, above=above) for name in parts.raw)

    def wholes(self, key: str) -> tuple[int, ...]:
        """One integer from 0 on, or a list of them; empty where it is absent or null."""
        value = self._given(key, [], True)
        listed = value if isinstance(value, list) else [value]
        if not all(type(item) is int and 0 <= item <= MOST_WHOLE for item in listed):
            raise self.wrong(key, value, f"integers from 0 to {MOST_WHOLE}")
        return tuple(listed)

    def table(self, key: str) -> Fields:
        """A nested object; empty where it is absent or null."""
        value = self._given(key, {}, True)
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return Fields(f"{self.where}: {key}", value, self.error)

    def items(self, key: str, values: Sequence[Any]) -> Fields:
        """The items of the list at ``key``, as fields named by their index."""
        places = {str(i): value for i, value in enumerate(values)}
        return Fields(f"{self.where}: {key}", places, self.error)

    def wrong(self, key: str, value: object, rule: str) -> ScaleSimError:
        written = "null" if value is None else shown(value)
        return self.error(f"{self.where}: {key} is {written}; must be {rule}")

    def _given(self, key: str, default: Any, null: bool) -> Any:
        value = self.raw.get(key)
        if value is None and (null or key not in self.raw):
            if default is _NEEDED:
                raise self.error(f"{self.where}: {key} is missing")
            return default
        return value


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MOST_CHARS
