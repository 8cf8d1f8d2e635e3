"""A chat's request: messages, tools and the form of the answer, and how they become a ``Request``.

Everything here runs on the caller's thread and raises ``RequestError`` for what cannot be: nothing
of it reaches the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scalesim.chat.conversation import messages_for, variables_of
from scalesim.chat.output_parser import END_THINK, THINK, OutputParser, Thinking
from scalesim.chat.reply import ChatReply, fields_of_reply
from scalesim.chat.response_format import ResponseFormat, formed
from scalesim.chat.tool_formats import ToolFormat, tool_format
from scalesim.chat.tool_use import Tool, ToolChoice, ToolUse, tool_use
from scalesim.core import AgentId
from scalesim.model.text.chat import ChatTemplate
from scalesim.requests.prompt import ChatPrompt, Message, OnOverflow, TextModel
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.frame import Frame
from scalesim.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One turn of a chat: ``messages``, or one of the user's as a string; by an agent or by nobody.
    docs/chat.md shows each field.

    ``params`` are the model's own (its ``generation_config.json``) if they are ``None``. ``tools``
    are functions that the model may call, as OpenAI's clients write them. ``tool_choice``:
    ``"none"`` hides them, ``"auto"`` lets the model choose, ``"required"`` makes it call one or
    more, and ``{"type": "function", "function": {"name": ...}}`` that one; without
    ``parallel_tool_calls`` there is one call at most. ``response_format`` bounds what the model
    says: a pydantic model, or an object with the ``type`` ``"json_object"``, ``"json_schema"``,
    ``"regex"``, ``"grammar"`` or ``"text"``. ``enable_thinking`` and ``chat_template_kwargs`` are
    for the template. The other fields are those of ``Request``.
    """

    messages: Sequence[Message] | str
    agent: AgentId | None = None
    params: SamplingParams | None = None
    tools: Sequence[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    sample_index: int = 0
    deadline: float | None = None
    priority: int = 0
    more_calls: int | None = None
    on_overflow: OnOverflow = "error"


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A chat's request as the engine runs it, and how its texts are taken apart."""

    request: Request
    tools: ToolFormat | None  # if the model may call any
    names: frozenset[str]
    max_calls: int | None
    thinking: Thinking

    def parser(self, *, streams_arguments: bool = False) -> OutputParser:
        """A parser for one text of the request; ``streams_arguments`` as for ``OutputParser``."""
        return OutputParser(
            self.tools,
            self.names,
            thinking=self.thinking,
            max_calls=self.max_calls,
            streams_arguments=streams_arguments,
        )

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
    """``chat`` for ``model``, checked and rendered. Raises ``RequestError``."""
    template, use = (
        model.chat_template,
        tool_use(chat.tools, chat.tool_choice, chat.parallel_tool_calls),
    )
    tools = tool_format(template) if use.functions else None
    prompt = ChatPrompt(
        messages_for(template, chat.messages),
        use.tools if use.functions else None,
        variables_of(chat.chat_template_kwargs, chat.enable_thinking),
    )
    prompt = replace(prompt, text=model.render(prompt))
    thinking = _thinking(template, prompt)
    params = defaults if chat.params is None else chat.params
    request = Request(
        prompt,
        agent=chat.agent,
        params=_bounded(formed(params, chat.response_format), use, tools, thinking),
        timeout=chat.timeout,
        sample_index=chat.sample_index,
        deadline=chat.deadline,
        priority=chat.priority,
        more_calls=chat.more_calls,
        on_overflow=chat.on_overflow,
    )
    names = frozenset(function["name"] for function in use.functions)
    return ChatTurn(request, tools, names, None if use.several else 1, thinking)


def _thinking(template: ChatTemplate, prompt: ChatPrompt) -> Thinking:
    """Whether the text behind ``prompt`` begins with thinking: models whose template knows the mark
    of its end may write that of its beginning, unless the prompt does."""
    if not template.mentions(END_THINK, with_tools=prompt.tools is not None):
        return "no"
    return "open" if prompt.text and prompt.text.rstrip().endswith(THINK) else "may"


def _bounded(
    params: SamplingParams, use: ToolUse, tools: ToolFormat | None, thinking: Thinking
) -> SamplingParams:
    """``params`` with the bounds of the tools' calls, and with room for thinking before those of
    the answer."""
    calls = None
    if tools is not None and (use.must_call or params.is_structured):
        calls = tools.framed(use.allowed, use.several)
    if use.must_call:  # then the model says nothing that could have a form
        params = replace(params, json_schema=None, regex=None, grammar=None)
    if calls is None and (thinking == "no" or not params.is_structured):
        return params
    begin, end = {"no": ("", ""), "may": (THINK, END_THINK), "open": ("", END_THINK)}[thinking]
    return replace(params, frame=Frame(begin, end, calls))
