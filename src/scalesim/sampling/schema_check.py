"""Checks whether a finished text keeps its JSON schema, exactly and in bounded time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NoReturn

from scalesim.sampling.json_schema import COUNTS, MAX_DEPTH, follow, steps


@dataclass(frozen=True)
class Number:
    """A number of a text: its exact value as written, and the double that a reader may make of it.
    ``is_whole``: the number is written without a point or an exponent, so all readers read it
    exactly."""

    exact: Decimal
    double: float
    is_whole: bool = False

    @property
    def readings(self) -> tuple[Decimal, ...]:
        return (self.exact,) if self.is_whole else (self.exact, Decimal(self.double))


class _Unkept(Exception):
    """The text does not keep its schema."""


class _TooMuch(Exception):
    """The check needs more work than is allowed."""


class SchemaCheck:
    """Checks finished texts against ``schema``. ``max_checks`` bounds the work for a text, in pairs
    of a schema and a value.

    A number must keep the schema as written and as a double. Patterns are not checked here: the
    grammar's automaton has checked them.
    """

    def __init__(self, schema: Mapping[str, Any], max_checks: int) -> None:
        self._schema, self._max_checks = schema, max_checks

    def error(self, text: str) -> str | None:
        """The reason why ``text`` does not keep the schema; ``None`` if it does."""
        run = _SchemaCheck(self._schema, self._max_checks)
        try:
            run.keep(self._schema, read(text), "$", 0)
        except (_Unkept, ValueError) as error:
            return str(error)
        except (_TooMuch, RecursionError):
            return (
                f"checking it takes more than {self._max_checks} steps (StructureConfig.max_checks)"
            )
        return None


def read(text: str) -> Any:
    """The value of a JSON text; numbers as ``Number``. Raises ``ValueError``."""
    return json.loads(
        text, parse_int=_whole, parse_float=_number, parse_constant=_no_constant
    )  # fmt: skip


def _whole(text: str) -> Number:
    return Number(Decimal(text), float(text), is_whole=True)


def _number(text: str) -> Number:
    double = float(text)
    try:
        return Number(Decimal(text), double)
    except InvalidOperation:  # an exponent beyond the type's own
        return Number(Decimal(double), double)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _same(value: Any, literal: Any) -> bool:
    """Whether a value and a literal are equal in JSON: 1 is 1.0, true is not 1."""
    if isinstance(value, Number):
        if isinstance(literal, bool) or not isinstance(literal, (int, float)):
            return False
        return value.double == literal
    if isinstance(value, dict):
        return (
            isinstance(literal, Mapping)
            and value.keys() == literal.keys()
            and all(_same(part, literal[name]) for name, part in value.items())
        )
    if isinstance(value, list):
        return (
            isinstance(literal, (list, tuple))
            and len(value) == len(literal)
            and all(map(_same, value, literal))
        )
    return type(value) is type(literal) and bool(value == literal)


TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "number": lambda value: isinstance(value, Number),
    "integer": lambda value: (
        isinstance(value, Number) and (value.is_whole or value.double.is_integer())
    ),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def _check_time(text: str) -> None:
    """Raise ``ValueError`` for a leap second, which few readers accept."""
    if ":60" in text[:8]:
        raise ValueError(f"{text!r} has a leap second")


def _check_date_time(text: str) -> None:
    date.fromisoformat(text[:10])
    _check_time(text[11:])


FORMATS: dict[str, Callable[[str], object]] = {
    "date": date.fromisoformat,
    "time": _check_time,
    "date-time": _check_date_time,
    "ipv4": IPv4Address,
    "ipv6": IPv6Address,
}
MEASURED = {"Length": str, "Items": list, "Properties": dict}


class _SchemaCheck:
    """The check of a single text."""

    def __init__(self, root: Mapping[str, Any], max_checks: int) -> None:
        self._root, self._left = root, max_checks

    def keep(self, schema: Any, value: Any, place: str, depth: int) -> None:
        """Raise ``_Unkept`` unless ``value`` keeps ``schema``."""
        self._left -= 1
        if self._left < 0 or depth > 4 * MAX_DEPTH:
            raise _TooMuch
        if schema is True:
            return
        if not isinstance(schema, Mapping):
            raise _Unkept(f"{place} may not be there")
        for name, rule in schema.items():
            reason = self._broken(name, rule, schema, value, place, depth + 1)
            if reason is not None:
                raise _Unkept(f"{place} breaks {name}: {reason}")

    def _broken(
        self, name: str, rule: Any, schema: Mapping[str, Any], value: Any, place: str, depth: int
    ) -> str | None:
        """The reason why ``value`` breaks the keyword ``name``; ``None`` if it keeps it."""
        match name:
            case "type":
                types = [rule] if isinstance(rule, str) else rule
                return None if any(TYPES[kind](value) for kind in types) else f"no {rule}"
            case "const":
                return None if _same(value, rule) else "another value"
            case "enum":
                self._left -= len(rule)
                return (
                    None if any(_same(value, literal) for literal in rule) else "none of its values"
                )
            case "$ref":
                self.keep(follow(self._root, steps(rule)), value, place, depth)
            case "allOf":
                for part in rule:
                    self.keep(part, value, place, depth)
            case "anyOf" | "oneOf":
                count = self._count(rule, value, place, depth, 1 if name == "anyOf" else 2)
                return None if count == 1 else f"{count or 'none'} of its schemas fit"
            case "minimum" | "maximum" | "multipleOf" if isinstance(value, Number):
                return _off(name, rule, value)
            case "format" if isinstance(value, str) and rule in FORMATS:
                FORMATS[rule](value)  # raises ValueError
            case "required" if isinstance(value, dict):
                missing = [key for key in rule if key not in value]
                return f"{missing[0]!r} is missing" if missing else None
            case _ if name in COUNTS:
                return _miscounted(name, rule, value)
        for child, within, where in self._children(name, rule, schema, value, place):
            self.keep(child, within, where, depth)
        return None

    def _count(self, schemas: Any, value: Any, place: str, depth: int, maximum: int) -> int:
        """The number of ``schemas`` that ``value`` keeps; counting stops at ``maximum``."""
        count = 0
        for schema in schemas:
            try:
                self.keep(schema, value, place, depth)
                count += 1
            except (_Unkept, ValueError):
                continue
            if count == maximum:
                break
        return count

    def _children(
        self, name: str, rule: Any, schema: Mapping[str, Any], value: Any, place: str
    ) -> Iterator[tuple[Any, Any, str]]:
        """The schemas that the keyword ``name`` gives for parts of ``value``: tuples of a schema, a
        part and its place."""
        if isinstance(value, dict):
            if name == "properties":
                for key in value.keys() & rule.keys():
                    yield rule[key], value[key], f"{place}.{key}"
            elif name == "additionalProperties" and not schema.get("patternProperties"):
                for key in value.keys() - schema.get("properties", {}).keys():
                    yield rule, value[key], f"{place}.{key}"
        elif isinstance(value, list):
            first = schema.get("prefixItems")
            if first is None and isinstance(schema.get("items"), list):
                first = schema["items"]
            start = len(first or ())
            if name == "prefixItems" or (name == "items" and isinstance(rule, list)):
                for index, (child, part) in enumerate(zip(rule, value, strict=False)):
                    yield child, part, f"{place}[{index}]"
            elif name == "items" or (
                name == "additionalItems" and isinstance(schema.get("items"), list)
            ):
                for index in range(start, len(value)):
                    yield rule, value[index], f"{place}[{index}]"


def _off(name: str, rule: Any, value: Number) -> str | None:
    if not value.is_whole and not math.isfinite(value.double):
        return f"{value.exact} is past every double"
    bound = Decimal(rule)
    for reading in value.readings:
        if name == "multipleOf":
            wrong = reading % bound != 0 if abs(reading) < 10**27 else int(reading) % rule != 0
        else:
            wrong = reading < bound if name == "minimum" else reading > bound
        if wrong:
            return f"{value.exact} against {rule}"
    return None


def _miscounted(name: str, rule: Any, value: Any) -> str | None:
    if not isinstance(value, MEASURED[name[3:]]):
        return None
    count = len(value)
    wrong = count < rule if name.startswith("min") else count > rule
    return f"{count} against {rule}" if wrong else None
