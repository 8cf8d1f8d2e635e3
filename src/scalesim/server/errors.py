"""Errors as clients of OpenAI's API expect them: a status, and a body that names field and limit.

What the caller did wrong is told in full; of what broke inside, the caller learns the request's id
only, because a message could carry a path or another caller's text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from scalesim.errors import (
    AdapterError,
    EngineClosedError,
    EngineFullError,
    NumericalError,
    PromptTooLongError,
    RequestCancelledError,
    RequestError,
    RequestTimeoutError,
    ScaleSimError,
    StructureError,
    UnknownAgentError,
)
from scalesim.server.schema.chat import ChatBody
from scalesim.server.schema.completions import CompletionBody

RETRY_S = "1"
_FIELD = re.compile(r"([a-z_]{1,40})(?=[\[=.: ])")
_KNOWN = frozenset(ChatBody.model_fields).union(CompletionBody.model_fields) - {"prompt"}
"""Fields by which a message may begin. In the engine's words, messages are a prompt as well."""
_INVALID, _SERVER = "invalid_request_error", "server_error"


class ApiError(ScaleSimError):
    """A request that is answered with ``status`` and OpenAI's error body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("retry-after", RETRY_S)

    @property
    def kind(self) -> str:
        """OpenAI's ``type``."""
        if self.status == 429:
            return "rate_limit_error"
        return _INVALID if self.status < 500 else _SERVER

    def body(self) -> dict[str, Any]:
        """What stands in the reply, or in the last event of a stream that fails."""
        fields = {
            "message": str(self),
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": fields}

    def response(self) -> JSONResponse:
        """The whole reply."""
        return JSONResponse(self.body(), self.status, self.headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The caller's mistake, in ``param``."""
    return ApiError(400, message, param=param, code=code)


_STATUS: tuple[tuple[type[Exception], int, str | None], ...] = (  # the first that fits
    (PromptTooLongError, 400, "context_length_exceeded"),
    (StructureError, 400, "invalid_structure"),
    (RequestError, 400, None),
    (UnknownAgentError, 404, "agent_not_found"),
    (EngineFullError, 429, "queue_full"),
    (RequestTimeoutError, 504, "deadline_exceeded"),
    (RequestCancelledError, 503, "cancelled"),
)
_BROKEN: tuple[tuple[type[Exception], int, str, str], ...] = (
    (EngineClosedError, 503, "engine_closed", "the engine has stopped"),
    (AdapterError, 503, "adapter_unusable", "the adapter cannot be used now"),  # where it was read
    (NumericalError, 500, "numerical_error", "the model gave logits that are not finite"),
)


def api_error(error: BaseException, request_id: str = "") -> ApiError:
    """``error`` as the caller sees it."""
    if isinstance(error, ApiError):
        return error
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            message = str(error)
            return ApiError(status, message, code=code, param=field_in(message))
    about = f" (request {request_id})" if request_id else ""
    for kind, status, code, message in _BROKEN:
        if isinstance(error, kind):
            return ApiError(status, message + about, code=code)
    return ApiError(500, f"something broke inside the server{about}", code="internal_error")


def is_ours(error: BaseException) -> bool:
    """Whether ``error`` is a fault of the server's, which belongs into its log."""
    return isinstance(error, AdapterError) or api_error(error).status == 500


def field_in(message: str) -> str | None:
    """The field that a message begins with."""
    found = _FIELD.match(message)
    if found is None:
        return None
    return found[1] if message[found.end()] in "=[." or found[1] in _KNOWN else None
