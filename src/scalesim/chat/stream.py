"""An answer as it comes: what ``for`` and ``async for`` read of a chat."""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.chat.chat_request import ChatTurn
from scalesim.chat.reply import ChatDelta, ChatReply
from scalesim.requests.stream import AsyncReplyStream, ReplyStream, TextPiece


@dataclass(frozen=True, slots=True)
class ChatPiece(ChatDelta):
    """What an answer gained since the piece before: ``content``, ``reasoning`` and ``tool_calls``,
    which may be nothing, while text is held back that could become a mark. ``reply`` comes with the
    last piece: the whole answer."""

    token_ids: tuple[int, ...] = ()  # generated since the piece before
    reply: ChatReply | None = None


class PieceReader:
    """Makes a chat's pieces of its text's."""

    def __init__(self, turn: ChatTurn) -> None:
        self._turn, self._parser = turn, turn.parser(streams_arguments=True)

    def read(self, piece: TextPiece) -> ChatPiece:
        delta, reply = self._parser.feed(piece.text), None
        if piece.reply is not None:
            held = self._parser.finish()
            delta = ChatDelta(
                delta.content + held.content,
                delta.reasoning + held.reasoning,
                (*delta.tool_calls, *held.tool_calls),
            )
            reply = self._turn.reply(piece.reply, self._parser)
        return ChatPiece(delta.content, delta.reasoning, delta.tool_calls, piece.token_ids, reply)


class ChatStream:
    """``for piece in stream``: a chat's ``ChatPiece``s as they come. As with ``ReplyStream``,
    whoever stops reading cancels the call."""

    def __init__(self, pieces: ReplyStream, turn: ChatTurn) -> None:
        self._pieces, self._reader = pieces, PieceReader(turn)
        self.reply: ChatReply | None = None
        """The whole answer, once the last piece was read."""

    def __iter__(self) -> ChatStream:
        return self

    def __next__(self) -> ChatPiece:
        piece = self._reader.read(next(self._pieces))
        self.reply = piece.reply
        return piece

    def close(self) -> None:
        """Cancel the call, unless it has ended."""
        self._pieces.close()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncChatStream:
    """``async for piece in stream``: as ``ChatStream``, in the event loop that reads first."""

    def __init__(self, pieces: AsyncReplyStream, turn: ChatTurn) -> None:
        self._pieces, self._reader = pieces, PieceReader(turn)
        self.reply: ChatReply | None = None
        """The whole answer, once the last piece was read."""

    def __aiter__(self) -> AsyncChatStream:
        return self

    async def __anext__(self) -> ChatPiece:
        piece = self._reader.read(await anext(self._pieces))
        self.reply = piece.reply
        return piece

    async def aclose(self) -> None:
        """Cancel the call, unless it has ended."""
        await self._pieces.aclose()

    async def __aenter__(self) -> AsyncChatStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()
