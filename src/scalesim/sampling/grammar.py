"""Structured output: JSON schemas, regular expressions and grammars as token constraints.

Compiled by llguidance on the caller's thread, within limits, and kept for the next caller; masks
are made on the engine's thread, several at once. An optional extra:
``pip install scalesim-runtime[structured]``.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from scalesim.config import StructureConfig
from scalesim.core import Int32s
from scalesim.errors import RequestError, StructureError
from scalesim.sampling.frame import Frame, FrameCheck, Judge
from scalesim.sampling.json_schema import kept_schema
from scalesim.sampling.params import SamplingParams
from scalesim.sampling.schema_check import SchemaCheck

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

    from scalesim.model.text.tokenizer import Tokenizer

TOOLS = "tools"
"""What messages call the schema of the calls in a frame."""
# As json.dumps writes it. With free whitespace a model may write blanks until max_tokens.
JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Structures:
    """The compiled structures of one model. ``compile`` may be called from any thread."""

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_ids: frozenset[int],
        config: StructureConfig | None = None,
    ) -> None:  # fmt: skip
        self._source = tokenizer
        self._vocab_size, self._eos_ids = vocab_size, sorted(eos_ids)
        self._config = config or StructureConfig()
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[object, ...], Structure] = OrderedDict()

    def compile(self, params: SamplingParams) -> Callable[[], GrammarConstraint] | None:
        """What makes a fresh constraint for each sample; ``None`` where no structure is asked for.

        Raises ``StructureError`` for what cannot be compiled within the limits, and
        ``RequestError`` where llguidance is not installed.
        """
        parts = _parts(params)
        if not parts:
            return None
        if find_spec("llguidance") is None:
            raise RequestError(
                f"{', '.join(parts)} needs llguidance: pip install 'scalesim-runtime[structured]'"
            )
        for name, text in parts.items():
            if len(text) > self._config.max_chars:
                raise StructureError(
                    f"{name} of {len(text)} characters; at most {self._config.max_chars} "
                    "(StructureConfig.max_chars)"
                )
        key = *parts.items(), params.frame
        with self._lock:
            tokens, structure = self._tokens, self._compiled.get(key)
        if structure is None:
            structure = self._compile(parts, params.frame, tokens)  # others' need not wait for it
        with self._lock:
            self._compiled[key] = structure
            self._compiled.move_to_end(key)
            if len(self._compiled) > self._config.max_cached:
                self._compiled.popitem(last=False)
        return partial(GrammarConstraint, structure, tokens)

    def _compile(
        self, parts: Mapping[str, str], frame: Frame | None, tokens: GrammarTokens
    ) -> Structure:
        """Raises ``StructureError`` for what has no text at all, too."""
        name = ", ".join(parts)
        compiled = {name: self._part(name, text) for name, text in parts.items()}
        if frame is None:
            [(grammar, judge)] = compiled.values()
        else:
            inner = {name: _inner(name, grammar) for name, (grammar, _) in compiled.items()}
            call, call_judge = inner.pop(TOOLS, None), compiled.pop(TOOLS, (None, None))[1]
            grammar = frame.grammar(next(iter(inner.values()), None), call)
            kept = next((judge for _, judge in compiled.values()), None)
            judge = FrameCheck(frame, kept, call_judge).error
        structure = Structure(name, self._matcher(name, grammar, tokens), judge)
        first = GrammarConstraint(structure, tokens)
        masks = np.zeros((1, first.num_words), np.int32)
        [failed] = first.filler([first], [], masks)
        if failed is not None or not masks.any():
            raise StructureError(
                f"{name} cannot be compiled: no token of this tokenizer can begin a text of it"
            ) from failed
        return structure

    def _part(self, name: str, text: str) -> tuple[str, Judge]:
        """The grammar of one structure, and what judges its texts."""
        from llguidance import LLMatcher

        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise StructureError(
                f"{name} has a lone surrogate at character {error.start}; it must be valid Unicode"
            ) from error
        if name == "regex":
            return LLMatcher.grammar_from_regex(text), _keeps
        if name == "grammar":
            if "%json" in text:
                raise StructureError(
                    "grammar has %json: a schema within a grammar is not checked; give it as "
                    'json_schema=, or write "%" "json" where you mean the text'
                )
            return LLMatcher.grammar_from_lark(text), _keeps
        try:
            schema = kept_schema(json.loads(text))
        except StructureError as error:
            raise StructureError(f"{name}{str(error).removeprefix('json_schema')}") from error
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_STYLE)
        return grammar, SchemaCheck(schema, self._config.max_checks).error

    def _matcher(self, name: str, grammar: str, tokens: GrammarTokens) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        config = self._config
        limits = LLParserLimits(
            initial_lexer_fuel=config.compile_fuel,
            step_lexer_fuel=config.step_fuel,
            step_max_items=config.step_items,
            max_lexer_states=config.max_states,
            max_grammar_size=config.max_symbols,
            verbose_errors=False,
        )
        matcher = LLMatcher(tokens.grammar, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise StructureError(f"{name} cannot be compiled: {_what_failed(matcher)}")
        return matcher

    @cached_property
    def _tokens(self) -> GrammarTokens:
        return GrammarTokens(self._source, self._vocab_size, self._eos_ids)


@dataclass(frozen=True)
class Structure:
    """A compiled one: where each of its constraints begins, and what judges finished texts."""

    name: str
    matcher: LLMatcher
    judge: Judge


class GrammarTokens:
    """The tokens of a model as grammars see them: ``vocab_size`` ids have logits. The tokenizer may
    have more, which no mask shows, or fewer: no grammar asks for what has no text."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: list[int]) -> None:
        self.source, self.vocab_size, self.eos_ids = tokenizer, vocab_size, frozenset(eos_ids)
        self.grammar = grammar_tokenizer(tokenizer, vocab_size, eos_ids)
        self.filler = GrammarMaskFiller(vocab_size, num_ids(tokenizer), self.grammar.vocab_size)

    def text(self, tokens: list[int]) -> str | None:
        """The text of ``tokens`` as a caller sees it; ``None`` where that is not what the grammar
        saw."""
        shown = [token for token in tokens if not self.grammar.is_special_token(token)]
        text = self.source.decode(tokens)
        return text if text.encode() == self.grammar.decode_bytes(shown) else None


