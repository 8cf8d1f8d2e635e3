"""A call: one submitted request as its caller sees it, and the reply that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from scalesim.core import FinishReason, Int32s
from scalesim.errors import EngineClosedError
from scalesim.requests.prompt import TextModel
from scalesim.requests.reply import Dropped, Reply, Usage
from scalesim.requests.request import Request

if TYPE_CHECKING:
    import asyncio

    from scalesim.memory.lease import AttachmentSpec
    from scalesim.model.text.token_stream import TokenStream
    from scalesim.requests.added_model import AddedModel
    from scalesim.requests.agent_registry import AgentEntry
    from scalesim.sampling.logits import TokenConstraint
    from scalesim.scheduler.sequence import Observer, Sequence


class Waiter(Protocol):
    """An object that is told of a call's end: in the event loop ``loop``, or on the engine's thread
    if ``loop`` is ``None``."""

    loop: asyncio.AbstractEventLoop | None

    def tell(self, call: Call) -> None: ...


class TextObserver:
    """Observes a sequence's tokens, and ends the sequence at a stop string."""

    def __init__(self, stream: TokenStream) -> None:
        self.stream = stream

    def push(self, token_id: int) -> bool:
        self.stream.push(token_id)
        return self.stream.finished


class _WeakReferable:
    __slots__ = ("__weakref__",)


@dataclass(eq=False, slots=True, repr=False)
class Call(_WeakReferable):
    """A submitted request as its caller sees it: what ``Engine.submit`` returns.

    ``done`` turns true once; then ``result`` gives the reply, or raises.
    """

    request: Request
    model: TextModel
    tokens: Int32s  # of the prompt
    stops: TextObserver | None = None  # looks for stop strings
    owner: AgentEntry | None = None  # the agent at the time of the call; it may be forgotten by now
    dropped: Dropped | None = None  # what was cut from a prompt that was too long
    leader: Call | None = None  # the first sample of the same prompt, if this is another sample
    adapter: str | None = None  # its name; the content is settled when the call is handed in
    added: AddedModel | None = None  # the version of a model that it runs on, beside the own
    attachments: tuple[AttachmentSpec, ...] = ()
    make_constraint: Callable[[], TokenConstraint] | None = None  # if a rule masks the tokens
    digest: int | None = None  # of the prompt and the parameters
    number: int | None = None  # how many equal requests were handed in before
    waiter: Waiter | None = None  # told of the end; a caller that polls ``done`` needs none
    sink: Observer | None = field(init=False)  # given each token as it comes
    submitted_s: float = 0.0
    ended_s: float = 0.0
    deadline_s: float | None = None
    sequence: Sequence | None = None  # once the engine has a place for the call
    error: Exception | None = None
    done: bool = False

    def __post_init__(self) -> None:
        self.sink = self.stops

    def begins(self, now_s: float) -> None:
        """Note that the call is handed in: its timeout counts from ``now_s``."""
        self.submitted_s, self.deadline_s = now_s, self.request.deadline
        if self.request.timeout is not None:
            end_s = now_s + self.request.timeout
            self.deadline_s = end_s if self.deadline_s is None else min(end_s, self.deadline_s)

    def result(self) -> Reply:
        """The reply. Raises the error that ended the request, or ``EngineClosedError`` if the
        request is still open."""
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
        log = sequence.logprobs_log
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
