"""The handle of one agent: a name on an engine, and its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalesim.core import AgentId, SamplingParams
from scalesim.requests import Message, Prompt, Reply, Request

if TYPE_CHECKING:
    from scalesim.engine import Engine

__all__ = ["Agent", "Reply", "Request"]


class Agent:
    """Made by ``Engine.agent``. Calls are stateless: the whole prompt every time; what the engine
    still holds of it is found. Options are the fields of ``Request`` and of ``SamplingParams``, by
    name.
    """

    def __init__(self, engine: Engine, id: AgentId) -> None:
        self.engine = engine
        self.id = id
        self.adapter: str | None = None  # the name its calls use; ``Engine.agent`` sets it

    def request(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        sample_index: int = 0,
        **params: Any,
    ) -> Request:
        """A request for ``Engine.run``: text, token ids or chat messages."""
        return Request(
            prompt,
            agent=self.id,
            params=SamplingParams(**params),
            timeout=timeout,
            sample_index=sample_index,
        )

    def generate(self, prompt: Prompt, *, timeout: float | None = None, **params: Any) -> Reply:
        """The continuation of ``prompt``; waits. Raises what ``Engine.generate`` raises."""
        return self.engine.generate(self.request(prompt, timeout=timeout, **params))

    async def generate_async(
        self, prompt: Prompt, *, timeout: float | None = None, **params: Any
    ) -> Reply:
        """``generate`` from any event loop."""
        return await self.engine.generate_async(self.request(prompt, timeout=timeout, **params))

    def chat(
        self, messages: list[Message], *, timeout: float | None = None, **params: Any
    ) -> Reply:
        """The assistant's answer to ``messages``, through the model's chat template; waits."""
        return self.engine.generate(self.request(messages, timeout=timeout, **params))

    async def chat_async(
        self, messages: list[Message], *, timeout: float | None = None, **params: Any
    ) -> Reply:
        """``chat`` from any event loop: the answer to ``messages``."""
        return await self.engine.generate_async(self.request(messages, timeout=timeout, **params))

    def expect(self, steps: float | None = None, *, at: float | None = None) -> None:
        """This agent's next call: in ``steps``, or ``at`` a time of the clock."""
        self.engine.expect(self.id, steps, at=at)

    def fork(self, id: AgentId) -> Agent:
        """A new agent ``id`` with this one's memory, shared until one of them goes its own way.
        Raises ``RequestError`` for an id that is taken."""
        return self.engine.fork(self.id, id)

    def __repr__(self) -> str:
        return f"Agent({self.id!r})"
