"""What a chat gives back: the answer, the thinking before it, and the calls of tools in it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from scalesim.requests.reply import Reply


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model calls: its ``name``, and its ``arguments`` as the JSON text that the
    model wrote. ``id`` is the call's own, for the message that has its result."""

    id: str
    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        """The call in a message, as OpenAI's clients write it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What the call at ``index`` gained: ``id`` and ``name`` come once, with its first delta, and
    ``arguments`` as text, in pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """What an answer gained: text of its ``content`` and of its ``reasoning``, and ``tool_calls``
    that began or went on."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatReply(Reply):
    """The answer of a chat: a ``Reply``, whose ``text`` is split.

    ``content`` is what the model says, ``None`` where it says nothing, or no tokenizer writes it;
    ``reasoning`` is what it thought before, if its template knows thinking. ``finish_reason`` is
    ``"tool_calls"`` where the text came to its end and calls tools.
    """

    content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to be appended to the chat."""
        content = self.content if self.tool_calls else self.content or ""
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        return message


def fields_of_reply(reply: Reply) -> dict[str, Any]:
    """The fields of ``reply`` by name."""
    return {field.name: getattr(reply, field.name) for field in fields(Reply)}
