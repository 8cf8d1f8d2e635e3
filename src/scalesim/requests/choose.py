"""Choosing among given continuations by their log-probability: what the intake makes of a choice,
and what comes of its replies.

An option is tokenized as what follows the prompt's text, the prompt's own tokens being kept; where
that cannot be (a chat, token ids), on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from scalesim.checks import one_of, reading, refuse, text
from scalesim.core import Int32s
from scalesim.errors import RequestError
from scalesim.requests.prompt import Prompt, TextModel, is_chat, is_listed
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams

Option = str | Sequence[int]
By = Literal["sum", "mean"]


@dataclass(frozen=True, slots=True)
class Scored:
    """One option: the log-probability (natural) of all its tokens, given the prompt, as a sum and
    as a mean per token."""

    option: Option
    logprob: float  # the sum
    mean_logprob: float  # per token
    token_ids: tuple[int, ...]  # of the option


@dataclass(frozen=True, slots=True)
class Choice:
    """The best option, where it stood, and what each was worth, in the order given."""

    option: Option
    index: int  # of the best one
    scores: tuple[Scored, ...]  # an option each
    replies: tuple[Reply, ...]  # an option each, with what it took


def checked_options(options: object, by: object) -> list[Option]:
    """The options, listed. Raises ``RequestError``."""
    if isinstance(options, (str, bytes, Mapping)) or not isinstance(options, Iterable):
        refuse("options", options, "must be a list of one text or token list at least")
    with reading("options"):
        listed: list[Option] = list(options)
    if not listed:
        refuse("options", options, "must be a list of one text or token list at least")
    one_of("by", by, ("sum", "mean"))
    return listed


def option_ids(prompt: Prompt, tokens: Int32s, option: Option, model: TextModel) -> Int32s:
    """The ids of ``option`` behind ``prompt``, of ids ``tokens``. Raises ``RequestError``."""
    ids: Prompt = option
    if isinstance(option, str):
        option = text("option", option)
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise RequestError("a text option needs a tokenizer and this model has none; give ids")
        ids = tokenizer.encode(option, add_special_tokens=False)
        if isinstance(prompt, str):
            whole = tokenizer.encode(text("prompt", prompt) + option)
            if whole[: len(tokens)] == tokens.tolist():
                ids = whole[len(tokens) :]
    elif not is_listed(option) or is_chat(option):
        refuse("option", option, "must be text or a list of token ids")
    if len(ids) == 0:
        refuse("option", option, "has no token; each must have one at least")
    return model.token_ids(ids)


def scoring_request(request: Request, tokens: Int32s, option: Int32s) -> Request:
    """``request`` for the log-probabilities of ``option`` behind ``tokens``, and nothing else."""
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=len(tokens))
    prompt = np.concatenate([tokens, option])
    return replace(request, prompt=prompt, params=params, on_overflow="error")


def choice_of(options: Sequence[Option], replies: Sequence[Reply], by: By) -> Choice:
    """Ties go to the first."""
    scores = []
    for option, reply in zip(options, replies, strict=True):
        found = reply.prompt_logprobs
        assert found is not None
        total = float(found.logprobs.sum(dtype=np.float64))
        ids = tuple(found.token_ids.tolist())
        scores.append(Scored(option, total, total / len(ids), ids))
    worth = [score.logprob if by == "sum" else score.mean_logprob for score in scores]
    index = max(range(len(worth)), key=worth.__getitem__)
    return Choice(options[index], index, tuple(scores), tuple(replies))
