"""The body of ``/v1/completions``."""

from __future__ import annotations

from typing import Any

from scalesim.server.schema.sampling import SamplingBody


class CompletionBody(SamplingBody):
    """``prompt``: a text, token ids, or a list of either."""

    prompt: Any = None
    logprobs: int | None = None
    echo: bool | None = None
