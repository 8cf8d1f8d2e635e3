"""The handle of one agent: a name on an engine, and its calls."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scalesim.core import AgentId
from scalesim.errors import RequestError, UnknownAgentError
from scalesim.requests.choose import By, Choice, Option
from scalesim.requests.prompt import Message, OnOverflow, Prompt
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.requests.stream import AsyncReplyStream, ReplyStream

if TYPE_CHECKING:
    from scalesim.engine.engine import Engine

__all__ = ["Agent", "Reply", "Request"]


class Agent:
    """Made by ``Engine.agent``, until it is forgotten: from then on everything raises
    ``UnknownAgentError``. Calls are stateless: the whole prompt every time; what the engine
    still holds of it is found. Options are the fields of ``Request`` and of ``SamplingParams``, by
    name.
    """

    def __init__(self, engine: Engine, id: AgentId) -> None:
        self.engine = engine
        self.id = id
        self.adapter: str | None = None  # the name its calls use; ``Engine.agent`` sets it
        self.is_forgotten = False  # for good; the id may be another's by now

    def request(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        priority: int = 0,
        on_overflow: OnOverflow = "error",
        sample_index: int = 0,
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
            on_overflow=on_overflow,
        )

    def generate(self, prompt: Prompt, **options: Any) -> Reply:
        """The continuation of ``prompt``; waits. Options as for ``request``; raises what
        ``Engine.generate`` raises."""
        return self.engine.generate(self.request(prompt, **options))

    async def generate_async(self, prompt: Prompt, **options: Any) -> Reply:
        """``generate`` from any event loop."""
        return await self.engine.generate_async(self.request(prompt, **options))

    def chat(self, messages: list[Message] | str, **options: Any) -> Reply:
        """The assistant's answer to ``messages``, through the model's chat template; waits. A
        string is one message of the user's."""
        return self.engine.generate(self.request(as_messages(messages), **options))

    async def chat_async(self, messages: list[Message] | str, **options: Any) -> Reply:
        """``chat`` from any event loop: the answer to ``messages``."""
        return await self.engine.generate_async(self.request(as_messages(messages), **options))

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
        self.engine.expect(self.id, renamed_ticks(ticks, steps), at=at)

    def fork(self, id: AgentId) -> Agent:
        """A new agent ``id`` with this one's memory, shared until one of them goes its own way.
        Raises ``RequestError`` for an id that is taken."""
        self._check()
        return self.engine.fork(self.id, id)

    def forget(self, *, wait: bool = True) -> None:
        """``Engine.forget`` of this agent, done on return unless ``wait`` is false; every further
        use of the handle raises ``UnknownAgentError``."""
        self._check()
        self.engine.forget(self.id, wait=wait)

    def _check(self) -> None:
        if self.is_forgotten:
            raise UnknownAgentError(
                f"agent {self.id!r} was forgotten; engine.agent({self.id!r}) makes a new one"
            )

    def __repr__(self) -> str:
        return f"Agent({self.id!r})"


def as_messages(messages: list[Message] | str) -> list[Message]:
    """What ``chat`` was given, as messages."""
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


def renamed_ticks(ticks: float | None, steps: float | None) -> float | None:
    """``ticks``, or ``steps`` where a caller of ``expect`` still says so."""
    if steps is None:
        return ticks
    warnings.warn("expect(steps=) is named ticks= now", DeprecationWarning, stacklevel=3)
    if ticks is not None:
        raise RequestError("expect() takes ticks or steps, which are the same; give ticks")
    return steps
