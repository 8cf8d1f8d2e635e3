"""One call of a tool, ``{"name": "f", "arguments": {"x": 1}}``, read as its characters come."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator
from typing import TypeAlias

ARGUMENTS = ("arguments", "parameters")
"""What models call a call's arguments."""
MAX_DEPTH = 64
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS = ("true", "false", "null")

_Reading: TypeAlias = Generator[None, None, None]
_ReadingText: TypeAlias = Generator[None, None, str]


class _Broken(Exception):
    """What was read is no call."""


class CallReader:
    """Reads one JSON object with a ``name``, of ``names`` if these are given, and arguments.

    A reader is broken by the first character that is no JSON, or no call, so that what has been
    read is a beginning of one. It forgives what small models do: line breaks within strings, which
    are written as JSON wants them; arguments in quotes; other members beside the two.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self.name: str | None = None
        self.is_complete = False
        self.is_broken = False
        self.has_arguments = False
        """Whether the arguments are there to their end."""
        self.streams = False
        """Whether the arguments are an object, whose text may be taken as it comes."""
        self._names = names
        self._arguments: list[str] = []
        self._num_taken = 0
        self._char = ""
        self._writes = self._in_string = False
        self._reading = self._call()

    def feed(self, text: str) -> int:
        """Read on; how many characters of ``text`` are the call's. Fewer than all of them: it is
        complete, or broken by the next one."""
        for index, char in enumerate(text):
            self._char = char
            try:
                next(self._reading)
            except StopIteration:
                self.is_complete = True
                return index + 1
            except _Broken:
                self.is_broken = True
                return index
            if self._writes:
                self._arguments.append(self._written(char))
        return len(text)

    @property
    def is_call(self) -> bool:
        """Whether nothing but a closing brace can be missing."""
        return self.is_complete or (self.name is not None and self.has_arguments)

    def take_arguments(self) -> str:
        """The arguments' text since the last time."""
        text = "".join(self._arguments[self._num_taken :])
        self._num_taken = len(self._arguments)
        return text

    def _written(self, char: str) -> str:
        return json.dumps(char)[1:-1] if self._in_string and char < " " else char

    # -- the grammar: each reads from the current character on; ``yield`` gets the next one -------

    def _call(self) -> _Reading:
        yield from self._skip_blanks()
        yield from self._mark("{")
        while True:
            yield from self._skip_blanks()
            key = yield from self._string()
            yield from self._colon()
            if key == "name" and self.name is None:
                self.name = yield from self._name()
            elif key in ARGUMENTS and not self.has_arguments:
                yield from self._read_arguments()
            elif key == "name" or key in ARGUMENTS:
                raise _Broken  # two of them
            else:
                yield from self._value(0)
            yield from self._skip_blanks()
            if self._char == "}":
                break
            yield from self._mark(",")
        if self.name is None:
            raise _Broken
        if not self.has_arguments:
            self._arguments.append("{}")

    def _name(self) -> _ReadingText:
        if self._char != '"':
            raise _Broken
        name = yield from self._string()
        if not name or (self._names is not None and name not in self._names):
            raise _Broken
        return name

    def _read_arguments(self) -> _Reading:
        if self._char == "{":
            self.streams = self._writes = True
            yield from self._object(1)
            self._writes = False
        elif self._char == '"':
            quoted = yield from self._string()
            if not _is_object(quoted):
                raise _Broken
            self._arguments.append(quoted)
        else:
            word = yield from self._scalar()
            if word != "null":
                raise _Broken
            self._arguments.append("{}")
        self.has_arguments = True

    def _value(self, depth: int) -> _Reading:
        if self._char == "{":
            yield from self._object(depth + 1)
        elif self._char == "[":
            yield from self._list(depth + 1)
        elif self._char == '"':
            yield from self._string()
        else:
            yield from self._scalar()

    def _object(self, depth: int) -> _Reading:
        yield from self._open(depth)
        if self._char != "}":
            while True:
                yield from self._string()
                yield from self._colon()
                yield from self._value(depth)
                yield from self._skip_blanks()
                if self._char == "}":
                    break
                yield from self._mark(",")
                yield from self._skip_blanks()
        yield from self._close(depth)

    def _list(self, depth: int) -> _Reading:
        yield from self._open(depth)
        if self._char != "]":
            while True:
                yield from self._value(depth)
                yield from self._skip_blanks()
                if self._char == "]":
                    break
                yield from self._mark(",")
                yield from self._skip_blanks()
        yield from self._close(depth)

    def _open(self, depth: int) -> _Reading:
        if depth > MAX_DEPTH:
            raise _Broken
        yield
        yield from self._skip_blanks()

    def _close(self, depth: int) -> _Reading:
        if self._writes and depth == 1:
            self.has_arguments = True  # known before the next character comes
        yield

    def _colon(self) -> _Reading:
        yield from self._skip_blanks()
        yield from self._mark(":")
        yield from self._skip_blanks()

    def _string(self) -> _ReadingText:
        yield from self._mark('"')
        read = ['"']
        self._in_string = True
        while self._char != '"':
            char = self._char
            read.append(char)
            yield
            if char == "\\":
                read.append(self._char)
                yield from self._escape(read)
        self._in_string = False
        yield
        text: str = json.loads("".join([*read, '"']), strict=False)
        if not _is_unicode(text):
            raise _Broken
        return text

    def _escape(self, read: list[str]) -> _Reading:
        char = self._char
        if char not in '"\\/bfnrtu':
            raise _Broken
        yield
        for _ in range(4 if char == "u" else 0):
            if self._char not in "0123456789abcdefABCDEF":
                raise _Broken
            read.append(self._char)
            yield

    def _scalar(self) -> _ReadingText:
        read = ""
        while self._char.isalnum() or self._char in "+-.":
            read += self._char
            if len(read) > MAX_DEPTH * 16:
                raise _Broken
            yield
        if read not in _WORDS and not _NUMBER.fullmatch(read):
            raise _Broken
        return read

    def _mark(self, char: str) -> _Reading:
        if self._char != char:
            raise _Broken
        yield

    def _skip_blanks(self) -> _Reading:
        while self._char in " \t\r\n":
            yield


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
