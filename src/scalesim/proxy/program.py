"""Running a program against the proxy: a server thread, the environment, the program's end."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from scalesim.errors import ConfigError

BASE_URLS = (
    "OPENAI_BASE_URL",  # the SDK, and what is built on it: TinyTroupe, LangChain, AgentScope
    "OPENAI_API_BASE",  # litellm: mesa-llm, Sotopia
    "OPENAI_API_BASE_URL",  # CAMEL: OASIS
    "OPENAI_COMPATIBILITY_API_BASE_URL",
    "VLLM_BASE_URL",
    "AGENTSOCIETY_LLM_API_BASE",
)
"""What clients read their server's URL from."""
KEYS = ("OPENAI_API_KEY", "AGENTSOCIETY_LLM_API_KEY", "VLLM_API_KEY")
"""What clients refuse to start without. One that is set stays as it is."""
_NO_KEY = "none"
_LOOPBACK = "127.0.0.1"


def environment(url: str, base: Mapping[str, str]) -> dict[str, str]:
    """``base`` with every URL at ``url`` and no proxy between, for a program that is to run
    unmodified."""
    found = dict(base) | dict.fromkeys(BASE_URLS, url)
    for name in KEYS:
        found.setdefault(name, found.get("OPENAI_API_KEY", _NO_KEY))
    for name in ("NO_PROXY", "no_proxy"):
        found[name] = ",".join(filter(None, [found.get(name), _LOOPBACK, "localhost"]))
    return found


@contextmanager
def served(make_app: Callable[[], Any]) -> Iterator[str]:
    """Serve an ASGI app on a free port of the loopback interface; yields its root URL. The app is
    made, runs and ends on a thread of its own, with its lifespan."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind((_LOOPBACK, 0))
        port = listening.getsockname()[1]
        config = uvicorn.Config(
            make_app, factory=True, log_level="error", access_log=False, lifespan="on",
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listening]}, name="scalesim proxy", daemon=True
        )
        thread.start()
        try:
            yield f"http://{_LOOPBACK}:{port}"
        finally:
            server.should_exit = True
            thread.join()


def run_program(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run ``command`` to its end and return its exit code, 128 and more for a signal's. Ctrl-C
    reaches the program as well; what it does with that is its own affair. Raises ``ConfigError`` if
    it cannot be started."""
    try:
        program = subprocess.Popen(command, env=dict(env))
    except OSError as error:
        raise ConfigError(f"{command[0]!r} cannot be run: {error.strerror}") from None
    while True:
        try:
            code = program.wait()
        except KeyboardInterrupt:
            continue
        return code if code >= 0 else 128 - code
