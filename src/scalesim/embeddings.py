"""Embeddings: the requests that ask for them, and the matrix that their replies make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from scalesim.core import Floats, Pooling
from scalesim.errors import RequestError
from scalesim.requests import Prompt, Reply, Request


def embedding_requests(
    prompts: Sequence[Prompt], pooling: Pooling, options: Mapping[str, Any]
) -> list[Request]:
    """Raises ``RequestError`` for a single text: it would be embedded letter by letter."""
    if isinstance(prompts, str) or len(prompts) == 0:
        raise RequestError(f"embed({prompts!r}): give a list of one prompt at least")
    return [Request(prompt, pooling=pooling, **options) for prompt in prompts]


def stacked(replies: Iterable[Reply], normalize: bool) -> Floats:
    """``[n, hidden]``, rows of length 1 with ``normalize``; a row of zeros stays one."""
    rows = np.stack([reply.embedding for reply in replies if reply.embedding is not None])
    if normalize:
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        rows = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    result: Floats = rows.astype(np.float32)
    return result
