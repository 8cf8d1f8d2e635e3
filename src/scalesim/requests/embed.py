"""Embeddings: the requests that ask for them, and the matrix that their replies make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from scalesim.checks import reading, refuse, unknown_option
from scalesim.core import Floats, Pooling
from scalesim.errors import RequestError
from scalesim.requests.check_request import check_pooling
from scalesim.requests.prompt import Prompt
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request

_OPTIONS = {field.name for field in fields(Request)} - {"prompt", "pooling"}


def embedding_requests(
    prompts: Sequence[Prompt], pooling: Pooling, options: Mapping[str, Any]
) -> list[Request]:
    """Raises ``RequestError`` for a single text, which would be embedded letter by letter, and for
    options that there are not."""
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        refuse("prompts", prompts, "must be a list of prompts; embed([prompt]) takes one")
    check_pooling(pooling)
    for name in options:
        if name not in _OPTIONS:
            raise RequestError(unknown_option(name, _OPTIONS, "option"))
    with reading("prompts"):
        listed = list(prompts)
    if not listed:
        refuse("prompts", prompts, "must be a list of one prompt at least")
    return [Request(prompt, pooling=pooling, **options) for prompt in listed]


def stacked(replies: Iterable[Reply], normalize: bool) -> Floats:
    """``[n, hidden]``, rows of length 1 with ``normalize``; a row of zeros stays one."""
    rows = np.stack([reply.embedding for reply in replies if reply.embedding is not None])
    if normalize:
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        rows = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    result: Floats = rows.astype(np.float32)
    return result
