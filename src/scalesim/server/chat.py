"""``/v1/chat/completions``: messages answered. What messages, tools and formats mean is
``scalesim.chat``'s; the form of the reply is here."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from scalesim.batch_options import LogProbs
from scalesim.chat.chat_request import ChatRequest, ChatTurn, as_turn
from scalesim.chat.reply import ChatDelta, ChatReply, ToolCallDelta
from scalesim.chat.stream import PieceReader
from scalesim.core import Int32s
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.requests.stream import AsyncReplyStream
from scalesim.server.body import body_bytes, read
from scalesim.server.endpoint import Endpoint, for_agents
from scalesim.server.envelope import carry
from scalesim.server.errors import bad
from scalesim.server.generation import (
    CallTarget,
    engine_request,
    room_for,
    sampling_of,
    target_of,
    usage_of,
    usage_of_samples,
    whole_reply,
)
from scalesim.server.leaving import while_connected
from scalesim.server.logprobs import of_chat
from scalesim.server.schema.chat import ChatBody
from scalesim.server.service import Service
from scalesim.server.sse import EventStream
from scalesim.server.streams import CHAT_TEXT, FINGERPRINT, Chunks, merged
from scalesim.server.tokens import token_text, tokenizer_of


async def chat(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/chat/completions``."""
    body, raw = await read(service, request, ChatBody)
    target = target_of(service, request, raw)
    turn, asked = await _prepared(service, request, body, raw, target)
    await carry(service, request, raw, target.caller)
    answer = ChatAnswer(service, target, body, turn)
    if body.stream:
        streams = service.metrics.timed(await service.engine.stream_samples_async(asked))
        return EventStream(answer.events(streams), service.limits.keep_alive, target.headers)
    async with while_connected(request.receive):
        reply = await service.engine.generate_async(asked)
    return await whole_reply(service, [reply], partial(answer.whole, reply), target.headers)


async def _prepared(
    service: Service,
    request: HttpRequest,
    body: ChatBody,
    raw: Mapping[str, Any],
    target: CallTarget,
) -> tuple[ChatTurn, Request]:
    """How the answer is read, and what the engine is asked."""
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    model = service.engine.model
    params = sampling_of(service, body, raw, max_tokens=1, **_logprobs_of(body))
    asked = ChatRequest(
        body.messages,
        params=params,
        tools=body.tools,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=body.response_format,
        enable_thinking=body.enable_thinking,
        chat_template_kwargs=body.chat_template_kwargs or {},
    )

    def render() -> tuple[ChatTurn, Int32s]:
        turn = as_turn(asked, model, params)
        return turn, model.token_ids(turn.request.prompt)

    turn, tokens = await service.off_loop(body_bytes(request), render)
    room = room_for(service, target, len(tokens), wanted)
    params = replace(turn.request.params, max_tokens=room)
    return turn, engine_request(service, target, body, tokens, params)


def _logprobs_of(body: ChatBody) -> dict[str, Any]:
    if body.top_logprobs is not None and not body.logprobs:
        raise bad("top_logprobs needs logprobs: true", "top_logprobs")
    return {"logprobs": body.top_logprobs or 0} if body.logprobs else {}


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """The reply to one body, whole or in chunks."""

    service: Service
    target: CallTarget
    body: ChatBody
    turn: ChatTurn

    async def events(self, streams: Sequence[AsyncReplyStream]) -> AsyncIterator[bytes]:
        """The chunks of ``streams``, the samples of one prompt."""
        chunks = Chunks(self._same("chat.completion.chunk"), self.body.wants_usage, CHAT_TEXT)
        for index in range(len(streams)):
            yield chunks.choice(_choice(index, {"role": "assistant", "content": ""}))
        readers = [PieceReader(self.turn) for _ in streams]
        replies: dict[int, Reply] = {}
        async for index, piece in merged(streams):
            read = readers[index].read(piece)
            delta, scores = _delta(read), self._logprobs(piece.logprobs)
            if not scores and delta.keys() == {"content"}:
                yield chunks.text(index, read.content)
            elif delta or scores:
                yield chunks.choice(_choice(index, delta, scores))
            if read.reply is not None:
                replies[index] = read.reply
                yield chunks.choice(_choice(index, {}, reason=read.reply.finish_reason))
        if self.body.wants_usage:
            ordered = [replies[index] for index in sorted(replies)]
            yield chunks.usage(usage_of_samples(ordered, len(ordered)))

    def whole(self, found: Reply) -> dict[str, Any]:
        """The reply at once."""
        reply = self.turn.reply(found)
        samples = [reply, *(sample for sample in reply.others if isinstance(sample, ChatReply))]
        choices = [
            {
                "index": index,
                "message": {**sample.message, "refusal": None},
                "logprobs": self._logprobs(sample.logprobs),
                "finish_reason": sample.finish_reason,
            }
            for index, sample in enumerate(samples)
        ]
        same = self._same("chat.completion")
        return {**same, "choices": choices, "usage": usage_of([reply])}

    def _logprobs(self, found: LogProbs | None) -> dict[str, Any] | None:
        if found is None or not len(found):
            return None
        return of_chat(found, partial(token_text, tokenizer_of(self.service)))

    def _same(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.target.model,
            "system_fingerprint": FINGERPRINT,
        }


def _choice(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _delta(gained: ChatDelta) -> dict[str, Any]:
    """What an answer gained, as OpenAI's clients put it together."""
    delta: dict[str, Any] = {}
    if gained.content:
        delta["content"] = gained.content
    if gained.reasoning:
        delta["reasoning_content"] = gained.reasoning
    if gained.tool_calls:
        delta["tool_calls"] = [_tool_call(call) for call in gained.tool_calls]
    return delta


def _tool_call(gained: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": gained.arguments}
    if gained.name is None:
        return {"index": gained.index, "function": function}
    return {
        "index": gained.index,
        "id": gained.id,
        "type": "function",
        "function": {"name": gained.name, **function},
    }


ENDPOINTS = for_agents(Endpoint("/v1/chat/completions", ("POST",), chat, queued=True))
