"""The client for threads."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx2

from scalesim.checks import number, whole
from scalesim.client.pending import PendingHints, checked_model
from scalesim.client.replies import RemoteChoice, RemotePiece, RemoteReply, StreamReader, reply_from
from scalesim.client.wire import (
    RETRIED,
    Ask,
    RemotePrompt,
    as_chat,
    asked,
    base_of,
    choice_from,
    choose_ask,
    embed_ask,
    error_from,
    forget_ask,
    headers_of,
    name_of,
    parsed,
    path_of_agent,
    tick_ask,
    unreachable,
    vectors_of,
    wait_s,
)
from scalesim.errors import ConfigError, ScaleSimError

_log = logging.getLogger(__name__)


class Outbox:
    """Sends hints on a thread of its own: the first at once, and whatever comes while a request is
    under way with the next one, so that a thousand hints are few requests."""

    def __init__(self, post: Callable[[Ask], object]) -> None:
        self.pending = PendingHints()
        self._post = post
        self._sending = threading.Lock()  # held while hints are taken and sent: in their order
        self._wake = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._is_closed = self._has_failed = False

    def send_soon(self) -> None:
        """What waits is sent, and nobody waits for that."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="scalesim-hints", daemon=True)
            self._thread.start()
        self._wake.release()

    def flush(self) -> None:
        """Send what waits. Raises what a call raises."""
        with self._sending:
            while (ask := self.pending.take()) is not None:
                self._post(ask)

    def close(self) -> None:
        """The thread ends."""
        self._is_closed = True
        self._wake.release()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            if self._is_closed:
                return
            try:
                self.flush()
            except ScaleSimError as error:  # advice; the next call will say so louder
                if not self._has_failed:
                    _log.warning("hints were lost, and others may be: %s", error)
                self._has_failed = True


