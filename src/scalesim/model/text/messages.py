"""Validation of chat messages: checked, and copied into JSON's types, before a template sees them.

Only text is accepted. A role must be a usual one or one that the template names, because most
templates silently skip messages with other roles. All functions raise RequestError, naming the
place.
"""

from __future__ import annotations

import difflib
from collections.abc import Container, Mapping, Sequence
from typing import Any

from scalesim.errors import RequestError

# A message's reasoning goes by three names. transformers fills the first from the others, and the
# second, which some templates read, from any.
_REASONING = ("reasoning_content", "thinking", "reasoning")


ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def check_roles(messages: Sequence[Mapping[str, Any]], named: Container[str]) -> None:
    """Raise for a role that is neither usual nor in ``named``, the template's string constants."""
    for i, message in enumerate(messages):
        role = message["role"]
        if role not in ROLES and role not in named:
            near = difflib.get_close_matches(role[:40].lower(), ROLES, 1)
            raise RequestError(
                f"messages[{i}] has the role {role!r:.60}, which is neither one of "
                f"{', '.join(ROLES)} nor named in the chat template"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )


def checked_messages(messages: object) -> list[dict[str, Any]]:
    """Validated copies of ``messages``, in the form that transformers gives to a template."""
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise RequestError(
            f"messages is a {type(messages).__name__}; it must be a list of messages (dicts)"
        )
    if not messages:
        raise RequestError("messages is empty; send at least one message")
    return [_checked(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _checked(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} is a {type(message).__name__}; it must be a dict")
    copy: dict[str, Any] = plain(message, where)
    copy = {key: value for key, value in copy.items() if value is not None}
    if not isinstance(copy.get("role"), str) or not copy["role"]:
        raise RequestError(f"{where} has the role {copy.get('role')!r}; it must be a name")
    _check_content(copy, where)
    reasoning = next((copy[key] for key in _REASONING if key in copy), None)
    if reasoning is None:
        return copy
    return {"thinking": reasoning, **copy, "reasoning_content": reasoning}


def _check_content(message: Mapping[str, Any], where: str) -> None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and "tool_calls" in message):
        return
    if not isinstance(content, list):
        raise RequestError(
            f"{where} has a content of type {type(content).__name__}; it must be a string or a "
            "list of text parts, and may be missing beside tool_calls only"
        )
    for i, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                f"{where}.content[{i}] is of type {kind!r}; only text is read: "
                "{'type': 'text', 'text': ...}"
            )


def checked_tools(tools: object) -> list[Any] | None:
    """Validated copies of the JSON schemas in ``tools``."""
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RequestError(f"tools is {tools!r:.200}; it must be a list of JSON schemas (dicts)")
    return [plain(tool, f"tools[{i}]") for i, tool in enumerate(tools)]


def plain(value: object, where: str) -> Any:
    """A copy of ``value`` made of JSON's types, so that a template never sees an object with
    methods of its own."""
    try:
        return _plain(value, where)
    except RecursionError as error:
        raise RequestError(
            f"{where} is nested too deeply; it must be a plain JSON value"
        ) from error


def _plain(value: object, where: str) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case Mapping():
            return {
                _plain(key, f"{where}'s key"): _plain(item, f"{where}.{key}")
                for key, item in value.items()
            }
        case list() | tuple():
            return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        case _:
            raise RequestError(
                f"{where} is a {type(value).__name__}; it must be a string, number, list or dict"
            )
