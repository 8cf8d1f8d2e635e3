"""A call: one submitted request as its caller sees it, and how its end reaches threads and event
loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scalesim.core import FinishReason, Int32s
from scalesim.errors import EngineClosedError
from scalesim.requests import Reply, Request, TextModel, Usage

if TYPE_CHECKING:
    from scalesim.memory.adapters import AdapterUse
    from scalesim.model.token_stream import TokenStream
    from scalesim.scheduler.adjusting import Guide
    from scalesim.scheduler.sequence import Sequence


class Latch:
    """Opens when ``count`` calls have ended: one lock for a whole batch of them."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._event = threading.Event()
        if count == 0:
            self._event.set()

    def count_down(self) -> None:
        """Only ever called on the engine's thread."""
        self._left -= 1
        if self._left == 0:
            self._event.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        return self._event.wait(timeout_s)


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

    ``latch`` or ``future`` (with its loop) is told of the end; neither for who polls ``done``.
    """

    __slots__ = (
        "adapter",
        "deadline_s",
        "digest",
        "done",
        "ended_s",
        "error",
        "future",
        "latch",
        "leader",
        "loop",
        "make_guide",
        "model",
        "observer",
        "request",
        "sequence",
        "submitted_s",
        "tokens",
    )

    def __init__(
        self, request: Request, model: TextModel, tokens: Int32s, observer: TextObserver | None
    ) -> None:
        self.request, self.model, self.tokens, self.observer = request, model, tokens, observer
        self.adapter: AdapterUse | None = None
        self.make_guide: Callable[[], Guide] | None = None  # where a rule masks its tokens
        self.leader: Call | None = None  # the first sample of the same prompt, if it is another
        self.digest = 0
        self.done = False
        self.error: Exception | None = None
        self.sequence: Sequence | None = None
        self.submitted_s = self.ended_s = 0.0
        self.deadline_s: float | None = None
        self.latch: Latch | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[Reply] | None = None

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
            sequence.prompt_len, sequence.cached_tokens, len(ids), sequence.num_preemptions
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
    """Tell the callers: latches at once, futures in one message to each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[Call]] = {}
    for call in calls:
        if call.latch is not None:
            call.latch.count_down()
        elif call.loop is not None:
            loops.setdefault(call.loop, []).append(call)
    for loop, ended in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, ended)
        except RuntimeError:  # the loop was closed; nobody waits there any more
            continue


def _resolve(calls: list[Call]) -> None:
    for call in calls:
        future: Any = call.future
        if not future.done():
            try:
                future.set_result(call.result())
            except Exception as error:
                future.set_exception(error)
