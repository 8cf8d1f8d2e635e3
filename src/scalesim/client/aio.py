"""The client for event loops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
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


class AsyncClient:
    """``Client`` for one event loop: its methods are coroutines, but for ``agent``, ``expect`` and
    ``wake``, which send nothing themselves. Parameters are ``Client``'s; ``transport`` is an
    asynchronous one. Use it as an asynchronous context manager, or ``await`` its ``close``."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 2,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url, self.model = base_of(base_url), checked_model(model)
        self._retries = whole("max_retries", max_retries, 0, 100, ConfigError)
        seconds = number("timeout", timeout, 0.0, error=ConfigError, above=True)
        self._http = httpx2.AsyncClient(
            base_url=self.base_url,
            headers=headers_of(api_key),
            timeout=httpx2.Timeout(seconds, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=256),
            transport=transport,
        )
        self._pending = PendingHints()
        self._sending = asyncio.Lock()  # held while hints are taken and sent: in their order
        self._task: asyncio.Task[None] | None = None
        self._has_failed = False

    # -- agents ---------------------------------------------------------------------------------

    def agent(self, id: str | int, *, adapter: str | None = None) -> AsyncRemoteAgent:
        """The handle of agent ``id``. ``adapter``: the name of one that the server knows. Nothing
        is sent."""
        return AsyncRemoteAgent(self, name_of(id), checked_model(adapter))

    async def fork(self, parent: str | int, child: str | int) -> AsyncRemoteAgent:
        """A new agent ``child`` that owns what ``parent`` owns."""
        name = name_of(child)
        await self._json(Ask("POST", path_of_agent(name_of(parent), "fork"), {"child": name}))
        return self.agent(name)

    async def forget(self, agents: Any) -> int:
        """``agents``, one or many, are gone with all that is kept for each; returns how many there
        were."""
        return int((await self._json(forget_ask(agents)))["forgotten"])

    async def why(self, agent: str | int) -> str | None:
        """The cause of ``agent``'s last miss, in words; ``None`` if it missed nothing."""
        miss = (await self.view(agent))["last_miss"]
        return None if miss is None else str(miss["text"])

    async def view(self, agent: str | int) -> dict[str, Any]:
        """Where ``agent``'s state lies, when it is used next, and why it was missing."""
        found: dict[str, Any] = await self._json(Ask("GET", path_of_agent(name_of(agent))))
        return found

    # -- calls ----------------------------------------------------------------------------------

    async def chat(
        self, messages: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> RemoteReply:
        """The answer to ``messages``, of an agent that the server makes out by itself, if it
        can."""
        return await self._call(as_chat(messages), options, None, self.model)

    async def generate(self, prompt: RemotePrompt, **options: Any) -> RemoteReply:
        """The continuation of ``prompt``, as ``chat``."""
        return await self._call(prompt, options, None, self.model)

    async def embed(self, prompts: Sequence[str], **options: Any) -> list[list[float]]:
        """An embedding of each of ``prompts``, if the server makes any."""
        return vectors_of(await self._json(embed_ask(prompts, self.model, options)))

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
        """As ``Client.expect``: ``agents`` are needed in ``ticks``, or ``at`` a time (``absolute``,
        in a mapping), with a ``confidence``. Sent soon."""
        self._pending.expect(agents, ticks, at, confidence, absolute)
        self._send_soon()

    def wake(self, agent: str | int) -> None:
        """``agent`` is about to call, whatever was said before. Sent soon."""
        self._pending.wake(agent)
        self._send_soon()

    async def tick(self, n: float = 1, *, to: float | None = None) -> float:
        """Move the simulation's clock ``n`` ticks on, or ``to`` a time; returns the time."""
        ask = tick_ask(n, to)
        await self.flush()
        return float((await self._json(ask))["tick"])

    async def flush(self) -> None:
        """Send the hints that wait."""
        async with self._sending:
            while (ask := self._pending.take()) is not None:
                await self._send(ask)

    async def pin(self, agent: str | int, seconds: float) -> None:
        """The state of ``agent`` counts as needed now for ``seconds``."""
        await self._json(Ask("POST", path_of_agent(name_of(agent), "pin"), {"seconds": seconds}))

    async def release(self, agent: str | int) -> None:
        """``agent`` is pinned no more."""
        await self._json(Ask("POST", path_of_agent(name_of(agent), "release"), {}))

    # -- its life -------------------------------------------------------------------------------

    async def close(self) -> None:
        """Send the hints that wait, and close the connections. Idempotent."""
        if self._http.is_closed:
            return
        try:
            await self.flush()
        finally:
            await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    # -- the wire -------------------------------------------------------------------------------

    def _send_soon(self) -> None:
        """Whatever is said while a request is under way goes with the next one."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._flush_quietly())

    async def _flush_quietly(self) -> None:
        try:
            await self.flush()
        except ScaleSimError as error:  # advice; the next call will say so louder
            if not self._has_failed:
                _log.warning("hints were lost, and others may be: %s", error)
            self._has_failed = True

    async def _call(
        self, prompt: RemotePrompt, options: Mapping[str, Any], agent: str | None, model: str | None
    ) -> RemoteReply:
        response = await self._send(asked(prompt, options, agent=agent, model=model))
        return reply_from(parsed(response.content), response.headers)

    async def _json(self, ask: Ask) -> Any:
        return parsed((await self._send(ask)).content)

    async def _send(self, ask: Ask, *, stream: bool = False) -> httpx2.Response:
        """The response, unless it is an error, which is raised."""
        for attempt in range(self._retries + 1):
            request = self._http.build_request(ask.method, ask.path, json=ask.body)
            try:
                response = await self._http.send(request, stream=stream)
            except httpx2.TimeoutException as cause:
                message = f"no answer in time: {cause}"
                raise error_from(504, {"error": {"message": message}}) from cause
            except httpx2.HTTPError as cause:
                if attempt < self._retries:
                    await asyncio.sleep(wait_s(attempt, {}))
                    continue
                raise unreachable(self.base_url, cause) from cause
            if response.is_success:
                return response
            await response.aread()
            if response.status_code not in RETRIED or attempt == self._retries:
                raise error_from(response.status_code, parsed(response.content))
            await asyncio.sleep(wait_s(attempt, response.headers))
        raise AssertionError("unreachable")


class AsyncRemoteAgent:
    """``RemoteAgent`` for an event loop: an agent of a server, and its calls as coroutines."""

    __slots__ = ("_client", "_model", "adapter", "id")

    def __init__(self, client: AsyncClient, id: str, adapter: str | None) -> None:
        self._client, self.id, self.adapter = client, id, adapter
        self._model = client.model if adapter is None else adapter

    async def chat(
        self, messages: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> RemoteReply:
        """The assistant's answer to ``messages``; a string is one message of the user's."""
        return await self._client._call(as_chat(messages), options, self.id, self._model)

    async def generate(self, prompt: RemotePrompt, **options: Any) -> RemoteReply:
        """The continuation of ``prompt``: text, token ids or messages."""
        return await self._client._call(prompt, options, self.id, self._model)

    def stream(self, prompt: RemotePrompt, **options: Any) -> AsyncRemoteStream:
        """``async for piece in agent.stream(prompt)``: the continuation as it comes, from the first
        read on. Whoever stops reading cancels it, with ``close`` or at the end of an ``async
        with``."""
        ask = asked(prompt, options, agent=self.id, model=self._model, stream=True)
        return AsyncRemoteStream(self._client, ask)

    async def choose(
        self, prompt: RemotePrompt, options: Sequence[str], *, by: str = "sum"
    ) -> RemoteChoice:
        """The likeliest of ``options`` as the continuation of ``prompt``, by the ``"sum"`` or the
        ``"mean"`` of log-probabilities."""
        ask = choose_ask(prompt, options, by, agent=self.id, model=self._model)
        return choice_from(await self._client._json(ask))

    def expect(self, ticks: float | None = None, *, at: float | None = None) -> None:
        """This agent's next call: in ``ticks``, or ``at`` a time of the clock."""
        self._client.expect(self.id, ticks, at=at)

    async def fork(self, id: str | int) -> AsyncRemoteAgent:
        """A new agent ``id`` with this one's memory."""
        return await self._client.fork(self.id, id)

    async def forget(self) -> None:
        """This agent is gone, with all that is kept for it."""
        await self._client.forget(self.id)

    def __repr__(self) -> str:
        return f"AsyncRemoteAgent({self.id!r})"


class AsyncRemoteStream:
    """The pieces of a reply as they come; ``reply`` is there at the end."""

    def __init__(self, client: AsyncClient, ask: Ask) -> None:
        self._client, self._ask = client, ask
        self._response: httpx2.Response | None = None
        self.reply: RemoteReply | None = None
        self._pieces = self._read()

    def __aiter__(self) -> AsyncIterator[RemotePiece]:
        return self._pieces

    async def _read(self) -> AsyncIterator[RemotePiece]:
        self._response = response = await self._client._send(self._ask, stream=True)
        reader = StreamReader(response.headers)
        try:
            async for line in response.aiter_lines():
                piece = reader.take(line)
                if isinstance(piece, RemotePiece):
                    self.reply = piece.reply
                    yield piece
                elif piece is not None:
                    raise error_from(500, piece)
                if reader.is_over:
                    return
        except httpx2.HTTPError as cause:
            raise error_from(500, {"error": {"message": "the stream broke off"}}) from cause
        finally:
            await response.aclose()
        raise error_from(500, {"error": {"message": "the stream broke off"}})

    async def close(self) -> None:
        """Stop reading: a call that has not ended is cancelled."""
        if self._response is not None:
            await self._response.aclose()

    async def __aenter__(self) -> AsyncRemoteStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