class GrammarConstraint:
    """One sequence's place in a grammar."""

    def __init__(self, structure: Structure, tokens: GrammarTokens) -> None:
        self.matcher = structure.matcher.deep_copy()
        self.filler, self.num_words = tokens.filler, tokens.filler.num_words
        self._structure, self._tokens = structure, tokens
        self._output: list[int] = []

    def error(self) -> StructureError | None:
        """Where the matcher gave up."""
        if not self.matcher.is_error():
            return None
        return StructureError(
            f"{self._structure.name}: the next token cannot be decided: "
            f"{_what_failed(self.matcher)}; simplify it, or raise the limits of StructureConfig"
        )

    def push(self, token: int) -> bool:
        self.matcher.consume_token(token)
        if (error := self.error()) is not None:
            raise error
        if token in self._tokens.eos_ids:  # asked for with ignore_eos
            self.end(token)
            return True
        self._output.append(token)
        if not self.matcher.is_stopped():
            return False
        self._check()
        return True

    def end(self, token: int) -> None:
        if token in self._tokens.eos_ids:
            self._check()

    def _check(self) -> None:
        """Raise ``StructureError`` where the finished text does not keep the structure."""
        name = self._structure.name
        text = self._tokens.text(self._output)
        if text is None:
            raise StructureError(
                f"{name}: the text {self._tokens.source.decode(self._output)[:80]!r} is not what "
                "the grammar saw: the tokenizer writes its tokens in another way; begin without "
                "blanks, and ask for valid Unicode only"
            )
        if (found := self._structure.judge(text)) is not None:
            raise StructureError(
                f"{name}: the finished text {text[:80]!r} does not keep it: {found}; say it in "
                "another way, or ask again"
            )


