"""Replies of a server, as the client gives them: made of OpenAI's JSON, with the engine's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote


@dataclass(frozen=True, slots=True)
class RemoteUsage:
    """What a reply cost, in tokens. Of the prompt's, ``cached_tokens`` were found in memory."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RemoteToolCall:
    """A tool that the model calls: its ``name``, and its ``arguments`` as the JSON text that the
    model wrote."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class RemoteReply:
    """What a call gives back. ``content`` is what the model says, ``reasoning`` what it thought
    before. ``agent`` is whom the server took the call for, ``hint_used`` whether it took the hint
    that came with the call. ``logprobs`` is OpenAI's JSON. ``others`` are samples 2 to ``n``."""

    content: str | None
    finish_reason: str
    usage: RemoteUsage = RemoteUsage()
    agent: str | None = None
    hint_used: bool = False
    reasoning: str | None = None
    tool_calls: tuple[RemoteToolCall, ...] = ()
    logprobs: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    others: tuple[RemoteReply, ...] = ()

    @property
    def text(self) -> str:
        """``content``; empty where the model said nothing."""
        return self.content or ""

    @property
    def samples(self) -> tuple[RemoteReply, ...]:
        """All ``n`` samples, this one first."""
        return (self, *self.others)

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to be appended to the chat."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return message


@dataclass(frozen=True, slots=True)
class RemotePiece:
    """What a reply gained since the piece before. ``reply`` comes with the last piece."""

    text: str = ""
    reasoning: str = ""
    reply: RemoteReply | None = None


@dataclass(frozen=True, slots=True)
class RemoteChoice:
    """The likeliest ``option``, its ``index``, and the log-probability of each option, in the order
    given."""

    option: str
    index: int
    scores: tuple[float, ...]


def reply_from(body: Mapping[str, Any], headers: Mapping[str, str]) -> RemoteReply:
    """The reply of a whole completion, of chats or plain ones."""
    usage = _usage(body.get("usage"))
    samples = [
        replace(_sample(choice), usage=usage, **_told(headers)) for choice in body["choices"]
    ]
    return replace(samples[0], others=tuple(samples[1:]))


def _told(headers: Mapping[str, str]) -> dict[str, Any]:
    agent = headers.get("x-scalesim-agent")
    return {
        "agent": None if agent is None else unquote(agent),
        "hint_used": headers.get("x-scalesim-hint") == "used",
    }


def _sample(choice: Mapping[str, Any]) -> RemoteReply:
    message = choice.get("message")
    if message is None:
        message = {"content": choice.get("text")}
    calls = message.get("tool_calls") or ()
    return RemoteReply(
        message.get("content"),
        str(choice.get("finish_reason")),
        reasoning=message.get("reasoning_content"),
        tool_calls=tuple(
            RemoteToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in calls
        ),
        logprobs=choice.get("logprobs"),
    )


def _usage(given: Mapping[str, Any] | None) -> RemoteUsage:
    if not given:
        return RemoteUsage()
    details = given.get("prompt_tokens_details") or {}
    return RemoteUsage(
        given.get("prompt_tokens", 0),
        details.get("cached_tokens", 0),
        given.get("completion_tokens", 0),
    )


class StreamReader:
    """Makes pieces of a stream's lines, and the reply in the end, of its first sample."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._told = _told(headers)
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._reason, self._usage = "", RemoteUsage()
        self.is_over = False

    def take(self, line: str) -> RemotePiece | dict[str, Any] | None:
        """The piece that ``line`` brings, or the error; ``None`` for a line that brings nothing."""
        if not line.startswith("data:"):
            return None
        data = line[5:].strip()
        if data == "[DONE]":
            self.is_over = True
            return RemotePiece(reply=self._reply())
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            self.is_over = True
            return event
        if event.get("usage"):
            self._usage = _usage(event["usage"])
        for choice in event.get("choices", ()):
            if choice.get("index", 0) == 0:
                return self._gain(choice)
        return None

    def _gain(self, choice: Mapping[str, Any]) -> RemotePiece | None:
        delta = choice.get("delta") or {"content": choice.get("text")}
        text, reasoning = delta.get("content") or "", delta.get("reasoning_content") or ""
        self._content.append(text)
        self._reasoning.append(reasoning)
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            known = self._calls.setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
            known["id"] = call.get("id") or known["id"]
            known["name"] = function.get("name") or known["name"]
            known["arguments"] += function.get("arguments") or ""
        self._reason = choice.get("finish_reason") or self._reason
        return RemotePiece(text, reasoning) if text or reasoning else None

    def _reply(self) -> RemoteReply:
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        calls = tuple(RemoteToolCall(**call) for _, call in sorted(self._calls.items()))
        return RemoteReply(
            content or (None if calls else ""),
            self._reason,
            self._usage,
            reasoning=reasoning or None,
            tool_calls=calls,
            **self._told,
        )
