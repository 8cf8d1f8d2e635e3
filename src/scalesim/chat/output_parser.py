"""The text of an answer taken apart as it comes: thinking, content, calls of tools."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from uuid import uuid4

from scalesim.chat.call_reader import CallReader
from scalesim.chat.reply import ChatDelta, ToolCall, ToolCallDelta
from scalesim.chat.tool_formats import BLANKS, ToolFormat

Thinking: TypeAlias = Literal["no", "may", "open"]
"""Whether a text begins with thinking: never, where it says so, or since the prompt's end."""
THINK, END_THINK = "<think>", "</think>"


@dataclass(slots=True)
class _Part:
    """What was read of an answer's content, or of its thinking."""

    pieces: list[str] = field(default_factory=list)
    num_given: int = 0  # of the pieces, in deltas

    def news(self) -> str:
        news = "".join(self.pieces[self.num_given :])
        self.num_given = len(self.pieces)
        return news

    @property
    def text(self) -> str | None:
        return "".join(self.pieces) or None


@dataclass(slots=True)
class _OpenCall:
    """A call that is being read: all that was written for it, and what of it was given out."""

    reader: CallReader
    written: list[str]
    index: int | None = None  # once it is given out


class OutputParser:
    """Takes one text apart, fed in pieces. However the text is cut, all deltas together, and so
    ``content``, ``reasoning`` and ``tool_calls``, are the same.

    Without thinking and ``tools`` the content is the text. Blanks around thinking and calls are
    dropped. What looks like a call and is none stays content, as it was written; calls after
    ``max_calls`` are dropped, with what follows. ``names`` are the tools'. A call is given out when
    it is complete; with ``streams_arguments`` as soon as its name is known and its arguments begin,
    so that one that breaks off later stays a call, with a beginning of arguments.
    """

    def __init__(
        self,
        tools: ToolFormat | None = None,
        names: Collection[str] = (),
        *,
        thinking: Thinking = "no",
        max_calls: int | None = None,
        streams_arguments: bool = False,
    ) -> None:
        self._tools, self._names, self._max_calls = tools, names, max_calls
        self._streams_arguments = streams_arguments
        self._content, self._reasoning = _Part(), _Part()
        self._calls: list[ToolCall] = []
        self._deltas: list[ToolCallDelta] = []  # since the last one given
        self._text = ""  # what is not read yet, because it may become something else
        self._blanks = ""  # read: they count if something follows that they may stand before
        self._drops_blanks = False  # where nothing stands before them
        self._is_behind_call = False
        self._is_over = False
        self._call: _OpenCall | None = None
        self._read = {
            "no": self._read_start, "may": self._read_mark, "open": self._read_opened,
        }[thinking]  # fmt: skip

    @property
    def content(self) -> str | None:
        """What the model says; ``None`` where that is nothing."""
        return self._content.text

    @property
    def reasoning(self) -> str | None:
        """What the model thought; ``None`` where that is nothing."""
        return self._reasoning.text

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls, in order."""
        return tuple(self._calls)

    def feed(self, text: str) -> ChatDelta:
        """Add text; what the answer gained."""
        self._text += text
        while self._read():
            pass
        calls, self._deltas = tuple(self._deltas), []
        return ChatDelta(self._content.news(), self._reasoning.news(), calls)

    def finish(self) -> ChatDelta:
        """The text is over; what was held back."""
        self._is_over = True
        return self.feed("")

    # -- states: each reads what it can, and says whether another one can go on -------------------

    def _read_mark(self) -> bool:
        """The very beginning, where thinking may be marked."""
        text = self._text.lstrip(BLANKS)
        if not self._is_over and THINK.startswith(text):
            return False
        self._read = self._read_opened if text.startswith(THINK) else self._read_start
        return True

    def _read_opened(self) -> bool:
        """The beginning of thinking; a mark that the prompt has already may be there again."""
        self._text = self._text.lstrip(BLANKS)
        if not self._is_over and THINK.startswith(self._text):
            return False
        self._text = self._text.removeprefix(THINK)
        self._drops_blanks = True
        self._read = self._read_thinking
        return True

    def _read_thinking(self) -> bool:
        if not self._read_up_to(END_THINK, self._reasoning):
            return False
        self._blanks = ""
        self._read = self._read_start
        return True

    def _read_start(self) -> bool:
        """The beginning of the answer, where a call may have no mark."""
        if self._tools is not None and self._tools.is_bare:
            text = self._text.lstrip(BLANKS)
            if not text and not self._is_over:
                return False
            if text.startswith("{"):
                self._blanks, self._text = self._text[: -len(text)], text
                return self._begin_call("")
        self._read = self._read_content
        return True

    def _read_content(self) -> bool:
        if self._tools is None:
            self._take(len(self._text), self._content)
            self._keep_blanks()
            return False
        if self._read_up_to(self._tools.begin, self._content):
            return self._begin_call(self._tools.begin)
        if self._is_over:
            self._keep_blanks()
        return False

    def _read_call(self) -> bool:
        assert self._call is not None
        reader = self._call.reader
        count = reader.feed(self._text)
        self._call.written.append(self._text[:count])
        self._text = self._text[count:]
        is_over = self._is_over or reader.is_broken
        if reader.is_complete or (is_over and reader.is_call):
            self._give(self._call)
            self._read = self._read_behind
            return True
        if self._streams_arguments and reader.streams and reader.name is not None:
            self._give(self._call)
        if is_over:
            if self._call.index is None:
                self._say("".join(self._call.written), self._content)
            self._read = self._read_content
        return is_over

    def _read_behind(self) -> bool:
        """Behind a call: its end, or another one."""
        tools = self._tools
        assert tools is not None
        text = self._text.lstrip(tools.separators + "}")  # a brace too many is forgiven
        if not self._is_over and (tools.end or tools.begin).startswith(text):
            return False
        if self._max_calls is not None and len(self._calls) >= self._max_calls:
            self._read = self._read_nothing
        elif text.startswith("{"):
            self._text = text
            return self._begin_call("")
        else:
            if tools.end and text.startswith(tools.end):
                self._text = text.removeprefix(tools.end)
            elif not text or text.startswith(tools.begin):
                self._text = text
            self._read = self._read_content
        return True

    def _read_nothing(self) -> bool:
        self._text = ""
        return False

    # -- what they share --------------------------------------------------------------------------

    def _read_up_to(self, mark: str, part: _Part) -> bool:
        """Read what stands before ``mark`` and the mark; without it, what cannot become it."""
        found = self._text.find(mark)
        if found >= 0:
            self._take(found, part)
            self._text = self._text[len(mark) :]
            return True
        num_open = 0 if self._is_over else _num_begun(self._text, mark)
        self._take(len(self._text) - num_open, part)
        return False

    def _take(self, count: int, part: _Part) -> None:
        self._say(self._text[:count], part)
        self._text = self._text[count:]

    def _say(self, text: str, part: _Part) -> None:
        """``text`` is of ``part``, but for the blanks at its end, which wait."""
        text = self._blanks + text
        if self._drops_blanks and not part.pieces:
            text = text.lstrip(BLANKS)
        kept = text.rstrip(BLANKS)
        self._blanks = text[len(kept) :]
        if kept:
            part.pieces.append(kept)
            self._is_behind_call = False

    def _keep_blanks(self) -> None:
        """The blanks at the end of content are content, unless they stand behind a call."""
        if self._blanks and not self._is_behind_call:
            self._content.pieces.append(self._blanks)
        self._blanks = ""

    def _begin_call(self, mark: str) -> bool:
        assert self._tools is not None
        names = self._names if self._tools.is_bare else None
        self._call = _OpenCall(CallReader(names), [mark])
        self._read = self._read_call
        return True

    def _give(self, call: _OpenCall) -> None:
        """Give out what was read of ``call``."""
        name, arguments = call.reader.name, call.reader.take_arguments()
        assert name is not None
        if call.index is None:
            call.index = len(self._calls)
            self._blanks, self._drops_blanks, self._is_behind_call = "", True, True
            self._calls.append(ToolCall(f"call_{uuid4().hex}", name, arguments))
            self._deltas.append(ToolCallDelta(call.index, self._calls[-1].id, name, arguments))
        elif arguments:
            given = self._calls[call.index]
            self._calls[call.index] = ToolCall(given.id, name, given.arguments + arguments)
            self._deltas.append(ToolCallDelta(call.index, arguments=arguments))


def _num_begun(text: str, mark: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``mark``."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
