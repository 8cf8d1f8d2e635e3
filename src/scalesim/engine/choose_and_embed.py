"""Calls that are made of other calls: choosing among continuations, and embeddings."""

from __future__ import annotations

from asyncio import gather
from collections.abc import Sequence
from typing import Any, cast

from scalesim.checks import flag
from scalesim.core import Floats, Pooling
from scalesim.engine.streaming import StreamingEntrypoints
from scalesim.requests.choose import (
    By,
    Choice,
    Option,
    checked_options,
    choice_of,
    scoring_requests,
)
from scalesim.requests.embed import embedding_requests, stacked
from scalesim.requests.prompt import Prompt
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request


class ChooseAndEmbed(StreamingEntrypoints):
    """Runs requests whose replies are put together."""

    def choose(self, request: Request, options: Sequence[Option], *, by: By = "sum") -> Choice:
        """The likeliest of ``options`` as what follows the request's prompt, by the sum of its
        tokens' log-probabilities or their mean; waits. The prompt is computed once.

        Of the request, sampling parameters play no part. Raises ``RequestError`` for options that
        are empty.
        """
        options = checked_options(options, by)
        first, *others = scoring_requests(self._intake, request, options)
        replies = [self.generate(first), *cast("list[Reply]", self.run(others))]
        return choice_of(options, replies, by)

    async def choose_async(
        self, request: Request, options: Sequence[Option], *, by: By = "sum"
    ) -> Choice:
        """``choose`` among ``options`` from any event loop."""
        options = checked_options(options, by)
        first, *others = scoring_requests(self._intake, request, options)
        replies = [await self.generate_async(first)]  # the others find the prompt in memory
        replies += await gather(*(self.generate_async(other) for other in others))
        return choice_of(options, replies, by)

    def embed(
        self,
        prompts: Sequence[Prompt],
        *,
        pooling: Pooling = "last",
        normalize: bool = True,
        **options: Any,
    ) -> Floats:
        """``[len(prompts), hidden]`` fp32: the model's final hidden state of each prompt's last
        token, or the mean over its tokens; of length 1 with ``normalize``. Waits.

        Options are fields of ``Request``. Sentence embeddings need a model that was trained for
        them, and its own pooling.
        """
        flag("normalize", normalize)
        replies = self.run(embedding_requests(prompts, pooling, options))
        return stacked(cast("list[Reply]", replies), normalize)

    async def embed_async(
        self,
        prompts: Sequence[Prompt],
        *,
        pooling: Pooling = "last",
        normalize: bool = True,
        **options: Any,
    ) -> Floats:
        """``embed`` from any event loop: ``prompts``, ``pooling`` and ``normalize`` as there."""
        flag("normalize", normalize)
        requests = embedding_requests(prompts, pooling, options)
        return stacked(await gather(*map(self.generate_async, requests)), normalize)
