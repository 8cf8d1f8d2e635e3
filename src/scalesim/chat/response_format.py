"""The form of an answer as clients ask for it, made into sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from scalesim.checks import instance, reading, shown
from scalesim.errors import RequestError
from scalesim.sampling.params import HasSchema, SamplingParams

ResponseFormat: TypeAlias = Mapping[str, Any] | HasSchema
KINDS = ("text", "json_object", "json_schema", "regex", "grammar")


def formed(params: SamplingParams, response_format: object) -> SamplingParams:
    """``params`` with what ``response_format`` asks for. Raises ``RequestError`` where both ask for
    a structure."""
    instance("params", params, SamplingParams, "write params=engine.sampling(max_tokens=64)")
    if response_format is None:
        return params
    asked = _asked(response_format)
    if asked and params.is_structured:
        raise RequestError(
            "response_format is given beside json_schema, regex or grammar; an answer follows one "
            "of them"
        )
    return replace(params, **asked) if asked else params


def _asked(given: object) -> dict[str, Any]:
    """The parameter that ``given`` stands for, with its value; none for plain text."""
    if not isinstance(given, Mapping):
        with reading("response_format"):
            has_schema = callable(getattr(given, "model_json_schema", None))
        if has_schema:
            return {"json_schema": given}
        raise RequestError(
            f"response_format={shown(given)} must be a pydantic model, or an object with a 'type'"
        )
    with reading("response_format"):
        kind = given.get("type")
        value = None if not isinstance(kind, str) else given.get(kind)
    match kind:
        case "text":
            return {}
        case "json_object":
            return {"json_schema": {"type": "object"}}
        case "json_schema":
            with reading("response_format"):
                schema = value.get("schema") if isinstance(value, Mapping) else None
            if isinstance(schema, Mapping):
                return {"json_schema": schema}
            raise RequestError(
                f"response_format.json_schema.schema is {shown(schema)}; it must be a JSON schema"
            )
        case "regex" | "grammar" if isinstance(value, str):
            return {kind: value}
        case "regex" | "grammar":
            raise RequestError(f"response_format.{kind} is {shown(value)}; it must be a text")
    raise RequestError(
        f"response_format.type is {shown(kind)}; it must be one of: {', '.join(KINDS)}"
    )
