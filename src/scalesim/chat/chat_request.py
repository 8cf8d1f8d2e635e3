"""A chat's request: messages, tools and the form of the answer, and how they become a ``Request``.

Everything here runs on the caller's thread and raises ``RequestError`` for what cannot be: nothing
of it reaches the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scalesim.chat.output_parser import OutputParser
from scalesim.chat.reply import ChatReply, fields_of_reply
from scalesim.core import AgentId
from scalesim.requests.prompt import ChatPrompt, Message, OnOverflow, TextModel
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One turn of a chat: ``messages``, or one of the user's as a string; by an agent or by nobody.

    ``params`` are the model's own defaults (its ``generation_config.json``) if they are ``None``.
    The other fields are those of ``Request``.
    """

    messages: Sequence[Message] | str
    agent: AgentId | None = None
    params: SamplingParams | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True
    response_format: Any = None
    enable_thinking: bool | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    sample_index: int = 0
    deadline: float | None = None
    priority: int = 0
    on_overflow: OnOverflow = "error"


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A chat's request as the engine runs it, and how its text is read."""

    request: Request

    def parser(self, *, streams_arguments: bool = False) -> OutputParser:
        """A parser for one text of the request."""
        return OutputParser()

    def reply(self, reply: Reply, parser: OutputParser | None = None) -> ChatReply:
        """``reply`` taken apart; by ``parser``, if that has read its text already."""
        if parser is None:
            parser = self.parser()
            parser.feed(reply.text or "")
            parser.finish()
        given = fields_of_reply(reply)
        if parser.tool_calls and reply.finish_reason == "stop":
            given["finish_reason"] = "tool_calls"
        given["others"] = tuple(map(self.reply, reply.others))
        return ChatReply(
            **given,
            content=parser.content,
            reasoning=parser.reasoning,
            tool_calls=parser.tool_calls,
        )


def as_turn(chat: ChatRequest, model: TextModel, defaults: SamplingParams) -> ChatTurn:
    """``chat`` for ``model``. Raises ``RequestError``."""
    messages = chat.messages
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return ChatTurn(
        Request(
            ChatPrompt(messages),
            agent=chat.agent,
            params=defaults if chat.params is None else chat.params,
            timeout=chat.timeout,
            sample_index=chat.sample_index,
            deadline=chat.deadline,
            priority=chat.priority,
            on_overflow=chat.on_overflow,
        )
    )
