"""The text of an answer taken apart as it comes: thinking, content, calls of tools."""

from __future__ import annotations

from scalesim.chat.reply import ChatDelta, ToolCall


class OutputParser:
    """Takes one text apart, fed in pieces. However the text is cut, all deltas together, and so
    ``content``, ``reasoning`` and ``tool_calls``, are the same."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._tool_calls: list[ToolCall] = []

    @property
    def content(self) -> str | None:
        """What the model says; ``None`` where that is nothing."""
        return "".join(self._content) or None

    @property
    def reasoning(self) -> str | None:
        """What the model thought; ``None`` where that is nothing."""
        return None

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls, in order."""
        return tuple(self._tool_calls)

    def feed(self, text: str) -> ChatDelta:
        """Add text; what the answer gained."""
        self._content.append(text)
        return ChatDelta(text)

    def finish(self) -> ChatDelta:
        """The text is over; what was held back."""
        return ChatDelta()
