"""``/v1/choose``: the likeliest of several continuations, by the model's log-probabilities.

What a simulation asks with "answer (a), (b) or (c)" is one call here, and its answer is always one
of the options.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from scalesim.server.body import body_bytes, read
from scalesim.server.endpoint import Endpoint, for_agents
from scalesim.server.errors import bad
from scalesim.server.generation import engine_request, sampling_of, target_of
from scalesim.server.leaving import while_connected
from scalesim.server.schema.sampling import SamplingBody
from scalesim.server.service import Service

MAX_OPTIONS = 256


class ChooseBody(SamplingBody):
    """``messages`` or ``prompt``, and the ``options`` as text. Of the sampling fields none counts
    but ``timeout`` and ``priority``."""

    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    options: list[str]
    by: str = "sum"


async def choose(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/choose``."""
    body, raw = await read(service, request, ChooseBody)
    if (body.messages is None) == (body.prompt is None):
        raise bad("give messages or prompt, one of the two", "prompt")
    if len(body.options) > MAX_OPTIONS:
        raise bad(f"options lists {len(body.options)}, at most {MAX_OPTIONS}", "options")
    target = target_of(service, request, raw)
    prompt: Any = body.prompt if body.messages is None else body.messages
    model = service.engine.model
    tokens = await service.off_loop(body_bytes(request), partial(model.token_ids, prompt))
    params = sampling_of(service, body, raw, max_tokens=1)
    asked = engine_request(service, target, body, tokens, params)
    async with while_connected(request.receive):
        choice = await service.engine.choose_async(asked, body.options, by=body.by)  # type: ignore[arg-type]
    return JSONResponse(
        {
            "object": "choice",
            "model": target.model,
            "option": choice.option,
            "index": choice.index,
            "scores": [
                {
                    "option": score.option,
                    "logprob": score.logprob,
                    "mean_logprob": score.mean_logprob,
                }
                for score in choice.scores
            ],
        },
        headers=target.headers,
    )


ENDPOINTS = for_agents(Endpoint("/v1/choose", ("POST",), choose, queued=True))
