"""What goes over the wire: calls as requests of HTTP, and the errors that come back. Knows neither
threads nor event loops, and opens no connection."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

from scalesim import errors
from scalesim.checks import number, refuse, text, whole
from scalesim.client.replies import RemoteChoice
from scalesim.errors import ConfigError, RequestError, ScaleSimError

RemotePrompt: TypeAlias = "str | Sequence[int] | Sequence[Mapping[str, Any]]"
"""Text, token ids, or messages of a chat."""
DEFAULT_URL = "http://127.0.0.1:8000"
RETRIED = (429, 503)
_MAX_WAIT_S = 30.0
_BY_CODE: dict[str, type[ScaleSimError]] = {
    "context_length_exceeded": errors.PromptTooLongError,
    "invalid_structure": errors.StructureError,
    "agent_not_found": errors.UnknownAgentError,
    "model_not_found": errors.AdapterError,
    "adapter_unusable": errors.AdapterError,
    "queue_full": errors.EngineFullError,
    "deadline_exceeded": errors.RequestTimeoutError,
    "cancelled": errors.RequestCancelledError,
    "engine_closed": errors.EngineClosedError,
    "numerical_error": errors.NumericalError,
}
_BY_STATUS: dict[int, type[ScaleSimError]] = {
    401: ConfigError,
    403: ConfigError,
    408: errors.RequestTimeoutError,
    429: errors.EngineFullError,
    503: errors.EngineClosedError,
    504: errors.RequestTimeoutError,
}


class Ask(NamedTuple):
    """A request: ``body`` is sent as JSON, unless it is ``None``."""

    method: str
    path: str
    body: dict[str, Any] | None = None


def base_of(url: str | None) -> str:
    """The server's address without ``/v1``: given, or of ``SCALESIM_URL``."""
    given = text("base_url", url or os.environ.get("SCALESIM_URL") or DEFAULT_URL, ConfigError)
    if not given.startswith(("http://", "https://")):
        refuse("base_url", given, f"must begin with http://, as in {DEFAULT_URL}", ConfigError)
    return given.rstrip("/").removesuffix("/v1")


def headers_of(api_key: str | None) -> dict[str, str]:
    """With the key that is given, or that of ``SCALESIM_API_KEY``."""
    key = api_key or os.environ.get("SCALESIM_API_KEY")
    return {} if not key else {"Authorization": f"Bearer {text('api_key', key, ConfigError)}"}


def name_of(agent: object) -> str:
    """An agent's name: a whole number is its digits."""
    if isinstance(agent, str):
        return text("agent", agent, empty=False)
    return str(whole("agent", agent))


def path_of_agent(agent: str, verb: str = "") -> str:
    """The URL of an agent, or of something that is asked for the agent."""
    return f"/v1/agents/{quote(agent, safe='')}{verb and '/' + verb}"


def asked(
    prompt: RemotePrompt,
    options: Mapping[str, Any],
    *,
    agent: str | None,
    model: str | None,
    stream: bool = False,
) -> Ask:
    """A call: messages go to the chat route, text and token ids to the other."""
    body = {name: value for name, value in options.items() if value is not None}
    if agent is not None:
        body["agent_id"] = body["session_id"] = agent  # vLLM with the plug-in knows the latter
    if model is not None:
        body["model"] = model
    if stream:
        body["stream"], body["stream_options"] = True, {"include_usage": True}
    is_chat = not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], Mapping)
    structure = body.pop("json_schema", None)
    if structure is not None:
        schema = json.loads(structure) if isinstance(structure, str) else structure
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": schema},
        }
    if is_chat:
        if isinstance(count := body.get("logprobs"), int) and not isinstance(count, bool):
            body["logprobs"], body["top_logprobs"] = True, count
        body["messages"] = list(prompt)
        return Ask("POST", "/v1/chat/completions", body)
    body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    return Ask("POST", "/v1/completions", body)


def as_chat(messages: str | Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """A string is one message of the user's."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not messages or not isinstance(messages[0], Mapping):
        raise RequestError("chat() takes messages, or a string; generate() takes token ids")
    return messages


def tick_ask(n: float, to: float | None) -> Ask:
    """Move the clock."""
    if to is None:
        return Ask("POST", "/v1/sim/tick", {"n": number("n", n, 0.0, above=True)})
    if n != 1:
        raise RequestError(f"tick({n}, to={to}): give a number of ticks or a time")
    return Ask("POST", "/v1/sim/tick", {"to": number("to", to, 0.0)})


def forget_ask(agents: object) -> Ask:
    """``agents`` are gone: one or many."""
    if isinstance(agents, (str, int)):
        names = [name_of(agents)]
    elif isinstance(agents, Iterable):
        names = [name_of(agent) for agent in agents]
    else:
        refuse("agents", agents, "must be an agent, or a list of agents")
    return Ask("POST", "/v1/agents/forget", {"agents": names})


def embed_ask(prompts: Sequence[str], model: str | None, options: Mapping[str, Any]) -> Ask:
    """Embed ``prompts``."""
    body = {"input": list(prompts), **options}
    return Ask("POST", "/v1/embeddings", body if model is None else {**body, "model": model})


def vectors_of(body: Mapping[str, Any]) -> list[list[float]]:
    """The embeddings, in the order of the prompts."""
    rows = sorted(body["data"], key=lambda row: int(row["index"]))
    return [list(row["embedding"]) for row in rows]


def choose_ask(
    prompt: RemotePrompt, options: Sequence[str], by: str, *, agent: str | None, model: str | None
) -> Ask:
    """Choose among ``options``."""
    given = asked(prompt, {}, agent=agent, model=model).body or {}
    return Ask("POST", "/v1/choose", {**given, "options": list(options), "by": by})


def choice_from(body: Mapping[str, Any]) -> RemoteChoice:
    """The choice that was made."""
    scores = tuple(float(score["logprob"]) for score in body["scores"])
    return RemoteChoice(str(body["option"]), int(body["index"]), scores)


def error_from(status: int, body: object) -> ScaleSimError:
    """What a server's error is in process."""
    told = body.get("error") if isinstance(body, Mapping) else None
    told = told if isinstance(told, Mapping) else {}
    message = str(told.get("message") or f"the server answered with status {status}")
    kind = _BY_CODE.get(str(told.get("code")))
    if kind is None:
        default = RequestError if 400 <= status < 500 else errors.InternalError
        kind = _BY_STATUS.get(status, default)
    return kind(message)


def unreachable(url: str, cause: object) -> ScaleSimError:
    """The error for a server that does not answer."""
    return errors.EngineClosedError(
        f"no server answers at {url} ({type(cause).__name__}: {cause}); start it with scalesim "
        "serve, or give base_url="
    )


def parsed(raw: bytes) -> Any:
    """The JSON of a reply; ``None`` where it is none."""
    try:
        return json.loads(raw)
    except ValueError:
        return None


def wait_s(attempt: int, headers: Mapping[str, str]) -> float:
    """Seconds before another try: what the server says, or twice as long each time."""
    told = headers.get("retry-after", "")
    wait = float(told) if told.replace(".", "", 1).isdecimal() else 0.5 * 2**attempt
    return min(wait, _MAX_WAIT_S)
