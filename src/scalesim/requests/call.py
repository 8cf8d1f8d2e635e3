"""A call: one submitted request as its caller sees it, and how its end reaches threads and event
loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from scalesim.core import FinishReason, Int32s
from scalesim.errors import EngineClosedError
from scalesim.foreign import Foreign
from scalesim.requests.prompt import TextModel
from scalesim.requests.reply import Dropped, Reply, Usage
from scalesim.requests.request import Request

if TYPE_CHECKING:
    from scalesim.memory.lease import AttachmentUse
    from scalesim.model.text.token_stream import TokenStream
    from scalesim.requests.agent_registry import AgentEntry
    from scalesim.sampling.logits import TokenConstraint
    from scalesim.scheduler.sequence import Observer, Sequence


class Waiter(Protocol):
    """Told of a call's end: in its event loop, or on the engine's thread where ``loop`` is
    ``None``."""

    loop: asyncio.AbstractEventLoop | None

    def tell(self, call: Call) -> None: ...


class TextObserver:
    """Follows one sequence's tokens for stop strings."""

    def __init__(self, stream: TokenStream) -> None:
        self.stream = stream

    def push(self, token_id: int) -> bool:
        self.stream.push(token_id)
        return self.stream.finished


class Call:
    """What ``Engine.submit`` returns. ``done`` turns true once; then ``result`` gives the reply, or
    raises.

    ``waiter`` is told of the end; a caller that polls ``done`` has none. ``sink`` is given the
    tokens as they come, by default to ``stops``, which looks for stop strings. ``owner`` is the
    agent that was meant. ``number``: how many equal requests were handed in before it.
    """

    __slots__ = (
        "attachments",
        "deadline_s",
        "digest",
        "done",
        "dropped",
        "ended_s",
        "error",
        "leader",
        "make_guide",
        "model",
        "number",
        "owner",
        "request",
        "sequence",
        "sink",
        "stops",
        "submitted_s",
        "tokens",
        "waiter",
    )

    def __init__(
        self, request: Request, model: TextModel, tokens: Int32s, stops: TextObserver | None
    ) -> None:
        self.request, self.model, self.tokens, self.stops = request, model, tokens, stops
        self.sink: Observer | None = stops
        self.attachments: tuple[AttachmentUse, ...] = ()
        self.dropped: Dropped | None = None
        self.make_guide: Callable[[], TokenConstraint] | None = (
            None  # where a rule masks its tokens
        )
        self.leader: Call | None = None  # the first sample of the same prompt, if it is another
        self.owner: AgentEntry | None = None
        self.digest: int | None = None  # of what is asked, once that is known
        self.number: int | None = None
        self.done = False
        self.error: Exception | None = None
        self.sequence: Sequence | None = None
        self.submitted_s = self.ended_s = 0.0
        self.deadline_s: float | None = None
        self.waiter: Waiter | None = None

    def begins(self, now_s: float) -> None:
        """It is handed in; its timeout counts from ``now_s``."""
        self.submitted_s, self.deadline_s = now_s, self.request.deadline
        if self.request.timeout is not None:
            end_s = now_s + self.request.timeout
            self.deadline_s = end_s if self.deadline_s is None else min(end_s, self.deadline_s)

    def result(self) -> Reply:
        """The reply. Raises the request's own error; ``EngineClosedError`` while it is still
        open."""
        if not self.done:
            raise EngineClosedError("the request has not ended; wait for it or drive step()")
        if self.error is not None:
            raise self.error
        sequence = self.sequence
        assert sequence is not None and sequence.finish_reason is not None
        ids = tuple(sequence.output.tolist())
        usage = Usage(
            sequence.prompt_len,
            sequence.cached_tokens,
            len(ids),
            sequence.num_preemptions,
            sequence.host_tokens,
            sequence.rebuilt_tokens,
        )
        log = sequence.score_log
        return Reply(
            agent=self.request.agent,
            text=self._text(ids, sequence.finish_reason),
            token_ids=ids,
            finish_reason=sequence.finish_reason,
            usage=usage,
            latency_s=self.ended_s - self.submitted_s,
            digest=sequence.digest,
            dropped=self.dropped,
            embedding=None if sequence.embedding_log is None else sequence.embedding_log.result(),
            logprobs=None if log is None else log.of_output(sequence.output),
            prompt_logprobs=None if log is None else log.of_prompt(self.tokens),
        )

    def _text(self, ids: tuple[int, ...], reason: FinishReason) -> str | None:
        if self.stops is not None:
            self.stops.stream.finish()
            return self.stops.stream.text
        if self.model.tokenizer is None:
            return None
        assert self.sequence is not None
        if reason == "stop" and ids[-1] in self.sequence.stop_ids:
            ids = ids[:-1]  # the token that ended it is not text
        return self.model.tokenizer.decode(ids)


def reply_of(calls: list[Call]) -> Reply:
    """The reply of a request's samples. Raises the first error among them."""
    replies = [call.result() for call in calls]
    return replies[0] if len(calls) == 1 else replace(replies[0], others=tuple(replies[1:]))


def deliver(calls: list[Call]) -> None:
    """Tell the waiters: those of threads at once, the others in one message to each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[Call]] = {}
    for call in calls:
        if call.waiter is None:
            continue
        if call.waiter.loop is None:
            call.waiter.tell(call)
        else:
            loops.setdefault(call.waiter.loop, []).append(call)
    for loop, told in loops.items():
        with Foreign():  # the loop was closed, or is somebody's own: nobody else may miss his end
            loop.call_soon_threadsafe(_tell, told)


def _tell(calls: list[Call]) -> None:
    """In their event loop. Where Ctrl-C strikes, the rest is told if the loop goes on."""
    try:
        while calls:
            waiter = calls[-1].waiter
            if waiter is not None:
                waiter.tell(calls[-1])
            calls.pop()
    except BaseException:
        asyncio.get_running_loop().call_soon(_tell, calls)
        raise
