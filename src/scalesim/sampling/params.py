"""Sampling parameters of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from scalesim.core import Int32s
from scalesim.sampling.frame import Frame


class LogitsMask(Protocol):
    """A caller's function that says which tokens may come next. It is called on the engine's thread
    before each token of the request, so it must be quick. An exception ends the request, and no
    other request."""

    def __call__(self, prompt: Int32s, output: Int32s) -> Sequence[int] | npt.NDArray[Any] | None:
        """The ids that may come next, a bool mask ``[vocab_size]``, or ``None`` for all tokens.

        prompt, output : ``[n]`` int32, the tokens so far; not to be changed.
        """


class HasSchema(Protocol):
    """What writes its own JSON schema, as pydantic's models do."""

    def model_json_schema(self) -> dict[str, Any]:
        """The schema of its instances."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are drawn. docs/sampling.md defines each field exactly.

    ``temperature`` 0 is greedy (ties go to the lowest id). ``min_p`` 0, ``top_k`` 0 and ``top_p`` 1
    keep every token. ``repetition_penalty`` (1: off) counts the prompt, ``presence_penalty`` and
    ``frequency_penalty`` (0: off) the output alone. ``logit_bias`` is added to the logits of the
    tokens that it names; -inf rules one out. No end-of-sequence or stop token comes before
    ``min_tokens``. ``n`` samples of one prompt share its prefix. ``mask`` says before each token
    which ones are allowed (``LogitsMask``); ``json_schema`` (a schema, or a pydantic model),
    ``regex`` or ``grammar`` (in Lark's syntax) make the text keep a structure (the extra
    ``structured``), of which ``frame`` says where in the text it stands. ``seed`` replaces the
    engine's seed for this request:
    equal prompt, parameters and seed give equal text. ``stop`` strings end the text before their
    first occurrence; ``stop_token_ids`` and the model's own end-of-sequence ids end it too
    (``ignore_eos`` switches the model's own off).

    ``logprobs`` asks for the natural log-probability of every generated token and of so many of
    the likeliest beside it (0: of the token alone); ``prompt_logprobs`` for those of the prompt's
    tokens from position ``prompt_logprobs_start`` on (the first token has none: nothing stands
    before it). They are the model's own: of its logits at temperature 1, before any parameter
    changes them. What lies before ``prompt_logprobs_start`` may be found in memory; the rest is
    computed anew. With ``prompt_logprobs``, ``max_tokens`` may be 0.
    """

    max_tokens: int = 128  # the most tokens to generate
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    min_tokens: int = 0
    n: int = 1
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 1
    mask: LogitsMask | None = None
    json_schema: Mapping[str, Any] | str | HasSchema | None = None
    regex: str | None = None
    grammar: str | None = None
    frame: Frame | None = None

    @property
    def is_structured(self) -> bool:
        """Whether a schema, an expression, a grammar or tools bound the output."""
        if self.frame is not None and self.frame.calls is not None:
            return True
        return not (self.json_schema is None and self.regex is None and self.grammar is None)
