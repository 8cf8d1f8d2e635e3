"""A call: one submitted request as its caller sees it, and how its end reaches threads and event
loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from scalesim.core import FinishReason, Int32s
from scalesim.errors import EngineClosedError
from scalesim.foreign import Foreign
from scalesim.requests.prompt import TextModel
from scalesim.requests.reply import Dropped, Reply, Usage
from scalesim.requests.request import Request

if TYPE_CHECKING:
    from scalesim.engine.agent import Agent
    from scalesim.memory.lease import AttachmentUse
    from scalesim.model.text.token_stream import TokenStream
    from scalesim.requests.stream import Mailbox
    from scalesim.sampling.logits import TokenConstraint
    from scalesim.scheduler.sequence import Sequence


class Waiter(Protocol):
    """Who is told of a call's end: in its event loop, or on the engine's thread where ``loop`` is
    ``None``."""

    loop: asyncio.AbstractEventLoop | None

    def tell(self, call: Call) -> None: ...


class Bell:
    """One waits until another rings. A bare lock, which waiting takes and ringing gives back: to
    wait is one instruction, so nobody can be interrupted holding what the engine's thread needs,
    as within an ``Event``. And it costs a caller's thread less, which has the interpreter while
    the engine's waits for it."""

    __slots__ = ("_shut",)

    def __init__(self) -> None:
        self._shut = threading.Lock()
        self._shut.acquire()

    def ring(self) -> None:
        """Rung again before somebody came to wait, it has been rung once. One thread at a time."""
        if self._shut.locked():
            self._shut.release()

    def wait(self, timeout_s: float) -> bool:
        """Whether it was rung since the last time, or is within ``timeout_s`` seconds."""
        return self._shut.acquire(timeout=timeout_s)


class Latch:
    """Opens when ``count`` calls have ended."""

    def __init__(self, count: int) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.left = count
        self._bell = Bell()

    def tell(self, call: Call) -> None:
        self.left -= 1
        if self.left == 0:
            self._bell.ring()

    def wait(self, timeout_s: float) -> bool:
        """Whether it is open, within ``timeout_s`` seconds."""
        return self.left <= 0 or self._bell.wait(timeout_s)


class Ended:
    """A future of ``loop`` that is done when the call has ended, well or not."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop | None = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def tell(self, call: Call) -> None:
        with suppress(asyncio.InvalidStateError):  # cancelled, also just now by a signal
            self.future.set_result(None)


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

    ``waiter`` is told of the end; there is none for who polls ``done``. ``mailbox`` takes the
    tokens as they come, where somebody reads them. ``owner`` is its agent's handle. ``number``: how
    many equal requests were handed in before it.
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
        "mailbox",
        "make_guide",
        "model",
        "number",
        "observer",
        "owner",
        "request",
        "sequence",
        "submitted_s",
        "tokens",
        "waiter",
    )

    def __init__(
        self, request: Request, model: TextModel, tokens: Int32s, observer: TextObserver | None
    ) -> None:
        self.request, self.model, self.tokens, self.observer = request, model, tokens, observer
        self.attachments: tuple[AttachmentUse, ...] = ()
        self.dropped: Dropped | None = None
        self.make_guide: Callable[[], TokenConstraint] | None = (
            None  # where a rule masks its tokens
        )
        self.leader: Call | None = None  # the first sample of the same prompt, if it is another
        self.owner: Agent | None = None
        self.digest: int | None = None  # of what is asked, once that is known
        self.number: int | None = None
        self.done = False
        self.error: Exception | None = None
        self.sequence: Sequence | None = None
        self.submitted_s = self.ended_s = 0.0
        self.deadline_s: float | None = None
        self.waiter: Waiter | None = None
        self.mailbox: Mailbox | None = None

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
        if self.observer is not None:
            self.observer.stream.finish()
            return self.observer.stream.text
        if self.model.tokenizer is None:
            return None
        assert self.sequence is not None
        if reason == "stop" and ids[-1] in self.sequence.stop_ids:
            ids = ids[:-1]  # the token that ended it is not text
        return self.model.tokenizer.decode(ids)


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
