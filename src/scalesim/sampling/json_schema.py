"""Narrows a JSON schema before it is compiled, or refuses it.

A keyword that llguidance ignores, rounds or reads unlike a validator is refused, or replaced by a
narrower rule that all readers read alike. ``schema_check`` checks the finished text. Neither module
depends on how llguidance reads the schema, so a mistake of the grammar ends a text with an error.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, NoReturn
from urllib.parse import unquote

from scalesim.checks import shown
from scalesim.errors import StructureError

MAX_WHOLE = 2**53
"""All readers of JSON read whole numbers up to this one alike."""
MAX_MULTIPLE = 2**32 - 1
NEAREST = 1e-15
"""The bound that stands for 0 where 0 itself is excluded."""
UP, DOWN = Context(prec=15, rounding=ROUND_CEILING), Context(prec=15, rounding=ROUND_FLOOR)
"""All readers read a double of 15 digits as it is written."""
MAX_DEPTH = 200
"""Of a schema, and of the references followed for a text."""

DRAFTS = frozenset(
    f"{address}/schema"
    for address in (
        "https://json-schema.org/draft/2020-12",
        "https://json-schema.org/draft/2019-09",
        "http://json-schema.org/draft-07",
        "http://json-schema.org/draft-06",
        "http://json-schema.org/draft-04",
    )
)
SCHEMAS = frozenset(
    {"items", "additionalItems", "additionalProperties", "anyOf", "oneOf", "allOf", "prefixItems"}
)
"""Keywords whose value is a schema, or a list of them."""
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
COUNTS = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
)
KEPT = (
    SCHEMAS | NAMED | BOUNDS | COUNTS
    | {"$ref", "type", "const", "enum", "required", "pattern", "format", "multipleOf"}
)  # fmt: skip
"""All keywords that constrain a text and are kept."""
REFUSED = frozenset(
    {
        "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems",
        "propertyNames", "dependencies", "dependentRequired", "dependentSchemas",
        "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef",
        "extends", "disallow", "divisibleBy", "x-guidance",
    }
)  # fmt: skip
"""All keywords of any draft that constrain a text and cannot be kept, and ``x-guidance``, which
would change how the schema is read. Other keywords are annotations: they constrain nothing."""


def kept_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """``schema`` in the form that is compiled: any validator accepts its texts as texts of
    ``schema``. Raises ``StructureError`` with the place of a keyword that cannot be kept."""
    _check_plain(schema, "#", 0)
    return _Narrowing(schema).root


def _refuse(place: str, value: object, rule: str) -> NoReturn:
    raise StructureError(f"json_schema: {place} = {shown(value)} {rule}")


def _check_plain(value: object, place: str, depth: int) -> None:
    """Raise ``StructureError`` unless ``value`` is JSON that is not nested too deeply."""
    if depth > MAX_DEPTH:
        _refuse(place[:80], "...", f"is nested deeper than {MAX_DEPTH}; make it flatter with $ref")
    if isinstance(value, Mapping):
        for name, part in value.items():
            if not isinstance(name, str):
                _refuse(place, name, "is a name; names must be strings")
            _check_plain(name, place, depth)
            _check_plain(part, f"{place}/{name}", depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            _check_plain(part, f"{place}/{index}", depth + 1)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            _refuse(place, value, "has a lone surrogate; it must be valid Unicode")
    elif not isinstance(value, (int, float, type(None))):
        _refuse(place, value, "is no JSON; give null, a boolean, number, string, list or object")
    elif isinstance(value, float) and not math.isfinite(value):
        _refuse(place, value, "is no JSON; numbers must be finite")


class _Narrowing:
    """Narrows a schema; ``root`` is the result. All values in the place of a schema are narrowed,
    and all values that a reference names."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        draft = schema.get("$schema")
        if draft is not None and (not isinstance(draft, str) or draft.rstrip("#") not in DRAFTS):
            _refuse("#/$schema", draft, "is no draft that is known; use 2020-12, or leave it out")
        self._done: set[str] = set()
        self._asked: list[tuple[str, str]] = []
        self.root: dict[str, Any] = self._schema(schema, "#", False)
        while self._asked:
            ref, place = self._asked.pop()
            if ref not in self._done:
                self._elsewhere(ref, place)

    def _elsewhere(self, ref: str, place: str) -> None:
        """Narrow a schema that only a reference names, as below ``components`` of OpenAPI."""
        path = steps(ref)
        try:
            holder = follow(self.root, path[:-1])
            key = int(path[-1]) if isinstance(holder, list) else path[-1]
            found = holder[key]
        except (LookupError, TypeError, ValueError):
            _refuse(place, ref, "names nothing in the schema")
        holder[key] = self._schema(found, ref, False)

    def _schema(self, schema: Any, place: str, below_id: bool) -> Any:
        """Narrow a schema and all schemas below it."""
        self._done.add(place)
        if not isinstance(schema, Mapping):
            return schema  # a boolean; llguidance says what is wrong with others
        for name in sorted(REFUSED & schema.keys()):
            if not (name == "uniqueItems" and schema[name] is False):
                rule = "cannot be kept while a text is made; leave it out and check the text"
                _refuse(f"{place}/{name}", schema[name], f"{rule} yourself")
        below_id |= place != "#" and any(
            isinstance(schema.get(name), str) and not schema[name].startswith("#")
            for name in ("$id", "id")
        )
        kept = {
            name: self._keyword(name, value, f"{place}/{_escape(name)}", below_id)
            for name, value in schema.items()
            if name not in ("$schema", "uniqueItems")  # all drafts are read as the strictest
        }
        _narrow_names(kept, place)
        _narrow_bounds(kept, place)
        return kept

    def _keyword(self, name: str, value: Any, place: str, below_id: bool) -> Any:
        if name in SCHEMAS and isinstance(value, (list, tuple)):
            return [
                self._schema(schema, f"{place}/{i}", below_id) for i, schema in enumerate(value)
            ]
        if name in NAMED and isinstance(value, Mapping):
            return {
                key: self._schema(schema, f"{place}/{_escape(key)}", below_id)
                for key, schema in value.items()
            }
        match name:
            case _ if name in SCHEMAS:
                return self._schema(value, place, below_id)
            case "$ref":
                self._asked.append((self._ref(value, place, below_id), place))
            case "const" | "enum":
                return _exact(value, place)
            case "multipleOf":
                return _whole_multiple(value, place)
            case "pattern" if isinstance(value, str):
                return narrow_pattern(value, place)
        return copy.deepcopy(value)

    def _ref(self, value: Any, place: str, below_id: bool) -> str:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            _refuse(place, value, 'must point into the schema itself: "#" or "#/..."')
        if below_id:
            _refuse(place, value, "stands below an $id, which moves it; leave that $id out")
        return "/".join(["#", *map(_escape, steps(value))])


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def steps(ref: str) -> list[str]:
    """The names in a reference like ``#/$defs/x``."""
    parts = ref[1:].split("/")[1:]
    return [unquote(part).replace("~1", "/").replace("~0", "~") for part in parts]


