"""Agents: the handle of each, which is a name on an engine and its calls, and how they are made,
forked, forgotten and spoken of."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scalesim.chat.chat_request import ChatRequest
from scalesim.chat.reply import ChatReply
from scalesim.chat.response_format import ResponseFormat
from scalesim.chat.stream import AsyncChatStream, ChatStream
from scalesim.chat.tool_use import Tool, ToolChoice
from scalesim.checks import agent_id, flag, reading, shown
from scalesim.core import AgentId
from scalesim.distance.hints import read
from scalesim.engine.advice import Advice
from scalesim.engine.ask import ask
from scalesim.engine.blobs import BlobMapping
from scalesim.engine.chats import ChatEntrypoints
from scalesim.engine.inbox import Inbox
from scalesim.engine.loop import EngineLoop
from scalesim.engine.thread import EngineThread
from scalesim.errors import HintWarning, RequestError, UnknownAgentError
from scalesim.interrupts import InterruptsWait
from scalesim.requests.adapter import Adapter
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.agent_registry import AgentEntry, AgentRegistry, listed_ids
from scalesim.requests.choose import By, Choice, Option
from scalesim.requests.model_registry import ModelRegistry
from scalesim.requests.prompt import Message, OnOverflow, Prompt
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.requests.stream import AsyncReplyStream, ReplyStream
from scalesim.requests.tickets import Bell
from scalesim.sampling.keys import SamplingKeys

__all__ = ["Agent", "Reply", "Request"]


class Agent:
    """Made by ``Engine.agent``, until it is forgotten: from then on everything raises
    ``UnknownAgentError``. Calls are stateless: the whole prompt every time; what the engine
    still holds of it is found. Options are the fields of ``Request`` and of ``SamplingParams``, by
    name.
    """

    __slots__ = ("_agents", "_entry", "_state", "engine")

    def __init__(self, engine: ChatEntrypoints, agents: Agents, entry: AgentEntry) -> None:
        self.engine, self._agents, self._entry = engine, agents, entry
        self._state: BlobMapping | None = None

    @property
    def id(self) -> AgentId:
        """Its name on the engine."""
        return self._entry.id

    @property
    def adapter(self) -> str | None:
        """The name of the adapter that its calls use; ``None``: the base model. May be set, to a
        name, a folder, which is added under its path, what ``adapters.add`` returned, or ``None``:
        calls handed in from then on use it, open calls end with what they began with. Setting
        raises ``AdapterError`` for an adapter that cannot be used."""
        return self._entry.adapter

    @adapter.setter
    def adapter(self, adapter: str | Path | Adapter | None) -> None:
        self._check()
        self._agents.use_adapter(self.id, adapter)

    @property
    def model(self) -> str | None:
        """The name of the model that its calls run on; ``None``: the engine's own. May be set, to a
        name that ``Engine.add_model`` was given or to ``None``: calls made from then on run on it,
        open calls end on the model that they began with. What the agent has said stays on the pages
        of the model before, until they are needed. Setting raises ``ModelError`` for a name that is
        unknown."""
        return self._entry.model

    @model.setter
    def model(self, model: str | None) -> None:
        self._check()
        self._agents.use_model(self.id, model)

    @property
    def state(self) -> BlobMapping:
        """Tensors that the agent owns, by name: ``agent.state["memory"] = tensor``."""
        if self._state is None:
            self._state = self._agents.state_of(self._entry)
        return self._state

    @property
    def is_forgotten(self) -> bool:
        """For good; the id may be another agent's by now."""
        return self._entry.is_forgotten

    def request(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: int = 0,
        more_calls: int | None = None,
        on_overflow: OnOverflow = "error",
        sample_index: int = 0,
        cache_salt: str | None = None,
        adapter: str | None = None,
        **params: Any,
    ) -> Request:
        """A request for ``Engine.run``: text, token ids or chat messages. Options are the fields of
        ``Request`` and of ``SamplingParams``."""
        self._check()
        return Request(
            prompt,
            agent=self.id,
            params=self.engine.sampling(**params),
            timeout=timeout,
            sample_index=sample_index,
            deadline=deadline,
            priority=priority,
            more_calls=more_calls,
            on_overflow=on_overflow,
            cache_salt=cache_salt,
            adapter=adapter,
        )

    def generate(self, prompt: Prompt, **options: Any) -> Reply:
        """The continuation of ``prompt``; waits. Options as for ``request``; raises what
        ``Engine.generate`` raises."""
        return self.engine.generate(self.request(prompt, **options))

    async def generate_async(self, prompt: Prompt, **options: Any) -> Reply:
        """``generate`` from any event loop."""
        return await self.engine.generate_async(self.request(prompt, **options))

    def chat_request(
        self,
        messages: Sequence[Message] | str,
        *,
        tools: Sequence[Tool] | None = None,
        tool_choice: ToolChoice | None = None,
        parallel_tool_calls: bool = True,
        response_format: ResponseFormat | None = None,
        enable_thinking: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ChatRequest:
        """A request for ``Engine.chat``: messages, or one of the user's as a string. Options are
        those of ``request``; what else there is are fields of ``ChatRequest``."""
        request = self.request("", **options)
        return ChatRequest(
            messages,
            agent=self.id,
            params=request.params,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            enable_thinking=enable_thinking,
            chat_template_kwargs={} if chat_template_kwargs is None else chat_template_kwargs,
            timeout=request.timeout,
            sample_index=request.sample_index,
            deadline=request.deadline,
            priority=request.priority,
            more_calls=request.more_calls,
            on_overflow=request.on_overflow,
        )

    def chat(self, messages: Sequence[Message] | str, **options: Any) -> ChatReply:
        """The assistant's answer to ``messages``, through the model's chat template; waits. A
        string is one message of the user's. Options as for ``chat_request``."""
        return self.engine.chat(self.chat_request(messages, **options))

    async def chat_async(self, messages: Sequence[Message] | str, **options: Any) -> ChatReply:
        """``chat`` from any event loop: the answer to ``messages``."""
        return await self.engine.chat_async(self.chat_request(messages, **options))

    def chat_stream(self, messages: Sequence[Message] | str, **options: Any) -> ChatStream:
        """``for piece in agent.chat_stream(messages)``: the answer to ``messages`` as it comes.
        Whoever stops reading cancels it."""
        return self.engine.chat_stream(self.chat_request(messages, **options))

    def chat_stream_async(
        self, messages: Sequence[Message] | str, **options: Any
    ) -> AsyncChatStream:
        """``chat_stream`` for ``async for``, in any event loop: the answer to ``messages``."""
        return self.engine.chat_stream_async(self.chat_request(messages, **options))

    def stream(self, prompt: Prompt, **options: Any) -> ReplyStream:
        """``for piece in agent.stream(prompt)``: the continuation as it comes, or the answer to
        messages. Whoever stops reading cancels it."""
        return self.engine.stream(self.request(prompt, **options))

    def stream_async(self, prompt: Prompt, **options: Any) -> AsyncReplyStream:
        """``stream`` for ``async for``, in any event loop."""
        return self.engine.stream_async(self.request(prompt, **options))

    def choose(
        self, prompt: Prompt, options: Sequence[Option], *, by: By = "sum", **call: Any
    ) -> Choice:
        """The likeliest of ``options`` (texts or token ids) as the continuation of ``prompt``, by
        the sum or the mean of log-probabilities; waits. ``call``: as for ``request``."""
        return self.engine.choose(self.request(prompt, **call), options, by=by)

    async def choose_async(
        self, prompt: Prompt, options: Sequence[Option], *, by: By = "sum", **call: Any
    ) -> Choice:
        """``choose`` among ``options`` from any event loop."""
        return await self.engine.choose_async(self.request(prompt, **call), options, by=by)

    def expect(
        self, ticks: float | None = None, *, at: float | None = None, steps: float | None = None
    ) -> None:
        """This agent's next call: in ``ticks``, or ``at`` a time of the clock. ``steps`` is the
        deprecated name of ``ticks``."""
        self._check()
        self._agents.expect(self.id, ticks, at=at, steps=steps)

    def fork(self, id: AgentId) -> Agent:
        """A new agent ``id`` with this one's memory, shared until one of them goes its own way.
        Raises ``RequestError`` for an id that is taken."""
        self._check()
        return self._agents.fork(self.engine, self.id, id)

    def forget(self, *, wait: bool = True) -> None:
        """``Engine.forget`` of this agent, done on return unless ``wait`` is false; every further
        use of the handle raises ``UnknownAgentError``."""
        self._check()
        self._agents.forget(self.id, wait)

    def _check(self) -> None:
        if self.is_forgotten:
            raise UnknownAgentError(
                f"agent {self.id!r} was forgotten; engine.agent({self.id!r}) makes a new one"
            )

    def __repr__(self) -> str:
        return f"Agent({self.id!r})"


class Agents:
    """The agents of an engine. Each method says its part to the registry of ids, to the registry of
    adapters and, through the inbox, to the loop, so that a thread's calls and hints mean the agents
    that there were when they were given."""

    def __init__(
        self,
        registry: AgentRegistry,
        adapters: AdapterRegistry,
        models: ModelRegistry,
        advice: Advice,
        keys: SamplingKeys,
        loop: EngineLoop,
        inbox: Inbox,
        thread: EngineThread,
    ) -> None:
        self.registry = registry
        self._advice, self._keys = advice, keys
        self._adapters, self._loop, self._inbox, self._thread = adapters, loop, inbox, thread
        self._models = models
        self._handles: dict[AgentId, Agent] = {}

    def handle(
        self,
        engine: ChatEntrypoints,
        id: AgentId,
        adapter: str | Path | Adapter | None = None,
        model: str | None = None,
    ) -> Agent:
        """``Engine.agent``. What is wrong with the model or the adapter changes nothing."""
        id = agent_id(id)
        self._inbox.check_open()
        if model is not None:
            self._models.known(model)
        if adapter is not None:
            with self.registry.lock:
                is_there = model is None and id in self.registry
                runs_on = self.registry.known(id).model if is_there else model
            adapter = self._adapters[self._adapters.name_of(adapter, runs_on)]
        agent = self._handles.get(id)
        if agent is None:
            with self.registry.lock:
                entry = self.registry.add(id)
                agent = self._handles.setdefault(id, Agent(engine, self, entry))
            if self._advice.distances.has_sources:  # one may have spoken of it already
                self._inbox.post_if_open(partial(self._advice.distances.meet, id))
        if model is not None:
            self.use_model(id, model)
        if adapter is not None:
            self.use_adapter(id, adapter)
        return agent

    def use_model(self, id: AgentId, model: str | None) -> None:
        """Let agent ``id`` run on ``model``; ``None``: the engine's own."""
        self._inbox.check_open()
        with self.registry.lock:
            entry = self.registry.known(id)  # it may have been forgotten since
            self._models.bind(entry.key, model)
            entry.model = model

    def use_adapter(self, id: AgentId, adapter: str | Path | Adapter | None) -> None:
        """Let agent ``id`` use ``adapter``; ``None``: the base model."""
        self._inbox.check_open()
        model = self.registry.known(id).model
        name = None if adapter is None else self._adapters.name_of(adapter, model)
        with self.registry.lock:
            entry = self.registry.known(id)  # it may have been forgotten since
            self._adapters.bind(entry.key, name)
            entry.adapter = name

    def state_of(self, entry: AgentEntry) -> BlobMapping:
        """``Agent.state``."""
        return BlobMapping(entry, self._loop.parts, partial(ask, self._thread, self._inbox))

    def fork(self, engine: ChatEntrypoints, parent: AgentId, child: AgentId) -> Agent:
        """``Engine.fork``."""
        self._inbox.check_open()
        child = agent_id(child)
        with self.registry.lock, InterruptsWait():
            origin = self.registry.known(parent)
            if child in self.registry:
                raise RequestError(f"agent {shown(child)} exists already; fork into a new id")
            agent = self.handle(engine, child)
            entry = self.registry.known(child)
            entry.adapter, entry.model = origin.adapter, origin.model
            self._adapters.fork(origin.key, entry.key)
            self._models.fork(origin.key, entry.key)
            self._inbox.post(lambda: self._loop.memory.fork(origin.key, entry.key))
        return agent

    def forget(self, agents: AgentId | Iterable[AgentId], wait: bool) -> None:
        """``Engine.forget``."""
        ids = listed_ids(agents)
        flag("wait", wait)
        self._inbox.check_open()
        done = Bell()

        def forget() -> None:
            try:
                self._loop.forget(keys)
            finally:
                done.ring()

        with self.registry.lock, InterruptsWait():  # of what is halfway there is no second try
            keys = self.registry.remove(ids)
            for id in ids:
                self._handles.pop(id, None)  # nobody may have asked for it in this world
            self._adapters.unbind(keys)
            self._models.unbind(keys)
            self._keys.forget(ids)
            self._inbox.post(forget)
        if wait:
            self._thread.wait_for(done)

    def expect(
        self,
        agents: AgentId | Mapping[AgentId, float],
        ticks: float | None = None,
        *,
        at: float | None = None,
        confidence: float | Mapping[AgentId, float] = 1.0,
        absolute: bool = False,
        steps: float | None = None,
    ) -> None:
        """``Engine.expect`` and ``Agent.expect``."""
        self._inbox.check_open()
        ticks = _renamed_ticks(ticks, steps)
        advice = self._advice
        if isinstance(agents, Mapping):
            if ticks is not None or at is not None:
                raise RequestError("expect() takes a mapping of distances, or one agent and a time")
            with reading("agents"):
                distances = dict(agents)
        elif (ticks is None) == (at is None):
            raise RequestError(f"expect({shown(agents)}) needs either ticks or at=")
        else:
            when: Any = ticks if ticks is not None else at
            distances = {self.registry.known(agents).id: when}
        is_absolute = flag("absolute", absolute) or at is not None
        ids = self.registry.all_known(distances)
        trusted: Any = confidence
        if for_each := isinstance(confidence, Mapping):
            with reading("confidence"):
                trusted = [confidence.get(agent, 1.0) for agent in distances]
        hints, ignored = read(
            ids, list(distances.values()), trusted, of_users=True, for_each=for_each
        )
        if hints.agents:
            times = dict(zip(hints.agents, map(float, hints.at), strict=True))
            sure: Any = hints.confidence[0]
            if for_each:
                sure = dict(zip(hints.agents, map(float, hints.confidence), strict=True))
            self._inbox.post(lambda: advice.expect(times, sure, absolute=is_absolute))
        if ignored and (told := advice.distances.ignore("declared", ignored)):
            warnings.warn(told, HintWarning, stacklevel=3)


def _renamed_ticks(ticks: float | None, steps: float | None) -> float | None:
    """``ticks``, or ``steps`` where a caller of ``expect`` still says so."""
    if steps is None:
        return ticks
    warnings.warn("expect(steps=) is named ticks= now", DeprecationWarning, stacklevel=4)
    if ticks is not None:
        raise RequestError("expect() takes ticks or steps, which are the same; give ticks")
    return steps
