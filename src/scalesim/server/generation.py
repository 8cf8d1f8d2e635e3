"""From a body to requests, and from replies to OpenAI's fields: what chat and plain completions
share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from scalesim.checks import shown, text, whole
from scalesim.core import Int32s
from scalesim.requests.prompt import Prompt
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.check_params import MAX_BIASES
from scalesim.sampling.params import SamplingParams
from scalesim.server.config import ServerLimits
from scalesim.server.errors import ApiError, bad
from scalesim.server.hints import begin_call, salt_of
from scalesim.server.identity import Caller
from scalesim.server.large_json import LargeJson
from scalesim.server.schema.sampling import ENGINE_FIELDS, REFUSED, SamplingBody
from scalesim.server.service import Service


@dataclass(frozen=True, slots=True)
class CallTarget:
    """Whom a request is for: the name that it gave the model, the adapter that this name means,
    and who calls."""

    model: str
    adapter: str | None
    caller: Caller

    def cache_salt(self, given: str | None) -> str | None:
        """What tells the state of this request from others': the key, and what the client gave."""
        return salt_of(self.caller.scope, given)

    @property
    def headers(self) -> dict[str, str]:
        """What the reply says of the caller."""
        return self.caller.headers


def target_of(service: Service, request: HttpRequest, body: Mapping[str, Any]) -> CallTarget:
    """Whom ``body`` is for. Raises 404 for a model that is not served."""
    name = body.get("model")
    model, adapter, alias = known_model(service, service.config.names[0] if name is None else name)
    return CallTarget(model, adapter, begin_call(service, request, body, alias))


def known_model(service: Service, name: str) -> tuple[str, str | None, str | None]:
    """The model's name, the adapter that it means, and the agent of an alias ``model@agent``.
    Raises 404."""
    base, sign, alias = name.partition("@")
    for known, agent in ((name, None), (base, alias if sign and alias else None)):
        if known in service.config.names:
            return known, None, agent
        if known in service.engine.adapters:
            return known, known, agent
    names = [*service.config.names, *(adapter.name for adapter in service.engine.adapters.list())]
    raise ApiError(
        404,
        f"model {shown(name)} is not served here; there are: {', '.join(map(shown, names[:8]))}",
        param="model",
        code="model_not_found",
    )


def sampling_of(
    service: Service, body: SamplingBody, raw: Mapping[str, Any], **given_by_route: Any
) -> SamplingParams:
    """How the body's tokens are drawn; ``given_by_route`` are fields that only one route has.
    Raises 400 for what is not served, or above a limit."""
    limits = service.limits
    for field, why in REFUSED.items():
        if raw.get(field) not in (None, False):
            raise bad(f"{field}: {why}", field, "unsupported")
    if body.n is not None:
        whole("n", body.n, 1, limits.max_n)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad(
            f"best_of={body.best_of} must be n, {body.n or 1}; all samples are returned", "best_of"
        )
    given = {name: getattr(body, name) for name in ENGINE_FIELDS}
    params = {name: value for name, value in given.items() if value is not None}
    if params.get("top_k") == -1:  # vLLM's way to keep every token
        params["top_k"] = 0
    if body.stop is not None:
        params["stop"] = _stops(body.stop, limits)
    if body.logit_bias is not None:
        params["logit_bias"] = _biases(body.logit_bias)
    return service.engine.sampling(**params, **given_by_route)


def engine_request(
    service: Service, target: CallTarget, body: SamplingBody, tokens: Int32s, params: SamplingParams
) -> Request:
    """What the engine is asked, for the agent that calls; an agent whom nobody knew is made."""
    limit_s = service.limits.request_timeout
    agent, engine = target.caller.agent, service.engine
    if agent is not None and target.adapter not in (None, engine.agent(agent).adapter):
        engine.agent(agent, adapter=target.adapter)  # it is loaded ahead of the agent's next call
    return Request(
        tokens,
        agent=agent,
        params=params,
        timeout=limit_s if body.timeout is None else min(body.timeout, limit_s),
        priority=body.priority or 0,
        more_calls=body.more_calls,
        cache_salt=target.cache_salt(body.cache_salt),
        adapter=target.adapter or "",
    )


