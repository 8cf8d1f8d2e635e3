"""Tokenizers: that of a model folder, and one of plain bytes.

``TokenStream`` (token_stream.py) turns generated ids into text as they come. The
end-of-sequence ids that a model's generation_config.json adds are read by the loader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from scalesim.checks import shown
from scalesim.errors import RequestError, ScaleSimError, UnsupportedModelError
from scalesim.model.checkpoint.files import read_text
from scalesim.model.text.detokenizer import BYTE_ALPHABET, ByteLevel, Detokenizer, compile_steps
from scalesim.model.text.special_tokens import SpecialTokens

MAX_TOKENIZER_BYTES = 512 << 20
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>")
"""Marks of thinking and of calls. They are text where a tokenizer has them as special tokens, too:
what stands between them cannot be told from an answer otherwise."""


class Tokenizer(Protocol):
    """The interface of a tokenizer. Calls may come from any thread.

    ``special_tokens`` are the named tokens (``bos_token``, ...), as a chat template sees them.
    ``eos_token_ids`` is empty when the tokenizer names none.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    @property
    def special_tokens(self) -> Mapping[str, str]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of ``text``; special tokens written in it are recognized.

        ``add_special_tokens`` adds the tokens that the tokenizer puts around a plain prompt: True
        for a prompt, False for a rendered chat, which has its own. Raises RequestError for text
        that is not valid Unicode.
        """
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``token_ids``. Ids that the tokenizer does not know have no text."""
        ...

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental ``decode``, special tokens skipped."""
        ...


class HFTokenizer:
    """A ``tokenizers.Tokenizer`` with named special tokens, which decoded text does not show, but
    for ``MARKS``.

    Owns ``backend`` and switches its truncation and padding off. Raises UnsupportedModelError if
    its decoder cannot be streamed, or if it does not know its own eos token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        backend.no_padding()
        backend.no_truncation()  # else a truncated prompt would be answered without a warning
        self._backend = backend
        self._steps = compile_steps(_decoder_spec(backend))
        self.special_tokens = dict(special_tokens)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids = _eos_ids(backend, special_tokens)
        named = {backend.token_to_id(token) for token in special_tokens.values()}
        added = backend.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        self._hidden = (named | special) - {backend.token_to_id(mark) for mark in MARKS}
        self._pieces: dict[int, str | None] = {}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        _check_text(text)
        with _library_errors(RequestError, "the model's tokenizer fails on this text"):
            # A batch of one: unlike ``encode``, it releases the interpreter's lock. A long text, or
            # a folder's pattern that backtracks, takes seconds.
            [found] = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return list(found.ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        hidden = self._hidden if skip_special_tokens else ()
        shown = [token_id for token_id in token_ids if token_id not in hidden]
        return str(self._backend.decode(shown, skip_special_tokens=False))

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self._piece, self._steps())

    @property
    def num_ids(self) -> int:
        """One more than the largest id. Ids may have gaps; ``vocab_size`` counts tokens."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)

    def to_json(self) -> str:
        """The tokenizer in the format of tokenizer.json."""
        return str(self._backend.to_str())

    def _piece(self, token_id: int) -> str | None:
        try:
            return self._pieces[token_id]
        except KeyError:
            hidden = token_id in self._hidden
            piece = self._pieces[token_id] = None if hidden else self._backend.id_to_token(token_id)
            return piece


class ByteTokenizer:
    """A tokenizer with one id per byte and some special tokens above, for models without one."""

    SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>")

    def __init__(self) -> None:
        self._ids = {token: 256 + i for i, token in enumerate(self.SPECIAL)}
        self._split = re.compile("(" + "|".join(map(re.escape, self.SPECIAL)) + ")")
        self.vocab_size = 256 + len(self.SPECIAL)
        self.special_tokens = {
            "bos_token": "<|bos|>",
            "eos_token": "<|eos|>",
            "pad_token": "<|pad|>",
        }
        self.eos_token_ids = frozenset({self._ids["<|eos|>"], self._ids["<|im_end|>"]})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        _check_text(text)
        ids = [self._ids["<|bos|>"]] if add_special_tokens else []
        for part in self._split.split(text):
            ids += [self._ids[part]] if part in self._ids else part.encode()
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        special = {} if skip_special_tokens else {i: name.encode() for name, i in self._ids.items()}
        texts = (
            bytes([token_id]) if 0 <= token_id < 256 else special.get(token_id, b"")
            for token_id in token_ids
        )
        return b"".join(texts).decode(errors="replace")

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self._piece, [ByteLevel()])

    def _piece(self, token_id: int) -> str | None:
        return BYTE_ALPHABET[token_id] if 0 <= token_id < 256 else None


def load_tokenizer(folder: Path) -> HFTokenizer:
    """The tokenizer of a Hugging Face model folder: tokenizer.json, with the tokens that the files
    beside it name or add (``special_tokens``). Raises UnsupportedModelError if there is none, if it
    cannot be read, or if it cannot be streamed.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UnsupportedModelError(f"{folder} has no tokenizer.json{_hint(folder)}")
    text = read_text(path, MAX_TOKENIZER_BYTES, UnsupportedModelError)
    tokens = SpecialTokens.of_folder(folder)
    with _library_errors(UnsupportedModelError, f"{path} is not a tokenizer"):
        backend = tokenizers.Tokenizer.from_str(text)
        tokens.check_eos(backend)
        named = tokens.add_to(backend)
    return HFTokenizer(backend, named)


@contextmanager
def _library_errors(kind: type[ScaleSimError], what: str) -> Iterator[None]:
    """Turn the library's errors into ``kind``. The library raises bare Exception, and panics that
    are no Exception."""
    try:
        yield
    except ScaleSimError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {error!s:.500}") from error


def _eos_ids(backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> frozenset[int]:
    eos = special_tokens.get("eos_token")
    if eos is None:
        return frozenset()
    token_id = backend.token_to_id(eos)
    if token_id is None:
        raise UnsupportedModelError(
            f"eos_token {shown(eos)} is not in tokenizer.json, so no text would ever end"
        )
    return frozenset({token_id})


def _decoder_spec(backend: tokenizers.Tokenizer) -> Mapping[str, Any] | None:
    if backend.decoder is None:
        return None
    spec: Mapping[str, Any] = json.loads(backend.decoder.__getstate__())
    return spec


def _hint(folder: Path) -> str:
    if any(folder.glob("*.model")):
        return (
            "; it has a sentencepiece model: load the folder with transformers' "
            "AutoTokenizer and save it with save_pretrained, which writes tokenizer.json"
        )
    return "; download the whole model folder, or use the byte tokenizer with random weights"


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise RequestError(f"the prompt is a {type(text).__name__}; it must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = text[error.start]
        raise RequestError(
            f"the prompt has the lone surrogate {bad!r} at character {error.start}; "
            "it must be valid Unicode"
        ) from error
