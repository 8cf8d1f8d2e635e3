"""Choosing among given continuations by their log-probability: the requests that score the options,
and the choice that follows from their replies.

An option is tokenized together with the prompt's text, unless that would change the prompt's own
tokens. After a chat or token ids, an option is tokenized alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from scalesim.checks import listed, one_of, refuse, text
from scalesim.core import Int32s
from scalesim.errors import RequestError
from scalesim.requests.check_request import checked_request
from scalesim.requests.prepare import Intake
from scalesim.requests.prompt import Prompt, TextModel, is_chat, is_listed
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.requests.truncate import fit_prompt
from scalesim.sampling.params import SamplingParams

Option = str | Sequence[int]
By = Literal["sum", "mean"]


@dataclass(frozen=True, slots=True)
class Scored:
    """An option with its log-probability (natural) given the prompt."""

    option: Option
    logprob: float  # the sum over all tokens of the option
    mean_logprob: float  # per token
    token_ids: tuple[int, ...]  # of the option


@dataclass(frozen=True, slots=True)
class Choice:
    """The best option, its index, and the scores and replies of all options, in the given order."""

    option: Option
    index: int  # of the best option
    scores: tuple[Scored, ...]  # of each option
    replies: tuple[Reply, ...]  # to the request for each option


def checked_options(options: object, by: object) -> list[Option]:
    """The options as a list. Raises ``RequestError``."""
    rule = "must be a list of one text or token list at least"
    found: list[Option] = listed("options", options, rule)
    if not found:
        refuse("options", options, rule)
    one_of("by", by, ("sum", "mean"))
    return found


def option_ids(prompt: Prompt, tokens: Int32s, option: Option, model: TextModel) -> Int32s:
    """The ids of ``option`` behind ``prompt``, of ids ``tokens``. Raises ``RequestError``."""
    ids: str | Sequence[int] | Int32s = option
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


def scoring_requests(intake: Intake, request: Request, options: Sequence[Option]) -> list[Request]:
    """The requests for the log-probabilities of the options, each after the tokens of the prompt of
    ``request``. Raises what ``Intake.prepare`` raises."""
    request = checked_request(request)
    owner = None if request.agent is None else intake.agents.known(request.agent)
    added = intake.models.version_of(owner)
    model = intake.models.text_of(added)
    if request.pooling is not None:
        raise RequestError(f"pooling={request.pooling!r}: a choice has no embedding; leave it")
    prompt = request.prompt
    tokens = model.token_ids(prompt)
    answers = [option_ids(prompt, tokens, option, model) for option in options]
    adapter = None if owner is None else owner.adapter
    num_beside = 0 if adapter is None else intake.adapters.num_pages(adapter)
    max_tokens = intake.models.max_len(added, num_beside) - max(map(len, answers))
    tokens, _ = fit_prompt(prompt, tokens, max_tokens, request.on_overflow, model)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=len(tokens))
    return [
        replace(
            request, prompt=np.concatenate([tokens, answer]), params=params, on_overflow="error"
        )
        for answer in answers
    ]


def choice_of(options: Sequence[Option], replies: Sequence[Reply], by: By) -> Choice:
    """The best of ``options`` by their replies; the first of equally good options."""
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
