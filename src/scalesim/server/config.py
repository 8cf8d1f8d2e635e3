"""The server's settings: names, keys and limits. Errors give the value, the rule and the knob."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from scalesim.checks import flag, number, place_of, reading, refuse, text, whole
from scalesim.config import Rule, setting, settle
from scalesim.errors import ConfigError

_MIB = 1 << 20
_PORTS = 65535
_SHORTEST_KEY = 8
_HINT_OF_KEY = "set SCALESIM_API_KEY, or give --api-key-file"


def _from(minimum: int, maximum: int = 2**40) -> Rule:
    return partial(whole, minimum=minimum, maximum=maximum, error=ConfigError)


def _seconds(name: str, value: object) -> float:
    return number(name, value, 0.0, 86_400.0, ConfigError, above=True)


def _names(name: str, value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not names:
        raise ConfigError(f"{name} is empty; the model needs one name at least")
    return tuple(text(name, served, ConfigError, empty=False) for served in names)


def _keys(name: str, value: Any) -> tuple[str, ...]:
    keys = (value,) if isinstance(value, str) else tuple(value)
    for key in keys:
        if not isinstance(key, str) or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(f"{name}: a key must be printable ASCII without spaces")
        if len(key) < _SHORTEST_KEY:
            raise ConfigError(
                f"{name}: a key of {len(key)} characters can be guessed; give it "
                f"{_SHORTEST_KEY} or more"
            )
    return keys


def _places(name: str, value: Any) -> Mapping[str, str | Path]:
    with reading(name, ConfigError):
        given = dict(value)
    return {
        text(f"{name}: a name", each, ConfigError, empty=False): place_of(name, place, ConfigError)
        for each, place in given.items()
    }


def _host(name: str, value: object) -> str:
    return text(name, value, ConfigError, empty=False)


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one request, and all of them together, may ask of the server.

    ``max_open_requests`` and ``max_open_bytes`` bound the requests that are queued or running, by
    their number and by the bytes of their bodies; what is above them is refused with 429.
    ``max_body_parts`` bounds the braces, brackets and colons of a body, also those in texts: bodies
    with more would stop the event loop while they are parsed.
    ``receive_timeout``: seconds in which headers and body must have arrived. ``send_timeout``:
    seconds that a reader may leave ``max_send_bytes`` unread. ``start_timeout``: seconds that a
    call waits for the model to be loaded. ``request_timeout``: seconds after
    which a call ends with 504, unless the request asks for fewer. ``drain_timeout``: seconds that
    open calls have to end when the server is asked to stop. ``keep_alive``: seconds after which a
    stream that has nothing to say sends a comment, so that nobody takes the stream for dead.
    Raises ``ConfigError``.
    """

    max_body_bytes: int = setting(4 * _MIB, _from(1))
    max_body_parts: int = setting(65_536, _from(1))
    max_header_bytes: int = setting(32 << 10, _from(1))
    max_headers: int = setting(100, _from(1))
    max_open_requests: int = setting(16_384, _from(1))
    max_open_bytes: int = setting(512 * _MIB, _from(1))
    max_send_bytes: int = setting(256 << 10, _from(1))
    max_n: int = setting(16, _from(1))
    max_prompts: int = setting(256, _from(1))  # of a request to /v1/completions or /v1/embeddings
    max_stops: int = setting(64, _from(1))
    max_stop_chars: int = setting(1024, _from(1))
    receive_timeout: float = setting(10.0, _seconds)
    send_timeout: float = setting(30.0, _seconds)
    start_timeout: float = setting(50.0, _seconds)
    request_timeout: float = setting(3600.0, _seconds)
    drain_timeout: float = setting(30.0, _seconds)
    keep_alive: float = setting(10.0, _seconds)

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """``names``: what clients may call the model; the first one is what replies call it.
    ``api_keys``: any of them opens every route but the administrative ones, which only exist if
    there are ``admin_keys``. ``adapters``: folders by name, the only ones that may be added while
    the server runs. ``embeddings``: serve ``/v1/embeddings``. Raises ``ConfigError``, also
    for a ``host`` that other machines can reach without a key.
    """

    names: tuple[str, ...] = setting(("model",), _names)
    host: str = setting("127.0.0.1", _host)
    port: int = setting(8000, _from(0, _PORTS))
    api_keys: tuple[str, ...] = setting((), _keys)
    admin_keys: tuple[str, ...] = setting((), _keys)
    embeddings: bool = setting(False, partial(flag, error=ConfigError))
    adapters: Mapping[str, str | Path] = setting((), _places)  # type: ignore[arg-type]
    limits: ServerLimits = field(default_factory=ServerLimits)

    def __post_init__(self) -> None:
        settle(self)
        if not self.api_keys and not is_loopback(self.host):
            refuse(
                "host",
                self.host,
                f"can be reached from other machines, and there is no key: {_HINT_OF_KEY}, or "
                "leave host at 127.0.0.1",
                ConfigError,
            )
        if set(self.api_keys) & set(self.admin_keys):
            raise ConfigError("admin_keys: a key is also one of api_keys; make another one")
        if taken := sorted(set(self.names) & set(self.adapters)):
            refuse("adapters", taken[0], "is a name of the model too: choose another", ConfigError)

    def __repr__(self) -> str:  # keys belong into no log
        return (
            f"ServerConfig(names={self.names!r}, host={self.host!r}, port={self.port}, "
            f"{len(self.api_keys)} keys, {len(self.admin_keys)} admin keys, limits={self.limits})"
        )


@lru_cache
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. Of names, ``localhost`` alone is known to be
    so."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
