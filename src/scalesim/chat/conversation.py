"""Messages and variables as clients send them, made into what chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scalesim.chat.tool_formats import LLAMA3, taught_format
from scalesim.checks import reading, shown, text
from scalesim.errors import RequestError
from scalesim.model.text.chat import ChatTemplate
from scalesim.model.text.messages import checked_messages

OF_THE_TEMPLATE = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation",
        "documents", "messages", "padding", "return_dict", "return_tensors", "tokenize", "tools",
        "truncation",
    }
)  # fmt: skip
"""Names that ``chat_template_kwargs`` may not have: they are arguments of their own, or of
transformers' ``apply_chat_template``."""


def messages_for(template: ChatTemplate, given: Any) -> list[dict[str, Any]]:
    """Copies of the messages ``given``, or of the user's one. Raises ``RequestError``.

    Text in parts becomes one string, since few templates know parts, and an answer that says
    nothing an empty one. A call's arguments, which clients send as JSON text, become the object
    that most templates write down again. A developer's message is the system's where the template
    does not know the role. Llama's templates take one call in a message: there an answer with
    several becomes several, each before its result.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": text("messages", given)}]
    with reading("messages"):
        listed = isinstance(given, Sequence) and not isinstance(given, bytes)
        messages = checked_messages([_filled(message) for message in given] if listed else given)
    knows_developer = template.mentions("developer")
    keeps_text = template.mentions("arguments is string", with_tools=True)
    for message in messages:
        if isinstance(message.get("content"), list):
            message["content"] = "\n".join(part["text"] for part in message["content"])
        if message["role"] == "developer" and not knows_developer:
            message["role"] = "system"
        if not keeps_text and isinstance(message.get("tool_calls"), list):
            message["tool_calls"] = [_with_object(call) for call in message["tool_calls"]]
    return _one_call_each(messages) if taught_format(template) is LLAMA3 else messages


def _filled(message: object) -> object:
    """An answer that neither says anything nor calls a tool, as an empty one."""
    if not isinstance(message, Mapping) or message.get("role") != "assistant":
        return message
    calls = message.get("tool_calls")
    if calls is None or (isinstance(calls, list) and not calls):
        return {**message, "content": message.get("content") or "", "tool_calls": None}
    return message


def _one_call_each(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``messages`` with each answer of several calls as several of one, their results between."""
    found: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []  # answers whose results come later
    for message in messages:
        if message["role"] != "tool":
            found += waiting
            waiting = []
        elif (answer := _answered(message, waiting, found[-1:])) is not None:
            waiting.remove(answer)
            found.append(answer)
        calls = message.get("tool_calls")
        if isinstance(calls, list) and len(calls) > 1:
            message, *waiting = ({**message, "tool_calls": [call]} for call in calls)
        found.append(message)
    return [*found, *waiting]


def _answered(
    result: dict[str, Any], waiting: list[dict[str, Any]], before: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Which answer in ``waiting`` has the call that ``result`` is of: by its id, or the next one,
    if ids are not told and the message ``before`` is a result already."""
    id = result.get("tool_call_id")
    if id is None:
        return waiting[0] if waiting and before and before[0]["role"] == "tool" else None
    calls = ((answer, answer["tool_calls"][0]) for answer in waiting)
    return next(
        (answer for answer, call in calls if isinstance(call, dict) and call.get("id") == id), None
    )


def _with_object(call: Any) -> Any:
    """A call of a tool with its arguments as an object, if they are the text of one."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def variables_of(given: object, enable_thinking: object) -> dict[str, Any]:
    """The template's variables. Raises ``RequestError`` for names that it may not have."""
    if not isinstance(given, Mapping):
        raise RequestError(f"chat_template_kwargs={shown(given)} must map names to values")
    with reading("chat_template_kwargs"):
        variables = dict(given)
    for name in variables:
        if not isinstance(name, str) or name in OF_THE_TEMPLATE or not name.isidentifier():
            raise RequestError(
                f"chat_template_kwargs has {shown(name)}; it must be the name of a variable of the "
                f"template, and none of {', '.join(sorted(OF_THE_TEMPLATE))}"
            )
    if enable_thinking is None:
        return variables
    if not isinstance(enable_thinking, bool):
        raise RequestError(
            f"enable_thinking={shown(enable_thinking)} must be True, False or None (the model's "
            "own way)"
        )
    # "thinking" is what some models' templates call the same
    return {"enable_thinking": enable_thinking, "thinking": enable_thinking, **variables}