class GrammarMaskFiller:
    """Fills the masks of several grammars on several threads, which need no Python.

    Masks have a bit for each of ``vocab_size`` rows of logits, grammars for each of ``num_known``
    ids; no bit is set from ``num_ids`` on, where the tokenizer's ids end.
    """

    def __init__(self, vocab_size: int, num_ids: int, num_known: int) -> None:
        self.num_words = -(-vocab_size // 32)
        self._num_words = -(-num_known // 32)
        self._num_known, self._num_shown = num_known, min(vocab_size, num_ids)
        shown = np.arange(32 * self.num_words) < self._num_shown
        self._shown = np.packbits(shown, bitorder="little").view(np.int32)

    def __call__(
        self, constraints: list[GrammarConstraint], tokens: list[Int32s], masks: Int32s
    ) -> list[Exception | None]:
        if self._num_known == self._num_shown and self._num_words == self.num_words:
            self._fill(constraints, masks)
            return [constraint.error() for constraint in constraints]
        known = np.zeros((len(constraints), self._num_words), np.int32)
        self._fill(constraints, known)
        both = min(self.num_words, self._num_words)
        np.bitwise_and(known[:, :both], self._shown[:both], out=masks[:, :both])
        return [
            constraint.error() or (None if words.any() else self._no_token())
            for constraint, words in zip(constraints, masks, strict=True)
        ]

    def _no_token(self) -> StructureError:
        return StructureError(
            f"the structure asks for a token from {self._num_shown} on, where the ids end that "
            "both the tokenizer and the model have"
        )

    def _fill(self, constraints: list[GrammarConstraint], masks: Int32s) -> None:
        if len(constraints) == 1:
            constraints[0].matcher.unsafe_compute_mask_ptr(masks.ctypes.data, masks.nbytes)
        else:
            matchers = [(constraint.matcher, i) for i, constraint in enumerate(constraints)]
            self._executor.unsafe_compute_mask_ptr(
                matchers, masks.ctypes.data, masks.strides[0], len(constraints)
            )

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor()


def num_ids(tokenizer: Tokenizer) -> int:
    """One more than the largest id that has a text."""
    from scalesim.model.text.tokenizer import HFTokenizer

    return tokenizer.num_ids if isinstance(tokenizer, HFTokenizer) else tokenizer.vocab_size


def grammar_tokenizer(tokenizer: Tokenizer, vocab_size: int, eos_ids: list[int]) -> LLTokenizer:
    """The tokenizer in llguidance's form, for a model of ``vocab_size`` logits or what the
    tokenizer knows beyond. Raises ``StructureError`` for a kind of tokenizer that it does not
    read."""
    from llguidance import LLTokenizer, TokenizerWrapper

    from scalesim.model.text.tokenizer import ByteTokenizer, HFTokenizer

    if isinstance(tokenizer, HFTokenizer):
        source: Any = tokenizer.to_json()
    elif isinstance(tokenizer, ByteTokenizer):
        source = TokenizerWrapper(_Bytes(tokenizer, eos_ids))
    else:
        raise StructureError(
            f"structured output reads a tokenizer.json or the ByteTokenizer, and no "
            f"{type(tokenizer).__name__}; constrain the tokens with mask="
        )
    eos = [token for token in eos_ids if token < tokenizer.vocab_size]  # others have no text
    size = max(vocab_size, num_ids(tokenizer))
    try:
        return LLTokenizer(source, n_vocab=size, eos_token=eos or None)
    except ValueError as error:
        raise StructureError(f"llguidance does not read this tokenizer: {error}") from error


class _Bytes:
    """A tokenizer whose first 256 ids are the bytes and all others special tokens, as llguidance
    wants to see one."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: list[int]) -> None:
        special = range(256, tokenizer.vocab_size)
        self.eos_token_id = eos_ids[0] if eos_ids else special[0]
        self.bos_token_id = None
        self.tokens = [bytes([i]) for i in range(256)] + [b"<|%d|>" % i for i in special]
        self.special_token_ids = list(special)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _parts(params: SamplingParams) -> dict[str, str]:
    """The structures that ``params`` ask for, as texts by name: one of three, and the tools'."""
    named = {name: getattr(params, name) for name in ("json_schema", "regex", "grammar")}
    parts = {name: value for name, value in named.items() if value is not None}
    if params.json_schema is not None:
        parts["json_schema"] = _json_text(params.json_schema)
    if params.frame is not None and params.frame.calls is not None:
        parts[TOOLS] = params.frame.calls.schema
    return parts


def _inner(name: str, grammar: str) -> Mapping[str, Any]:
    """The grammar of the structure ``name`` as a part of another grammar."""
    if name == "grammar":
        return {"lark_grammar": grammar}
    [inner] = json.loads(grammar)["grammars"]
    return {name: value for name, value in inner.items() if value is not None}


def _keeps(text: str) -> None:
    """The judge of what no schema bounds: the grammar has seen to it."""


def _json_text(schema: object) -> str:
    """A schema as JSON text; ``True``, which is one too, as the object that means the same."""
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if parsed is True:
            parsed = {}
        if not isinstance(parsed, Mapping):
            raise StructureError(f"json_schema is {parsed!r}; it must be an object")
        return json.dumps(parsed, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, StructureError):
            raise
        raise StructureError(f"json_schema is no JSON: {error}") from error


def _what_failed(matcher: LLMatcher) -> str:
    return " ".join(matcher.get_error().split())[:300]
