"""Messages and variables as clients send them, made into what chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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


def messages_for(template: ChatTemplate, given: object) -> list[dict[str, Any]]:
    """Copies of the messages ``given``, or of the user's one. Raises ``RequestError``.

    Text in parts becomes one string, since few templates know parts. A call's arguments, which
    clients send as JSON text, become the object that most templates write down again. A
    developer's message is the system's where the template does not know the role.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": text("messages", given)}]
    with reading("messages"):
        messages = checked_messages(given)
    knows_developer = template.mentions("developer")
    keeps_text = template.mentions("arguments is string", with_tools=True)
    for message in messages:
        if isinstance(message.get("content"), list):
            message["content"] = "\n".join(part["text"] for part in message["content"])
        if message["role"] == "developer" and not knows_developer:
            message["role"] = "system"
        if not keeps_text and isinstance(message.get("tool_calls"), list):
            message["tool_calls"] = [_with_object(call) for call in message["tool_calls"]]
    return messages


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
