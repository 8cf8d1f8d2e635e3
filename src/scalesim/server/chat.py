"""``/v1/chat/completions``: messages answered."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from scalesim.requests.reply import Reply
from scalesim.requests.stream import AsyncReplyStream
from scalesim.server.body import body_bytes, read
from scalesim.server.endpoint import Endpoint, for_agents
from scalesim.server.generation import (
    Target,
    engine_request,
    room_for,
    sampling_of,
    target_of,
    usage_of,
)
from scalesim.server.leaving import while_connected
from scalesim.server.schema.chat import ChatBody
from scalesim.server.service import Service
from scalesim.server.sse import EventStream
from scalesim.server.streams import FINGERPRINT, Chunks, merged


async def chat(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/chat/completions``."""
    body, raw = await read(service, request, ChatBody)
    target = target_of(service, request, raw)
    model = service.engine.model
    tokens = await service.off_loop(body_bytes(request), partial(model.token_ids, body.messages))
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    params = sampling_of(service, body, raw, room_for(service, target, len(tokens), wanted))
    asked = engine_request(service, target, body, tokens, params)
    id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    if body.stream:
        streams = await service.engine.stream_samples_async(asked)
        with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        chunks = Chunks(id, "chat.completion.chunk", created, target.model, with_usage)
        events = _events(chunks, streams, with_usage)
        return EventStream(events, service.limits.keep_alive, target.headers)
    async with while_connected(request.receive):
        reply = await service.engine.generate_async(asked)
    return JSONResponse(_whole(id, created, target, reply), headers=target.headers)


async def _events(
    chunks: Chunks, streams: Sequence[AsyncReplyStream], with_usage: bool
) -> AsyncIterator[bytes]:
    for index in range(len(streams)):
        yield chunks.choice(_choice(index, {"role": "assistant", "content": ""}))
    replies: dict[int, Reply] = {}
    async for index, piece in merged(streams):
        if piece.text:
            yield chunks.choice(_choice(index, {"content": piece.text}))
        if piece.reply is not None:
            replies[index] = piece.reply
            yield chunks.choice(_choice(index, {}, piece.reply.finish_reason))
    if with_usage:
        yield chunks.usage(_usage(replies))


def _choice(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _usage(replies: dict[int, Reply]) -> dict[str, Any]:
    """Of samples that were streamed apart: their prompt counts once."""
    first, *others = (replies[index] for index in sorted(replies))
    usage = usage_of([first])
    output = sum(reply.usage.output_tokens for reply in others)
    usage["completion_tokens"] += output
    usage["total_tokens"] += output
    return usage


def _whole(id: str, created: int, target: Target, reply: Reply) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": sample.text, "refusal": None},
            "logprobs": None,
            "finish_reason": sample.finish_reason,
        }
        for index, sample in enumerate(reply.samples)
    ]
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": target.model,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": usage_of([reply]),
    }


ENDPOINTS = for_agents(Endpoint("/v1/chat/completions", ("POST",), chat, queued=True))