def room_for(service: Service, target: CallTarget, num_prompt: int, wanted: int | None) -> int:
    """``max_tokens``: those that are wanted, or all that fit behind the prompt."""
    if wanted is not None:
        return wanted
    engine = service.engine
    max_len = engine.model.max_len
    if target.adapter is not None:
        memory = engine.parts.memory
        pages = memory.num_pages - engine.adapters.num_pages(target.adapter)
        max_len = min(max_len, pages * memory.block_size)
    return max(1, max_len - num_prompt)


async def whole_reply(
    service: Service,
    replies: Sequence[Reply],
    make: Callable[[], dict[str, Any]],
    headers: Mapping[str, str],
) -> Response:
    """The body that ``make`` makes of ``replies``, as JSON: made on a thread where there are
    log-probabilities of many tokens."""
    samples = [sample for reply in replies for sample in reply.samples]
    num_scores = sum(
        scores.top_ids.size + len(scores)
        for sample in samples
        for scores in (sample.logprobs, sample.prompt_logprobs)
        if scores is not None
    )
    return await service.off_loop(num_scores, lambda: LargeJson(make(), headers=dict(headers)))


def usage_of_samples(samples: Sequence[Reply], num_samples: int) -> dict[str, Any]:
    """OpenAI's counts of replies that were streamed apart, ``num_samples`` for each prompt."""
    first = range(0, len(samples), num_samples)
    return usage_of(
        [replace(samples[i], others=tuple(samples[i + 1 : i + num_samples])) for i in first]
    )


def usage_of(replies: Sequence[Reply]) -> dict[str, Any]:
    """OpenAI's counts. ``replies`` are of one prompt each, with all samples of it."""
    prompt = sum(reply.usage.prompt_tokens for reply in replies)
    cached = sum(reply.usage.cached_tokens for reply in replies)
    output = sum(sample.usage.output_tokens for reply in replies for sample in reply.samples)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def prompts_of(service: Service, field: str, given: Any) -> list[Prompt]:
    """The prompts in ``field`` of a body. Raises 400 for what lists none, or too many."""
    if isinstance(given, str) or (isinstance(given, list) and given and _is_number(given[0])):
        return [given]
    if not isinstance(given, list) or not given:
        rule = "must be a text, a list of token ids, or a list of either, and not empty"
        raise bad(f"{field}={shown(given)} {rule}", field)
    if len(given) > service.limits.max_prompts:
        raise bad(f"{field} lists {len(given)}, at most {service.limits.max_prompts}", field)
    for prompt in given:
        if not isinstance(prompt, (str, list)):
            raise bad(f"{field} has {shown(prompt)}, which is no text and no list of ids", field)
    return given


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _stops(given: object, limits: ServerLimits) -> list[str]:
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list):
        raise bad(f"stop={shown(given)} must be a string or a list of strings", "stop")
    if len(stops) > limits.max_stops:
        raise bad(f"stop lists {len(stops)} strings, at most {limits.max_stops}", "stop")
    found = [text("stop", stop, empty=False) for stop in stops]
    longest = max(map(len, found), default=0)
    if longest > limits.max_stop_chars:
        raise bad(f"stop has {longest} characters, at most {limits.max_stop_chars}", "stop")
    return found


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    """OpenAI's keys are token ids as text."""
    if len(given) > MAX_BIASES:
        raise bad(f"logit_bias names {len(given)} tokens, at most {MAX_BIASES}", "logit_bias")
    wrong = next((key for key in given if not key.isdecimal() or len(key) > 10), None)
    if wrong is not None:
        raise bad(f"logit_bias names {shown(wrong)}; its keys must be token ids", "logit_bias")
    return {int(key): bias for key, bias in given.items()}
