"""``/v1/completions``: texts and token ids continued."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from scalesim.checks import shown
from scalesim.core import Int32s
from scalesim.requests.prompt import Prompt
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.requests.stream import AsyncReplyStream
from scalesim.server.body import body_bytes, read
from scalesim.server.endpoint import Endpoint, for_agents
from scalesim.server.errors import bad
from scalesim.server.generation import (
    Target,
    engine_request,
    room_for,
    sampling_of,
    target_of,
    usage_of,
)
from scalesim.server.leaving import while_connected
from scalesim.server.schema.completions import CompletionBody
from scalesim.server.service import Service
from scalesim.server.sse import EventStream
from scalesim.server.streams import FINGERPRINT, Chunks, merged

DEFAULT_TOKENS = 16
"""As OpenAI's."""
_KIND = "text_completion"


async def completions(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/completions``."""
    body, raw = await read(service, request, CompletionBody)
    target = target_of(service, request, raw)
    prompts = prompts_of(service, body.prompt)
    model = service.engine.model
    size = body_bytes(request)
    tokens = [await service.off_loop(size, partial(model.token_ids, prompt)) for prompt in prompts]
    requests = [_engine_request(service, target, body, raw, ids) for ids in tokens]
    answer = f"cmpl-{uuid.uuid4().hex}", int(time.time()), target
    if body.stream:
        streams = await _streams(service, requests)
        with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        events = _events(
            Chunks(answer[0], _KIND, answer[1], target.model, with_usage), streams, with_usage
        )
        return EventStream(events, service.limits.keep_alive, target.headers)
    async with while_connected(request.receive):
        replies = await asyncio.gather(*map(service.engine.generate_async, requests))
    return JSONResponse(_whole(*answer, replies), headers=target.headers)


def prompts_of(service: Service, given: Any) -> list[Prompt]:
    """The prompts of a body. Raises 400 for what lists none, or too many."""
    if isinstance(given, str) or (isinstance(given, list) and given and _is_number(given[0])):
        return [given]
    if not isinstance(given, list) or not given:
        raise bad(
            f"prompt={shown(given)} must be a text, a list of token ids, or a list of either; "
            "it must not be empty",
            "prompt",
        )
    if len(given) > service.limits.max_prompts:
        raise bad(f"prompt lists {len(given)}, at most {service.limits.max_prompts}", "prompt")
    for prompt in given:
        if not isinstance(prompt, (str, list)):
            raise bad(f"prompt has {shown(prompt)}, which is no text and no list of ids", "prompt")
    return given


def _engine_request(
    service: Service, target: Target, body: CompletionBody, raw: dict[str, Any], tokens: Int32s
) -> Request:
    wanted = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    params = sampling_of(service, body, raw, room_for(service, target, len(tokens), wanted))
    return engine_request(service, target, body, tokens, params)


async def _streams(service: Service, requests: Sequence[Request]) -> list[AsyncReplyStream]:
    samples = [await service.engine.stream_samples_async(request) for request in requests]
    return [stream for streams in samples for stream in streams]


async def _events(
    chunks: Chunks, streams: Sequence[AsyncReplyStream], with_usage: bool
) -> AsyncIterator[bytes]:
    replies: dict[int, Reply] = {}
    async for index, piece in merged(streams):
        reason = None
        if piece.reply is not None:
            replies[index], reason = piece.reply, piece.reply.finish_reason
        yield chunks.choice(
            {"index": index, "text": piece.text, "logprobs": None, "finish_reason": reason}
        )
    if with_usage:
        yield chunks.usage(usage_of(list(replies.values())))


def _whole(id: str, created: int, target: Target, replies: Sequence[Reply]) -> dict[str, Any]:
    samples = [sample for reply in replies for sample in reply.samples]
    choices = [
        {
            "index": index,
            "text": sample.text or "",
            "logprobs": None,
            "finish_reason": sample.finish_reason,
        }
        for index, sample in enumerate(samples)
    ]
    return {
        "id": id,
        "object": _KIND,
        "created": created,
        "model": target.model,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": usage_of(list(replies)),
    }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


ENDPOINTS = for_agents(Endpoint("/v1/completions", ("POST",), completions, queued=True))
