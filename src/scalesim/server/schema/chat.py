"""The body of ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Any

from scalesim.server.schema.sampling import SamplingBody


class ChatBody(SamplingBody):
    """``messages`` and what stands in them is checked where they are rendered."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
