"""The body of ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Any

from scalesim.server.schema.sampling import SamplingBody


class ChatBody(SamplingBody):
    """What stands in messages, tools and formats is checked where they are used."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
