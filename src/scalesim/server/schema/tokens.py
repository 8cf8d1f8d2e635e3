"""Bodies of ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class TokenizeBody(BaseModel):
    """A text, or messages."""

    model_config = ConfigDict(strict=True, extra="ignore")

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(BaseModel):
    """Token ids."""

    model_config = ConfigDict(strict=True, extra="ignore")

    tokens: list[int]
