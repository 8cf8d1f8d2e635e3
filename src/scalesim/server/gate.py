"""The gate: what every request passes before anything is done for it.

Deny by default: a path needs the key unless the table of routes calls it open, whether there is
such a path or not. Keys are compared in constant time, by their digests, and all of them each
time. Works on ASGI's own scopes, so that a refusal costs little.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import b64decode
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scalesim.server.config import ServerConfig, is_loopback
from scalesim.server.errors import ApiError

_ASK_FOR_PASSWORD = 'Basic realm="ScaleSim: any name, and a key as the password"'
_ADMISSION, _STATUS = "scalesim.admission", "scalesim.status"
_MAX_ID_CHARS = 128
_VISIBLE = frozenset(range(0x21, 0x7F))


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that was let in. ``tenant``: the digest of its key where there are several, so that
    what one key's holders say is found by them alone."""

    request_id: str
    tenant: bytes | None = None
    is_admin: bool = False


def admission_of(request: HTTPConnection) -> Admitted:
    """What the gate found out about ``request``."""
    found: Admitted = request.scope[_ADMISSION]
    return found


def status_of(request: HTTPConnection) -> int | None:
    """The status of the reply, once a part of the reply is on its way."""
    found: int | None = request.scope.get(_STATUS)
    return found


class Gate:
    """ASGI middleware. ``open_paths`` need no key. ``browser_paths`` take it as a password as well:
    a browser sends that along whatever page asks for it, so these paths change nothing."""

    def __init__(
        self,
        app: ASGIApp,
        config: ServerConfig,
        open_paths: Collection[str],
        browser_paths: Collection[str] = (),
    ) -> None:
        self._app, self._limits = app, config.limits
        self._browser_paths = frozenset(browser_paths)
        self._open_paths = frozenset(open_paths)
        self._keys = [_digest(key.encode()) for key in config.api_keys]
        self._admin_keys = [_digest(key.encode()) for key in config.admin_keys]
        self._checks_host = not self._keys and is_loopback(config.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request_id = _request_id(scope)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-request-id", request_id.encode()))
                scope[_STATUS] = message["status"]
            await send(message)

        try:
            scope[_ADMISSION] = self._admit(scope, request_id)
        except ApiError as error:
            await error.response()(scope, receive, send_named)
            return
        await self._app(scope, receive, send_named)

    def _admit(self, scope: Scope, request_id: str) -> Admitted:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        limits = self._limits
        if len(headers) > limits.max_headers:
            raise ApiError(431, f"{len(headers)} headers; at most {limits.max_headers}")
        size = sum(len(name) + len(value) for name, value in headers)
        if size > limits.max_header_bytes:
            raise ApiError(431, f"headers of {size} bytes; at most {limits.max_header_bytes}")
        given = [value for name, value in headers if name == b"authorization"]
        in_browser = scope["path"] in self._browser_paths
        key = _key_in(given[0], in_browser) if len(given) == 1 else None
        digest = b"" if key is None else _digest(key)
        is_admin = _is_among(digest, self._admin_keys)
        has_key = _is_among(digest, self._keys)
        if self._checks_host and not _is_local([v for name, v in headers if name == b"host"]):
            raise ApiError(
                403,
                "the header Host names another machine; a server without a key answers this "
                "machine only",
                code="host_not_allowed",
            )
        if not (is_admin or has_key or not self._keys or scope["path"] in self._open_paths):
            raise ApiError(
                401,
                "no key that this server knows; send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": _ASK_FOR_PASSWORD if in_browser else "Bearer"},
            )
        has_tenants = len(self._keys) + len(self._admin_keys) > 1
        is_known = has_key or is_admin
        return Admitted(request_id, digest if has_tenants and is_known else None, is_admin)


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _key_in(value: bytes, in_browser: bool) -> bytes | None:
    """The key of an Authorization header: a bearer's, or the password of whatever user."""
    kind, _, credentials = value.partition(b" ")
    if kind.lower() == b"bearer":
        return credentials
    if kind.lower() == b"basic" and in_browser:
        with suppress(ValueError):
            return b64decode(credentials, validate=True).partition(b":")[2]
    return None


def _is_among(digest: bytes, known: Collection[bytes]) -> bool:
    """Takes as long for the first key as for the last, or for none."""
    found = False
    for key in known:
        found |= hmac.compare_digest(digest, key)
    return found


def _is_local(hosts: list[bytes]) -> bool:
    """A page of a foreign site whose name was pointed at this machine sends that name."""
    if not hosts:
        return True  # HTTP/1.0; no browser
    name = hosts[0].decode("latin-1")
    return len(hosts) == 1 and is_loopback(name[:-1] if name.endswith("]") else _bare(name))


def _bare(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _request_id(scope: Scope) -> str:
    """The client's, if it can be repeated as it is; nothing is ever looked up by it."""
    for name, value in scope["headers"]:
        if (
            name == b"x-request-id"
            and 0 < len(value) <= _MAX_ID_CHARS
            and _VISIBLE.issuperset(value)
        ):
            return str(value, "ascii")
    return f"req_{secrets.token_hex(16)}"
