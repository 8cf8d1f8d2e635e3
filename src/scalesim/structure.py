"""Structured output: JSON schemas, regular expressions and grammars as guides, through llguidance.

Compiled on the caller's thread, within limits, and kept for the next caller; masks are made on the
engine's, several at once. An optional extra: ``pip install scalesim-runtime[structured]``.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from scalesim.config import StructureConfig
from scalesim.core import Int32s, SamplingParams
from scalesim.errors import RequestError, StructureError

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

    from scalesim.model.tokenizer import Tokenizer

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
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def compile(self, params: SamplingParams) -> Callable[[], GrammarGuide] | None:
        """What makes a fresh guide for each sample; ``None`` where no structure is asked for.

        Raises ``StructureError`` for what cannot be compiled within the limits, and
        ``RequestError`` where llguidance is not installed.
        """
        named = {
            name: value
            for name in ("json_schema", "regex", "grammar")
            if (value := getattr(params, name)) is not None
        }
        if not named:
            return None
        [(name, value)] = named.items()  # check_params lets one through
        if find_spec("llguidance") is None:
            raise RequestError(
                f"{name} needs llguidance: pip install 'scalesim-runtime[structured]'"
            )
        text = self._text(name, value)
        with self._lock:
            matcher = self._compiled.get(text)
            if matcher is None:
                matcher = self._compiled[text] = self._compile(name, text)
            self._compiled.move_to_end(text)
            if len(self._compiled) > self._config.max_cached:
                self._compiled.popitem(last=False)
        num_words = -(-self._vocab_size // 32)
        return lambda: GrammarGuide(matcher.deep_copy(), self._filler, name, num_words)

    def _text(self, name: str, value: Mapping[str, Any] | str) -> str:
        """The grammar in llguidance's own form; it is not checked yet."""
        from llguidance import LLMatcher

        if name == "json_schema":
            value = _json_text(value)
        assert isinstance(value, str)  # check_params lets nothing else through
        if len(value) > self._config.max_chars:
            raise StructureError(
                f"{name} of {len(value)} characters; at most {self._config.max_chars} "
                "(StructureConfig.max_chars)"
            )
        if name == "json_schema":
            return LLMatcher.grammar_from_json_schema(value, overrides=JSON_STYLE)
        if name == "regex":
            return LLMatcher.grammar_from_regex(value)
        return LLMatcher.grammar_from_lark(value)

    def _compile(self, name: str, text: str) -> LLMatcher:
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
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise StructureError(f"{name} cannot be compiled: {_what_failed(matcher)}")
        return matcher

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return grammar_tokenizer(self._source, self._vocab_size, self._eos_ids)

    @cached_property
    def _filler(self) -> GrammarFiller:
        return GrammarFiller()


class GrammarGuide:
    """One sequence's place in a grammar."""

    def __init__(
        self, matcher: LLMatcher, filler: GrammarFiller, name: str, num_words: int
    ) -> None:
        self.matcher, self.filler, self._name = matcher, filler, name
        self.num_words = num_words

    def error(self) -> StructureError | None:
        """Where the matcher gave up."""
        if not self.matcher.is_error():
            return None
        return StructureError(
            f"{self._name}: the next token cannot be decided: {_what_failed(self.matcher)}; "
            "simplify it, or raise the limits of StructureConfig"
        )

    def push(self, token: int) -> bool:
        self.matcher.consume_token(token)
        if (error := self.error()) is not None:
            raise error
        return self.matcher.is_stopped()


class GrammarFiller:
    """Fills the masks of several grammars on several threads, which need no Python."""

    def __call__(
        self, guides: list[GrammarGuide], tokens: list[Int32s], masks: Int32s
    ) -> list[Exception | None]:
        if len(guides) == 1:
            guides[0].matcher.unsafe_compute_mask_ptr(masks.ctypes.data, masks.nbytes)
        else:
            matchers = [(guide.matcher, i) for i, guide in enumerate(guides)]
            self._executor.unsafe_compute_mask_ptr(
                matchers, masks.ctypes.data, masks.strides[0], len(guides)
            )
        return [guide.error() for guide in guides]

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor()


def grammar_tokenizer(tokenizer: Tokenizer, vocab_size: int, eos_ids: list[int]) -> LLTokenizer:
    """The tokenizer in llguidance's form, for a model of ``vocab_size`` logits."""
    from llguidance import LLTokenizer, TokenizerWrapper

    from scalesim.model.tokenizer import HFTokenizer

    if isinstance(tokenizer, HFTokenizer):
        return LLTokenizer(tokenizer.to_json(), n_vocab=vocab_size, eos_token=eos_ids or None)
    wrapper = TokenizerWrapper(_Bytes(tokenizer, eos_ids))
    return LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=eos_ids or None)


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


def _json_text(schema: Mapping[str, Any] | str) -> str:
    """A schema as JSON text; ``True``, which is one too, as the object that means the same."""
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if parsed is True:
            parsed = {}
        if not isinstance(parsed, Mapping):
            raise StructureError(f"json_schema is {parsed!r}; it must be an object")
        return json.dumps(parsed)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, StructureError):
            raise
        raise StructureError(f"json_schema is no JSON: {error}") from error


def _what_failed(matcher: LLMatcher) -> str:
    return " ".join(matcher.get_error().split())[:300]
