"""``/v1/completions``: texts and token ids continued."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from scalesim.core import Int32s
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.requests.stream import AsyncReplyStream
from scalesim.sampling.params import SamplingParams
from scalesim.server.body import body_bytes, read
from scalesim.server.endpoint import Endpoint, for_agents
from scalesim.server.envelope import carry
from scalesim.server.errors import bad
from scalesim.server.generation import (
    CallTarget,
    engine_request,
    prompts_of,
    sampling_of,
    target_of,
    usage_of,
    usage_of_samples,
    whole_reply,
)
from scalesim.server.leaving import while_connected
from scalesim.server.logprobs import TokenText, of_completion, of_echo
from scalesim.server.schema.completions import CompletionBody
from scalesim.server.service import Service
from scalesim.server.sse import EventStream
from scalesim.server.streams import COMPLETION_TEXT, FINGERPRINT, Chunks, merged
from scalesim.server.tokens import token_text, tokenizer_of

DEFAULT_TOKENS = 16
"""As OpenAI's."""
_KIND = "text_completion"


async def completions(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/completions``."""
    body, raw = await read(service, request, CompletionBody)
    target = target_of(service, request, raw)
    prompts = prompts_of(service, "prompt", body.prompt)
    if body.echo and body.stream and body.logprobs is not None:
        raise bad(
            "echo with logprobs is not streamed: a prompt's scores are there with the whole reply "
            "only; leave out echo, logprobs or stream", "echo", "unsupported",
        )  # fmt: skip
    model, size = service.engine.model, body_bytes(request)
    tokens = [await service.off_loop(size, partial(model.token_ids, prompt)) for prompt in prompts]
    echoes = None
    if body.echo:
        decode = tokenizer_of(service).decode
        echoes = [await service.off_loop(size, partial(decode, ids.tolist())) for ids in tokens]
    params = _sampling(service, body, raw)
    requests = [engine_request(service, target, body, ids, params) for ids in tokens]
    await carry(service, request, raw, target.caller)
    answer = Completion(service, target, body, echoes)
    if body.stream:
        flat: list[AsyncReplyStream] = []
        async for asked in _by_turns(requests):
            flat += await service.engine.stream_samples_async(asked)
        events = answer.events(service.metrics.timed(flat), len(flat) // len(requests))
        return EventStream(events, service.limits.keep_alive, target.headers)
    async with while_connected(request.receive):
        replies = await _replies(service, requests)
    whole = partial(answer.whole, tokens, replies)
    return await whole_reply(service, replies, whole, target.headers)


async def _replies(service: Service, requests: Sequence[Request]) -> list[Reply]:
    """The replies to all ``requests``. Raises the first error, and cancels the others."""
    tasks: list[asyncio.Task[Reply]] = []
    try:
        async for asked in _by_turns(requests):
            tasks.append(asyncio.create_task(service.engine.generate_async(asked)))
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _by_turns(requests: Sequence[Request]) -> AsyncIterator[Request]:
    """``requests``, of one body; between two of them, other bodies' requests have their turn."""
    for index, asked in enumerate(requests):
        if index:
            await asyncio.sleep(0)
        yield asked


def _sampling(service: Service, body: CompletionBody, raw: dict[str, Any]) -> SamplingParams:
    extra: dict[str, Any] = {}
    if body.logprobs is not None:
        extra["logprobs"] = body.logprobs
        if body.echo:
            extra["prompt_logprobs"] = body.logprobs
    wanted = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    return sampling_of(service, body, raw, max_tokens=wanted, **extra)


@dataclass(frozen=True, slots=True)
class Completion:
    """The reply to one body, whole or in chunks. ``echoes``: the text of each prompt, if the reply
    is to begin with it."""

    service: Service
    target: CallTarget
    body: CompletionBody
    echoes: Sequence[str] | None

    async def events(
        self, streams: Sequence[AsyncReplyStream], num_samples: int
    ) -> AsyncIterator[bytes]:
        """The chunks of ``streams``, of which each prompt has ``num_samples``."""
        body = self.body
        with_usage = body.wants_usage
        chunks = Chunks(self._same(), with_usage, COMPLETION_TEXT)
        text = self._token_text() if body.logprobs is not None else str
        offsets = [0] * len(streams)
        if self.echoes is not None:
            for index in range(len(streams)):
                yield chunks.text(index, self.echoes[index // num_samples])
        replies: dict[int, Reply] = {}
        async for index, piece in merged(streams):
            reason = None
            if piece.reply is not None:
                replies[index], reason = piece.reply, piece.reply.finish_reason
            elif piece.logprobs is None:
                if piece.text:
                    yield chunks.text(index, piece.text)
                continue
            scores = of_completion(piece.logprobs, text, offsets[index])
            offsets[index] += 0 if scores is None else sum(map(len, scores["tokens"]))
            yield chunks.choice(
                {"index": index, "text": piece.text, "logprobs": scores, "finish_reason": reason}
            )
        if with_usage:
            ordered = [replies[index] for index in sorted(replies)]
            yield chunks.usage(usage_of_samples(ordered, num_samples))

    def whole(self, prompts: Sequence[Int32s], replies: Sequence[Reply]) -> dict[str, Any]:
        """The reply at once."""
        echoes = self.echoes or [""] * len(prompts)
        samples = [
            (echo, prompt, sample)
            for echo, prompt, reply in zip(echoes, prompts, replies, strict=True)
            for sample in reply.samples
        ]
        choices = [
            {
                "index": index,
                "text": echo + (sample.text or ""),
                "logprobs": self._logprobs(prompt, sample),
                "finish_reason": sample.finish_reason,
            }
            for index, (echo, prompt, sample) in enumerate(samples)
        ]
        return {**self._same(), "choices": choices, "usage": usage_of(replies)}

    def _logprobs(self, prompt: Int32s, sample: Reply) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        text = self._token_text()
        if self.body.echo:
            return of_echo(sample, prompt.tolist(), text)
        return of_completion(sample.logprobs, text)

    def _token_text(self) -> TokenText:
        return partial(token_text, tokenizer_of(self.service))

    def _same(self) -> dict[str, Any]:
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": _KIND,
            "created": int(time.time()),
            "model": self.target.model,
            "system_fingerprint": FINGERPRINT,
        }


ENDPOINTS = for_agents(Endpoint("/v1/completions", ("POST",), completions, queued=True))
