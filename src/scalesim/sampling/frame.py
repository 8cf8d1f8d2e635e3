"""Where in a text its structure stands: behind thinking, between the marks of calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Judge: TypeAlias = Callable[[str], "str | None"]
"""What is wrong with a text, if anything is."""
_BLANKS = " \t\r\n"


@dataclass(frozen=True, slots=True)
class FramedCalls:
    """Values of the JSON schema ``schema``, a text, each between ``begin`` and ``end``: one, or
    several with ``between`` two of them."""

    schema: str
    begin: str = ""
    end: str = ""
    between: str | None = None

    def values(self, text: str) -> Iterator[str]:
        """The values that are all of ``text``. Raises ``ValueError`` where it is something else."""
        decoder, place = json.JSONDecoder(), 0
        while True:
            place = _behind(text, place, self.begin)
            _, end = decoder.raw_decode(text, place)
            yield text[place:end]
            place = _behind(text, end, self.end)
            if place == len(text):
                return
            if self.between is None:
                raise ValueError(f"{text[place:][:20]!r} follows")
            place = _behind(text, place, self.between)


@dataclass(frozen=True, slots=True)
class Frame:
    """What a text may be around, or instead of, the structure that its parameters ask for.

    Free text up to and with ``end`` comes first (a model's thinking); where there is a ``begin``,
    only if the text starts with that. Then comes the structure, or ``calls`` in its place, which
    are a structure of their own.
    """

    begin: str = ""
    end: str = ""
    calls: FramedCalls | None = None

    def grammar(self, structure: Mapping[str, Any] | None, call: Mapping[str, Any] | None) -> str:
        """The grammar of a text in llguidance's JSON form, of those of its ``structure`` and of a
        ``call``, where it may have them."""
        parts = {"structure": structure, "call": call}
        inner = [{**part, "name": name} for name, part in parts.items() if part is not None]
        return json.dumps({"grammars": [{"lark_grammar": self._lark(structure)}, *inner]})

    def _lark(self, structure: object) -> str:
        kinds = [] if structure is None else ["@structure"]
        lines = []
        if self.calls is not None:
            begin, end = _quoted(self.calls.begin), _quoted(self.calls.end)
            between = self.calls.between
            kinds.append("one" if between is None else f"one ({_quoted(between)} one)*")
            lines.append(f"one: {begin} @call {end}")
        start = " | ".join(kinds)
        if self.end:
            free = f"{_quoted(self.begin)} free blanks?"
            start = f"({free}){'?' if self.begin else ''} ({start})"
            lines += [f"free[suffix={_quoted(self.end)}]: /(?s:.*)/", "blanks: /[ \\t\\r\\n]{1,8}/"]
        return "\n".join([f"start: {start}", *lines])


class FrameCheck:
    """Whether finished texts are what ``frame`` says: ``structure`` judges what stands in it, where
    there is a structure, and ``call`` each call."""

    def __init__(self, frame: Frame, structure: Judge | None, call: Judge | None) -> None:
        self._frame, self._structure, self._call = frame, structure, call

    def error(self, text: str) -> str | None:
        """What is wrong with ``text``."""
        frame, found = self._frame, None
        if frame.end and text.startswith(frame.begin):
            text = text.partition(frame.end)[2].lstrip(_BLANKS)
        if self._call is not None and frame.calls is not None:
            found = _wrong_call(self._call, frame.calls, text)
            if found is None:
                return None
        return found if self._structure is None else self._structure(text)


def _wrong_call(judge: Judge, calls: FramedCalls, text: str) -> str | None:
    try:
        return next(filter(None, map(judge, calls.values(text))), None)
    except (ValueError, RecursionError) as error:
        return str(error)


def _behind(text: str, place: int, mark: str) -> int:
    if not text.startswith(mark, place):
        raise ValueError(f"{text[place:][:20]!r} stands where {mark!r} belongs")
    return place + len(mark)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
