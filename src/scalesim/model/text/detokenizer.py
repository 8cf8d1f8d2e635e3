"""Incremental detokenization: text from token ids, one id at a time.

The pieces together equal the decoding of the whole list. A tokenizer's decoder is a chain of steps
over token strings; each step here does the same on a stream, and holds back only text that a later
token could still change: half a UTF-8 character, a run of byte tokens. Decoders that cannot be
streamed are refused at load.
"""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from scalesim.errors import UnsupportedModelError


class DecoderStep(ABC):
    """One step of a decoder. The results of all ``feed`` calls and a last ``flush`` together equal
    the result for the whole input."""

    @abstractmethod
    def feed(self, piece: str) -> Iterable[str]: ...

    def flush(self) -> Iterable[str]:
        return ()


class Detokenizer:
    """The text of a growing list of token ids.

    ``piece_of`` gives an id's token string, or None for an id that has no text (special or
    unknown). All that ``push`` returned, followed by ``flush``, equals the decoding of the ids at
    once.
    """

    def __init__(self, piece_of: Callable[[int], str | None], steps: Iterable[DecoderStep]) -> None:
        self._piece_of = piece_of
        self._steps = tuple(steps)

    def push(self, token_id: int) -> str:
        """Add one id. Returns the text that became certain."""
        piece = self._piece_of(token_id)
        if piece is None:
            return ""
        pieces: Iterable[str] = (piece,)
        for step in self._steps:
            pieces = _through(step, pieces)
        return "".join(pieces)

    def flush(self) -> str:
        """The text that was held back. An unfinished character becomes U+FFFD."""
        pieces: list[str] = []
        for step in self._steps:
            pieces = [*_through(step, pieces), *step.flush()]
        return "".join(pieces)


def _through(step: DecoderStep, pieces: Iterable[str]) -> list[str]:
    return [out for piece in pieces for out in step.feed(piece)]


def byte_alphabet() -> list[str]:
    """The character for each byte in byte-level BPE: the byte's own character if that is printable,
    else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


BYTE_ALPHABET = tuple(byte_alphabet())
_BYTE_OF = {char: byte for byte, char in enumerate(BYTE_ALPHABET)}


class ByteLevel(DecoderStep):
    """Byte-level BPE: each character of a token stands for a byte. A token with any other character
    is taken as text."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: str) -> Iterable[str]:
        try:
            spelled = bytes([_BYTE_OF[char] for char in piece])
        except KeyError:
            spelled = piece.encode()
        return (self._utf8.decode(spelled),)

    def flush(self) -> Iterable[str]:
        return (self._utf8.decode(b"", final=True),)


class ByteFallback(DecoderStep):
    """Byte fallback: a run of ``<0xNN>`` tokens is text if the whole run is valid UTF-8, else one
    U+FFFD for each byte. So the run is held back until it ends.
    """

    _BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")

    def __init__(self) -> None:
        self._run = bytearray()

    def feed(self, piece: str) -> Iterable[str]:
        if byte := self._BYTE.fullmatch(piece):
            self._run.append(int(byte[1], 16))
            return ()
        return (*self.flush(), piece) if self._run else (piece,)

    def flush(self) -> Iterable[str]:
        run = bytes(self._run)
        self._run.clear()
        try:
            return (run.decode(),)
        except UnicodeDecodeError:
            return ("\N{REPLACEMENT CHARACTER}" * len(run),)


class Replace(DecoderStep):
    """Replaces a fixed string by another, within each token."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def feed(self, piece: str) -> Iterable[str]:
        return (piece.replace(self._old, self._new),)


class Metaspace(DecoderStep):
    """Replaces the mark by a space; drops the mark at the beginning of the text if the tokenizer
    added it there."""

    def __init__(self, mark: str, keep_first: bool) -> None:
        self._mark = mark
        self._space = " " if keep_first else ""

    def feed(self, piece: str) -> Iterable[str]:
        space, self._space = self._space, " "
        return (piece.replace(self._mark, space),)


class StripStart(DecoderStep):
    """Drops up to ``num`` characters ``char`` at the start of the whole text."""

    def __init__(self, char: str, num: int) -> None:
        self._char, self._num = char, num

    def feed(self, piece: str) -> Iterable[str]:
        while self._num and piece:
            if piece[0] != self._char:
                self._num = 0
                break
            piece, self._num = piece[1:], self._num - 1
        return (piece,)


class JoinWords(DecoderStep):
    """Puts a space between tokens, as a tokenizer without a decoder does."""

    def __init__(self) -> None:
        self._separator = ""

    def feed(self, piece: str) -> Iterable[str]:
        separator, self._separator = self._separator, " "
        return (separator, piece)


def compile_steps(decoder: Mapping[str, Any] | None) -> Callable[[], list[DecoderStep]]:
    """A factory of fresh steps for the ``decoder`` entry of a tokenizer.json.

    Raises UnsupportedModelError for a decoder that has no exact stream.
    """
    if decoder is None:
        return lambda: [JoinWords()]
    makers: list[Callable[[], DecoderStep]] = []
    fused = False  # from here on, a step of the decoder sees the whole text as one token
    for spec in _flat(decoder):
        if fused and spec["type"] not in ("Fuse", "Strip"):
            raise _unsupported(spec, "it follows a step that joins all tokens")
        makers += _step_maker(spec, fused)
        fused = fused or spec["type"] in ("Fuse", "ByteLevel")
    return lambda: [make() for make in makers]


def _flat(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [spec for inner in decoder["decoders"] for spec in _flat(inner)]


def _step_maker(spec: Mapping[str, Any], fused: bool) -> list[Callable[[], DecoderStep]]:
    match spec:
        case {"type": "ByteLevel"}:
            return [ByteLevel]
        case {"type": "ByteFallback"}:
            return [ByteFallback]
        case {"type": "Fuse"}:
            return []
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return [lambda: Replace(old, new)]
        case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": scheme}:
            return [lambda: Metaspace(mark, keep_first=scheme == "never")]
        case {"type": "Strip", "content": str(char), "start": int(num), "stop": 0} if fused:
            return [lambda: StripStart(char, num)]
        case _:
            raise _unsupported(spec, "it has no exact stream")


def _unsupported(spec: Mapping[str, Any], why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"tokenizer.json: cannot stream its decoder step {dict(spec)}, because {why}; "
        "streamed are ByteLevel, ByteFallback, Fuse, Metaspace, Replace of a string, and Strip of "
        "the start after Fuse"
    )
