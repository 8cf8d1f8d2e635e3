"""Embeddings: the requests for them, and the matrix of the embeddings in the replies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from scalesim.checks import listed, refuse, unknown_option
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
    """A request for each prompt. Raises ``RequestError`` for unknown options, and for a single
    text: as a list, it would be embedded letter by letter."""
    rule = "must be a list of prompts; embed([prompt]) takes one"
    found = listed("prompts", prompts, rule)
    check_pooling(pooling)
    for name in options:
        if name not in _OPTIONS:
            raise RequestError(unknown_option(name, _OPTIONS, "option"))
    if not found:
        refuse("prompts", prompts, "must be a list of one prompt at least")
    return [Request(prompt, pooling=pooling, **options) for prompt in found]


def stacked(replies: Iterable[Reply], normalize: bool) -> Floats:
    """The embeddings as a matrix ``[n, hidden]``. ``normalize`` scales each row to length 1; a row
    of zeros stays as it is."""
    rows = np.stack([reply.embedding for reply in replies if reply.embedding is not None])
    if normalize:
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        rows = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    result: Floats = rows.astype(np.float32)
    return result
