"""The body of ``/v1/embeddings``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class EmbeddingBody(BaseModel):
    """``input``: a text, token ids, or a list of either. ``pooling`` and ``normalize`` are
    ScaleSim's own: which hidden states, and whether their length is made 1."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    input: Any = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: Literal["last", "mean"] | None = None
    normalize: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=512)] | None = None