def follow(root: Any, path: list[str]) -> Any:
    """The value at ``path`` below ``root``. Raises ``LookupError``, ``TypeError`` or
    ``ValueError``."""
    for name in path:
        root = root[int(name)] if isinstance(root, list) else root[name]
    return root


def _exact(value: Any, place: str) -> Any:
    """``value`` as a literal that all readers of JSON read alike."""
    if isinstance(value, Mapping):
        return {name: _exact(part, f"{place}/{name}") for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_exact(part, f"{place}/{index}") for index, part in enumerate(value)]
    if isinstance(value, (int, float)) and abs(value) > MAX_WHOLE:
        _refuse(place, value, "is past 2**53: numbers beyond are rounded; give a string")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _whole_multiple(value: Any, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(place, value, "must be a number above 0")
    if not (0 < value <= MAX_MULTIPLE and value == int(value)):
        _refuse(
            place, value,
            f"must be whole, from 1 to {MAX_MULTIPLE}: readers disagree on multiples of fractions; "
            "count in the smaller unit",
        )  # fmt: skip
    return int(value)


def _narrow_bounds(kept: dict[str, Any], place: str) -> None:
    """Replace bounds by inclusive bounds of 15 digits. Rounding to a double moves other bounds, and
    llguidance's grammar of numbers above 0 has 0."""
    for name in BOUNDS & kept.keys():
        if isinstance(kept[name], (int, float)) and abs(kept[name]) > MAX_WHOLE:
            rule = "is past 2**53: whole numbers beyond are rounded; leave the bound out"
            _refuse(f"{place}/{name}", kept[name], rule)
    for plain, exclusive, up in (
        ("minimum", "exclusiveMinimum", True), ("maximum", "exclusiveMaximum", False),
    ):  # fmt: skip
        bounds = [kept[plain]] if plain in kept else []
        value = kept.pop(exclusive, False)
        if value is True and bounds:  # draft 4: says how the plain bound is meant
            value = bounds.pop()
        if value is not False:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                _refuse(f"{place}/{exclusive}", value, "must be a number")
            bounds.append(_beside(value, up))
        if bounds and all(isinstance(bound, (int, float)) for bound in bounds):
            kept[plain] = max(bounds) if up else min(bounds)
        if isinstance(kept.get(plain), float):
            kept[plain] = float((UP if up else DOWN).plus(Decimal(repr(kept[plain]))))


def _beside(value: float, up: bool) -> float:
    """The next number of 15 digits above ``value`` (``up``), or below it."""
    if value == 0:
        return NEAREST if up else -NEAREST
    exact = (UP if up else DOWN).plus(Decimal(repr(value)))
    if exact == Decimal(repr(value)):
        exact = UP.next_plus(exact) if up else DOWN.next_minus(exact)
    return float(exact)


def _narrow_names(kept: dict[str, Any], place: str) -> None:
    """Narrow the patterns of names. A pattern that readers read differently is refused, unless
    names that match no pattern are forbidden."""
    named = kept.get("patternProperties")
    if not isinstance(named, Mapping):
        return
    narrow = {name: narrow_pattern(name, f"{place}/patternProperties") for name in named}
    unlike = [name for name in named if name != narrow[name]]
    if unlike and kept.get("additionalProperties") is not False:
        _refuse(
            f"{place}/patternProperties", unlike[0],
            "is read in several ways (. \\d \\w \\s beyond ASCII); write its characters out, or "
            "set additionalProperties: false",
        )  # fmt: skip
    kept["patternProperties"] = {narrow[name]: schema for name, schema in named.items()}


# -- patterns -------------------------------------------------------------------------------------

CLASSES = {
    "d": "0-9", "w": "A-Za-z0-9_", "s": r" \t\n\r\f\v",
    "D": r"\x00-/:-\x7f", "W": r"\x00-/:-@\x5b-\x5e`\x7b-\x7f", "S": "!-~",
}  # fmt: skip
"""The characters that all readers have in a class."""
EXCLUDED = {
    "d": r"\p{Nd}", "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}\p{Join_Control}",
    "s": r"\p{White_Space}\x1c-\x1f\x{180e}\x{feff}",
}  # fmt: skip
"""The characters that any reader has in the class."""
ANY = r"[^\n\r\u2028\u2029]"


def narrow_pattern(pattern: str, place: str) -> str:
    """``pattern`` in a form that ECMA, Python and llguidance read alike: ``\\d``, ``\\W`` and
    others match ASCII only, ``.`` no line break. Raises ``StructureError`` for syntax that only one
    of them knows."""
    out: list[str] = []
    index, in_class, negated = 0, False, False

    def refuse(what: str) -> NoReturn:
        _refuse(place, pattern, f"has {what}, which validators read differently; write it out")

    while index < len(pattern):
        char, two = pattern[index], pattern[index : index + 2]
        if char == "\\":
            letter = two[1:]
            if letter in CLASSES and not in_class:
                out.append(f"[{CLASSES[letter]}]")
            elif letter in CLASSES and not negated:
                out.append(CLASSES[letter])
            elif letter in EXCLUDED:
                out.append(EXCLUDED[letter])
            elif letter in CLASSES:
                refuse(f"{two} in a class that is negated")
            elif letter in ("A", "z", "Z", "<", ">", "Q", "E", "X", "R", "h", "H", "G", "a"):
                refuse(two)
            else:
                out.append(two)
            index += 2
            continue
        if in_class:
            if char == "[" or two in ("&&", "--", "~~", "||"):
                refuse(f"{two if char != '[' else char} in a class")
            in_class = char != "]"
            out.append(char)
        elif char == "[":
            in_class, negated = True, two == "[^"
            out.append("[^" if negated else "[")
            index += negated
            if pattern[index + 1 : index + 2] == "]":
                refuse("] first in a class")
        elif char == ".":
            out.append(ANY)
        elif char == "(" and two == "(?":
            group = re.match(r"\(\?(:|P?<[A-Za-z_]\w*>|[=!]|<[=!])", pattern[index:])
            if group is None and (index or not pattern.startswith("(?i)")):
                refuse("flags")
            out.append(char)
        elif (
            char == "+"
            and index
            and pattern[index - 1] in "*+?}"
            and not _escaped(pattern, index - 1)
        ):
            refuse("a possessive repetition")
        else:
            out.append(char)
        index += 1
    return "".join(out)


def _escaped(pattern: str, index: int) -> bool:
    before = pattern[:index]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1