class Client:
    """A server at ``base_url`` (else ``SCALESIM_URL``, else this machine's port 8000), for threads.

    ``api_key``: else ``SCALESIM_API_KEY``. ``model``: which one to ask, where a server has several
    names or adapters. ``timeout``: seconds to wait for an answer. A request that finds the server
    full or starting is made again, ``max_retries`` times at most. ``transport``: another one of
    httpx2's. Close it, or use it as a context manager.

    Hints are sent behind the caller's back, many at a time; ``tick``, ``flush`` and ``close`` wait
    for those that were given before. Raises the errors of ``scalesim.errors``.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 2,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.base_url, self.model = base_of(base_url), checked_model(model)
        self._retries = whole("max_retries", max_retries, 0, 100, ConfigError)
        seconds = number("timeout", timeout, 0.0, error=ConfigError, above=True)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256)
        self._http = http = httpx2.Client(
            base_url=self.base_url,
            headers=headers_of(api_key),
            timeout=httpx2.Timeout(seconds, pool=None),
            limits=limits,
            transport=transport,
        )
        retries = self._retries
        self._outbox = Outbox(lambda ask: _send(http, ask, retries))
        self._finalizer = weakref.finalize(self, self._outbox.close)

    # -- agents ---------------------------------------------------------------------------------

    def agent(self, id: str | int, *, adapter: str | None = None) -> RemoteAgent:
        """The handle of agent ``id``. ``adapter``: the name of one that the server knows. Nothing
        is sent."""
        return RemoteAgent(self, name_of(id), checked_model(adapter))

    def fork(self, parent: str | int, child: str | int) -> RemoteAgent:
        """A new agent ``child`` that owns what ``parent`` owns."""
        name = name_of(child)
        self._json(Ask("POST", path_of_agent(name_of(parent), "fork"), {"child": name}))
        return self.agent(name)

    def forget(self, agents: Any) -> int:
        """``agents``, one or many, are gone with all that is kept for each; returns how many there
        were."""
        return int(self._json(forget_ask(agents))["forgotten"])

    def why(self, agent: str | int) -> str | None:
        """The cause of ``agent``'s last miss, in words; ``None`` if it missed nothing."""
        miss = self.view(agent)["last_miss"]
        return None if miss is None else str(miss["text"])

    def view(self, agent: str | int) -> dict[str, Any]:
        """Where ``agent``'s state lies, when it is used next, and why it was missing."""
        found: dict[str, Any] = self._json(Ask("GET", path_of_agent(name_of(agent))))
        return found

    # -- calls ----------------------------------------------------------------------------------

    def chat(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> RemoteReply:
        """The answer to ``messages``, of an agent that the server makes out by itself, if it
        can."""
        return self._call(as_chat(messages), options, None, self.model)

    def generate(self, prompt: RemotePrompt, **options: Any) -> RemoteReply:
        """The continuation of ``prompt``, as ``chat``."""
        return self._call(prompt, options, None, self.model)

    def embed(self, prompts: Sequence[str], **options: Any) -> list[list[float]]:
        """An embedding of each of ``prompts``, if the server makes any."""
        return vectors_of(self._json(embed_ask(prompts, self.model, options)))

    # -- hints and time -------------------------------------------------------------------------

    def expect(
        self,
        agents: str | int | Mapping[Any, float],
        ticks: float | None = None,
        *,
        at: float | None = None,
        confidence: float = 1.0,
        absolute: bool = False,
    ) -> None:
        """Say who is needed when, as ``Engine.expect`` does: ``agents`` in ``ticks`` from now, or
        ``at`` a time of the clock (``absolute``, where a mapping gives times), with a
        ``confidence``. Sent soon."""
        self._outbox.pending.expect(agents, ticks, at, confidence, absolute)
        self._outbox.send_soon()

    def wake(self, agent: str | int) -> None:
        """``agent`` is about to call, whatever was said before. Sent soon."""
        self._outbox.pending.wake(agent)
        self._outbox.send_soon()

    def tick(self, n: float = 1, *, to: float | None = None) -> float:
        """Move the simulation's clock ``n`` ticks on, or ``to`` a time; returns the time."""
        ask = tick_ask(n, to)
        self._outbox.flush()
        return float(self._json(ask)["tick"])

    def flush(self) -> None:
        """Send the hints that wait."""
        self._outbox.flush()

    def pin(self, agent: str | int, seconds: float) -> None:
        """The state of ``agent`` counts as needed now for ``seconds``."""
        self._json(Ask("POST", path_of_agent(name_of(agent), "pin"), {"seconds": seconds}))

    def release(self, agent: str | int) -> None:
        """``agent`` is pinned no more."""
        self._json(Ask("POST", path_of_agent(name_of(agent), "release"), {}))

    # -- its life -------------------------------------------------------------------------------

    def close(self) -> None:
        """Send the hints that wait, and close the connections. Idempotent."""
        if not self._finalizer.alive:
            return
        try:
            self._outbox.flush()
        finally:
            self._finalizer()
            self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- the wire -------------------------------------------------------------------------------

    def _call(
        self, prompt: RemotePrompt, options: Mapping[str, Any], agent: str | None, model: str | None
    ) -> RemoteReply:
        ask = asked(prompt, options, agent=agent, model=model)
        response = _send(self._http, ask, self._retries)
        return reply_from(parsed(response.content), response.headers)

    def _json(self, ask: Ask) -> Any:
        return parsed(_send(self._http, ask, self._retries).content)

    def _stream(self, ask: Ask) -> RemoteStream:
        return RemoteStream(_send(self._http, ask, self._retries, stream=True))


def _send(http: httpx2.Client, ask: Ask, retries: int, *, stream: bool = False) -> httpx2.Response:
    """The response, unless it is an error, which is raised."""
    for attempt in range(retries + 1):
        request = http.build_request(ask.method, ask.path, json=ask.body)
        try:
            response = http.send(request, stream=stream)
        except httpx2.TimeoutException as cause:
            raise error_from(504, {"error": {"message": f"no answer in time: {cause}"}}) from cause
        except httpx2.HTTPError as cause:
            if attempt < retries:
                time.sleep(wait_s(attempt, {}))
                continue
            raise unreachable(str(http.base_url), cause) from cause
        if response.is_success:
            return response
        response.read()
        if response.status_code not in RETRIED or attempt == retries:
            raise error_from(response.status_code, parsed(response.content))
        time.sleep(wait_s(attempt, response.headers))
    raise AssertionError("unreachable")


class RemoteAgent:
    """An agent of a server: a name, and its calls. Calls are stateless: the whole prompt every
    time. Options are the fields of ``SamplingParams``, and what OpenAI's API has beside them, by
    name; ``next_call_in``, ``sim_tick``, ``hint_confidence`` and ``more_calls`` say when the agent
    calls next."""

    __slots__ = ("_client", "_model", "adapter", "id")

    def __init__(self, client: Client, id: str, adapter: str | None) -> None:
        self._client, self.id, self.adapter = client, id, adapter
        self._model = client.model if adapter is None else adapter

    def chat(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> RemoteReply:
        """The assistant's answer to ``messages``; a string is one message of the user's."""
        return self._client._call(as_chat(messages), options, self.id, self._model)

    def generate(self, prompt: RemotePrompt, **options: Any) -> RemoteReply:
        """The continuation of ``prompt``: text, token ids or messages."""
        return self._client._call(prompt, options, self.id, self._model)

    def stream(self, prompt: RemotePrompt, **options: Any) -> RemoteStream:
        """``for piece in agent.stream(prompt)``: the continuation as it comes. Whoever stops
        reading cancels it, with ``close`` or at the end of a ``with``."""
        return self._client._stream(
            asked(prompt, options, agent=self.id, model=self._model, stream=True)
        )

    def choose(
        self, prompt: RemotePrompt, options: Sequence[str], *, by: str = "sum"
    ) -> RemoteChoice:
        """The likeliest of ``options`` as the continuation of ``prompt``, by the ``"sum"`` or the
        ``"mean"`` of log-probabilities."""
        ask = choose_ask(prompt, options, by, agent=self.id, model=self._model)
        return choice_from(self._client._json(ask))

    def expect(self, ticks: float | None = None, *, at: float | None = None) -> None:
        """This agent's next call: in ``ticks``, or ``at`` a time of the clock."""
        self._client.expect(self.id, ticks, at=at)

    def fork(self, id: str | int) -> RemoteAgent:
        """A new agent ``id`` with this one's memory."""
        return self._client.fork(self.id, id)

    def forget(self) -> None:
        """This agent is gone, with all that is kept for it."""
        self._client.forget(self.id)

    def __repr__(self) -> str:
        return f"RemoteAgent({self.id!r})"


class RemoteStream:
    """The pieces of a reply as they come; ``reply`` is there at the end."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response, self._lines = response, response.iter_lines()
        self._reader = StreamReader(response.headers)
        self.reply: RemoteReply | None = None

    def __iter__(self) -> Iterator[RemotePiece]:
        return self

    def __next__(self) -> RemotePiece:
        while not self._reader.is_over:
            try:
                line = next(self._lines)
            except (httpx2.HTTPError, StopIteration) as cause:
                self.close()
                raise error_from(500, {"error": {"message": "the stream broke off"}}) from cause
            piece = self._reader.take(line)
            if isinstance(piece, RemotePiece):
                self.reply = piece.reply
                return piece
            if piece is not None:
                self.close()
                raise error_from(500, piece)
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Stop reading: a call that has not ended is cancelled."""
        self._response.close()

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
