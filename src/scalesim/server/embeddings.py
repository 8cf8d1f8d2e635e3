"""``/v1/embeddings``: the model's final hidden states, where the server was told to offer them."""

from __future__ import annotations

import base64
from functools import partial

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from scalesim.server.body import body_bytes, read
from scalesim.server.endpoint import Endpoint, for_agents
from scalesim.server.errors import ApiError, bad
from scalesim.server.generation import prompts_of, target_of
from scalesim.server.leaving import while_connected
from scalesim.server.schema.embeddings import EmbeddingBody
from scalesim.server.service import Service


async def embeddings(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/embeddings``."""
    if not service.config.embeddings:
        message = "embeddings are not offered; start the server with --enable-embeddings"
        raise ApiError(404, message, code="not_enabled")
    body, raw = await read(service, request, EmbeddingBody)
    target = target_of(service, request, raw)
    if target.adapter is not None:
        raise bad("embeddings are the base model's; an adapter has none", "model", "unsupported")
    if body.dimensions is not None:
        raise bad("dimensions cannot be chosen; leave it out", "dimensions", "unsupported")
    model, size = service.engine.model, body_bytes(request)
    prompts = prompts_of(service, "input", body.input)
    tokens = [await service.off_loop(size, partial(model.token_ids, prompt)) for prompt in prompts]
    async with while_connected(request.receive):
        found = await service.engine.embed_async(
            tokens,
            pooling=body.pooling or "last",
            normalize=body.normalize is not False,
            timeout=service.limits.request_timeout,
            cache_salt=target.cache_salt(body.cache_salt),
        )
    as_text = body.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _base64(row) if as_text else row.tolist(),
        }
        for index, row in enumerate(found)
    ]
    count = sum(map(len, tokens))
    told = {
        "object": "list",
        "data": data,
        "model": target.model,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    return JSONResponse(told, headers=target.headers)


def _base64(row: np.ndarray[tuple[int], np.dtype[np.float32]]) -> str:
    """Little-endian fp32, as OpenAI's SDK asks for by default."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


ENDPOINTS = for_agents(Endpoint("/v1/embeddings", ("POST",), embeddings, queued=True))
