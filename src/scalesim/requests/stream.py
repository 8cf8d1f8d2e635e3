"""Streams of replies: the iterators over a call's tokens as they are generated.

The engine's thread puts tokens into a mailbox and goes on. The reader's thread makes the text, so a
slow reader costs the loop nothing. A reader that stops reading cancels the call: a dropped stream
drops its ticket.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from scalesim.batch_options import LogProbs
from scalesim.requests.call import Call
from scalesim.requests.reply import Reply
from scalesim.requests.tickets import Bell, LoopBell, Ticket


@dataclass(frozen=True, slots=True)
class TextPiece:
    """What a reply gained since the piece before: its ``text`` never ends within a character nor
    within what may become a stop string, so it can be empty (and is without a tokenizer).
    ``reply`` comes with the last piece; all pieces together are its text and its token ids.
    ``logprobs`` are those of ``token_ids``, if the request asked for them."""

    text: str
    token_ids: tuple[int, ...]  # generated since the previous piece
    reply: Reply | None = None
    logprobs: LogProbs | None = field(default=None, compare=False, repr=False)


class TextDeltas(Protocol):
    """The methods of ``model.text.token_stream.TokenStream`` that a stream uses."""

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class Mailbox:
    """The queue in which the engine's thread leaves a call's tokens.

    The mailbox refers to no reader, so that a stream can be dropped, and its call with it. ``bell``
    wakes the reader, on its thread or in its event loop; ``announce`` has the engine's loop ring
    the bell, once a step.
    """

    def __init__(self, call: Call, bell: Bell | LoopBell, announce: Callable[[Call], None]) -> None:
        self.loop = bell.loop
        self.tokens: deque[int] = deque()
        self._call, self._bell, self._announce = call, bell, announce
        self._is_announced = False
        self._has_reader = False
        call.waiter = call.sink = self

    # -- on the engine's thread ---------------------------------------------------------------

    def push(self, token_id: int) -> bool:
        """Take a token, as the observer of the scheduler. A stop token is never pushed."""
        self.tokens.append(token_id)
        if self._has_reader and not self._is_announced:
            self._is_announced = True
            self._announce(self._call)
        return self._call.stops is not None and self._call.stops.push(token_id)

    def tell(self, call: Call) -> None:
        """Wake the reader. Called in the reader's event loop, if there is one."""
        self._is_announced = False
        self._bell.ring()

    # -- on the reader's thread ---------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        """Whether there are tokens, or the call is done."""
        return bool(self.tokens) or self._call.done

    def wait(self) -> None:
        """Wait until there are tokens or the call is done, for a second at most."""
        assert isinstance(self._bell, Bell)
        self._has_reader = True  # tokens are announced from here on
        if not self.has_news:
            self._bell.wait()
        self._has_reader = False

    async def wait_async(self) -> None:
        assert isinstance(self._bell, LoopBell)
        self._has_reader = True
        try:
            if not self.has_news:
                await self._bell.wait()
        finally:
            self._has_reader = False


class Reader:
    """Reads a call's mailbox, and makes pieces of text. ``check`` raises if no more tokens can
    come."""

    def __init__(
        self,
        ticket: Ticket,
        mailbox: Mailbox,
        deltas: TextDeltas | None,
        check: Callable[[], None],
    ) -> None:
        [self._call] = ticket.calls
        self.ticket, self.mailbox = ticket, mailbox
        self.reply: Reply | None = None
        self._deltas, self.check = deltas, check
        self._num_read = 0
        self.is_over = False

    def take(self) -> TextPiece | None:
        """The tokens since the previous piece; ``None`` if there are none. Raises the call's own
        error."""
        mailbox, call = self.mailbox, self._call
        done = call.done  # read before the tokens: no token follows it
        tokens = [mailbox.tokens.popleft() for _ in range(len(mailbox.tokens))]
        first = self._num_read
        self._num_read += len(tokens)
        text = "".join(map(self._deltas.push, tokens)) if self._deltas is not None else ""
        if not done or (tokens and call.error is not None):
            return self._piece(text, first, tuple(tokens)) if tokens else None
        self.is_over = True
        self.ticket.keep()
        self.reply = call.result()
        if self._deltas is not None:
            text += self._deltas.finish()
        last = self.reply.token_ids[self._num_read :]  # the token that ended the text
        return self._piece(text, first, (*tokens, *last), self.reply)

    def _piece(
        self, text: str, first: int, tokens: tuple[int, ...], reply: Reply | None = None
    ) -> TextPiece:
        """The tokens of a piece, ``first`` of which is the output's, with what was asked of
        them."""
        sequence = self._call.sequence
        log = None if sequence is None else sequence.logprobs_log
        scores = None if log is None else log.of_output(np.array(tokens, np.int32), first)
        return TextPiece(text, tokens, reply, scores)

    def close(self) -> None:
        if not self.is_over:
            self.ticket.close()
            self.is_over = True


class ReplyStream:
    """An iterator over the pieces of a reply as they are generated: ``for piece in stream``.

    Leaving the loop, by ``break`` or an error, cancels the call and frees its pages; so does
    dropping the stream. ``close``, or a ``with`` block, cancels the call at once, even if the
    stream is still referred to. Iterating raises the call's own error.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def reply(self) -> Reply | None:
        """The whole reply, after the last piece."""
        return self._reader.reply

    def __iter__(self) -> ReplyStream:
        return self

    def __next__(self) -> TextPiece:
        reader = self._reader
        try:
            while not reader.is_over:
                if not reader.mailbox.has_news:
                    reader.check()
                    reader.mailbox.wait()
                piece = reader.take()
                if piece is not None:
                    return piece
        except BaseException:
            reader.close()
            raise
        raise StopIteration

    def close(self) -> None:
        """Cancel the call, unless it has ended."""
        self._reader.close()

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncReplyStream:
    """``async for piece in stream``: as ``ReplyStream``, in the event loop that reads first.

    The call is checked and handed in by the first read, which raises what is wrong with it, unless
    it runs already and has a reader. Cancelling the task that reads cancels the call.
    """

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, Reader]] | Reader) -> None:
        self._begin = None if isinstance(begin, Reader) else begin
        self._reader = begin if isinstance(begin, Reader) else None

    @property
    def reply(self) -> Reply | None:
        """The whole reply, after the last piece."""
        return None if self._reader is None else self._reader.reply

    def __aiter__(self) -> AsyncReplyStream:
        return self

    async def __anext__(self) -> TextPiece:
        try:
            if self._begin is not None:
                begin, self._begin = self._begin, None
                self._reader = await begin()
            reader = self._reader
            while reader is not None and not reader.is_over:
                if not reader.mailbox.has_news:
                    reader.check()
                    await reader.mailbox.wait_async()
                piece = reader.take()
                if piece is not None:
                    return piece
        except BaseException:
            self._close()
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the call, unless it has ended."""
        self._close()

    async def __aenter__(self) -> AsyncReplyStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        self._begin = None
        if self._reader is not None:
            self._reader.close()
