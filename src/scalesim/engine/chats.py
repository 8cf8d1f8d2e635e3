"""Chats: requests in messages and tools, whose texts come back as answers."""

from __future__ import annotations

from scalesim.chat.chat_request import ChatRequest, ChatTurn, as_turn
from scalesim.chat.reply import ChatReply
from scalesim.chat.stream import AsyncChatStream, ChatStream
from scalesim.checks import instance
from scalesim.engine.choose_and_embed import ChooseAndEmbed


class ChatEntrypoints(ChooseAndEmbed):
    """Runs chats. What is wrong with a chat itself raises ``RequestError`` where it is given, what
    is wrong with its request where that is handed in."""

    def chat(self, request: ChatRequest) -> ChatReply:
        """The assistant's answer; waits."""
        turn = self.chat_turn(request)
        return turn.reply(self.generate(turn.request))

    async def chat_async(self, request: ChatRequest) -> ChatReply:
        """``chat`` from any event loop. Cancelling the task cancels the request."""
        turn = self.chat_turn(request)
        return turn.reply(await self.generate_async(turn.request))

    def chat_stream(self, request: ChatRequest) -> ChatStream:
        """``for piece in engine.chat_stream(request)``: the answer as it comes. The request runs
        from now on. A reader that stops reading cancels it."""
        turn = self.chat_turn(request)
        return ChatStream(self.stream(turn.request), turn)

    def chat_stream_async(self, request: ChatRequest) -> AsyncChatStream:
        """``chat_stream`` for ``async for`` in the running event loop. The request runs from the
        first read on."""
        turn = self.chat_turn(request)
        return AsyncChatStream(self.stream_async(turn.request), turn)

    def chat_turn(self, request: ChatRequest) -> ChatTurn:
        """What ``request`` is to the engine: checked and rendered, on any thread, and handed in
        by nobody yet. For servers, which do so beside their event loop."""
        hint = "write ChatRequest(messages), or use an agent's chat"
        instance("request", request, ChatRequest, hint)
        self._inbox.check_open()
        return as_turn(request, self._intake.model_of(request.agent), self.sampling())
