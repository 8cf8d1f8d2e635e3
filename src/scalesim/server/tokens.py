"""``/tokenize`` and ``/detokenize``: the model's tokens, as vLLM's routes of these names."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from scalesim.model.text.tokenizer import Tokenizer
from scalesim.requests.prompt import ChatPrompt, Prompt
from scalesim.server.body import body_bytes, read
from scalesim.server.endpoint import Endpoint
from scalesim.server.errors import bad
from scalesim.server.large_json import LargeJson
from scalesim.server.schema.tokens import DetokenizeBody, TokenizeBody
from scalesim.server.service import Service


async def tokenize(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /tokenize``: the ids of a text, or of messages as a chat has them."""
    body, _ = await read(service, request, TokenizeBody)
    if (body.prompt is None) == (body.messages is None):
        raise bad("give either prompt or messages", "prompt")
    model = service.engine.model
    tokenizer = tokenizer_of(service)

    def answer() -> Response:
        if body.prompt is not None:
            add = body.add_special_tokens is not False
            ids = tokenizer.encode(body.prompt, add_special_tokens=add)
        else:
            prompt: Prompt = ChatPrompt(body.messages or [])
            ids = model.token_ids(prompt).tolist()
        told: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": model.max_len}
        if body.return_token_strs:
            told["token_strs"] = [token_text(tokenizer, token) for token in ids]
        return LargeJson(told)

    return await service.off_loop(body_bytes(request), answer)


async def detokenize(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /detokenize``: the text of ids."""
    body, _ = await read(service, request, DetokenizeBody)
    tokenizer, size = tokenizer_of(service), service.engine.model.vocab_size

    def answer() -> Response:
        wrong = next((token for token in body.tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise bad(f"token id {wrong} is outside the vocabulary, 0 to {size - 1}", "tokens")
        return LargeJson({"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)})

    return await service.off_loop(body_bytes(request), answer)


def tokenizer_of(service: Service) -> Tokenizer:
    """The model's tokenizer. Raises 400 where there is none."""
    found = service.engine.model.tokenizer
    if found is None:
        raise bad("this model has no tokenizer; send token ids")
    return found


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """One token as text; of a part of a character, what stands for it."""
    return tokenizer.decode([token], skip_special_tokens=False)


ENDPOINTS = [
    Endpoint("/tokenize", ("POST",), tokenize, queued=True),
    Endpoint("/detokenize", ("POST",), detokenize, queued=True),
]
