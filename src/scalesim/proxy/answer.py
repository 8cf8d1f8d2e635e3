"""Answers of a server, read while they pass: JSON bodies and server-sent events.

Reading never fails: what is no such answer counts as an empty one, because the proxy's record must
not cost the program its answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

MAX_ANSWER_BYTES = 64 << 20
"""Of a longer answer, the record has only the beginning."""


@dataclass(slots=True)
class ReadAnswer:
    """What an answer said: the first choice's text and tool calls; counts as the server reported
    them, ``None`` if it did not."""

    text: str = ""
    tool_calls: list[Any] = field(default_factory=list)
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None


class AnswerReader:
    """Reads an answer from its bytes, in pieces of any size: ``feed`` them, then ``finish``."""

    def __init__(self, *, is_stream: bool = False) -> None:
        self._is_stream = is_stream
        self._bytes = bytearray()
        self._num_bytes = 0
        self.is_whole = False
        """Whether the answer has come to its end; known after ``finish``."""
        self._texts: list[str] = []
        self._arguments: dict[int, dict[str, Any]] = {}  # by index: a streamed tool call
        self._answer = ReadAnswer()

    @property
    def has_output(self) -> bool:
        """Whether something of the answer itself has come, beyond its head."""
        return bool(self._texts or self._arguments or (self._bytes and not self._is_stream))

    def feed(self, data: bytes) -> None:
        self._num_bytes += len(data)
        if self._num_bytes > MAX_ANSWER_BYTES:
            return
        self._bytes += data
        while self._is_stream and (end := self._bytes.find(b"\n")) >= 0:
            line = bytes(self._bytes[:end])
            del self._bytes[: end + 1]
            self._event(line)

    def finish(self) -> ReadAnswer:
        if not self._is_stream:
            with suppress(ValueError):
                self._take(json.loads(self._bytes))
                self.is_whole = True
        self._answer.text = "".join(self._texts)
        self._answer.tool_calls += [self._arguments[index] for index in sorted(self._arguments)]
        return self._answer

    def _event(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        if line[5:].strip() == b"[DONE]":
            self.is_whole = True
            return
        with suppress(ValueError):
            self._take(json.loads(line[5:]))

    def _take(self, body: Any) -> None:
        """Take a whole answer, or a chunk of one."""
        if not isinstance(body, Mapping):
            return
        if isinstance(body.get("usage"), Mapping):
            self._take_usage(body["usage"])
        choices = body.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, Mapping) and not choice.get("index"):
                self._take_choice(choice)

    def _take_choice(self, choice: Mapping[str, Any]) -> None:
        said = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        if not isinstance(said, Mapping):
            return
        if isinstance(said.get("content"), str) and said["content"]:
            self._texts.append(said["content"])
        calls = said.get("tool_calls")
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
                self._take_tool_call(call.get("index", place), call["function"])

    def _take_tool_call(self, index: Any, piece: Mapping[str, Any]) -> None:
        if not isinstance(index, int):
            return
        call = self._arguments.setdefault(index, {"function": {"name": "", "arguments": ""}})
        for name in ("name", "arguments"):
            if isinstance(piece.get(name), str):
                call["function"][name] += piece[name]

    def _take_usage(self, usage: Mapping[str, Any]) -> None:
        details = usage.get("prompt_tokens_details")
        self._answer.prompt_tokens = _count(usage.get("prompt_tokens"))
        self._answer.output_tokens = _count(usage.get("completion_tokens"))
        if isinstance(details, Mapping):
            self._answer.cached_tokens = _count(details.get("cached_tokens"))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
