"""Log-probabilities of prompts and outputs: against a plain forward pass of transformers, and the
same whatever was in memory, however the prompt was cut, and with two steps in flight."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from scalesim.batch_options import LogProbs
from scalesim.errors import RequestError
from scalesim.requests.reply import Reply
from tests.device.world import hostile, hostile_engine
from tests.engine.world import tiny_engine, tiny_model

PROMPT = [int(t) for t in np.random.default_rng(3).integers(0, 256, 100)]


@cache
def transformers_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model().folder, dtype=torch.float32)


def truth(tokens: list[int]) -> torch.Tensor:
    """``[len - 1, vocab]``: row i is the log-probabilities of token i + 1."""
    with torch.inference_mode():
        logits = transformers_model()(torch.tensor([tokens])).logits[0]
    return torch.log_softmax(logits[:-1].double(), -1)


def check(found: LogProbs | None, tokens: list[int], start: int, top_k: int) -> None:
    assert found is not None and found.start == start
    want = truth(tokens)[start - 1 : start - 1 + len(found)]
    ids = torch.tensor(tokens[start : start + len(found)])
    assert found.token_ids.tolist() == ids.tolist()
    assert np.allclose(found.logprobs, want.gather(1, ids[:, None])[:, 0], atol=1e-4)
    assert found.top_ids.shape == found.top_logprobs.shape == (len(found), top_k)
    top = want.topk(top_k, dim=-1)
    assert np.allclose(found.top_logprobs, top.values, atol=1e-4)
    differing = (found.top_ids != top.indices.numpy()).sum()
    assert differing <= found.top_ids.size // 100  # near ties may fall either way


def same(a: LogProbs | None, b: LogProbs | None) -> bool:
    assert a is not None and b is not None
    return (
        np.array_equal(a.logprobs, b.logprobs)
        and np.array_equal(a.top_ids, b.top_ids)
        and np.array_equal(a.top_logprobs, b.top_logprobs)
    )


ASKED: dict[str, Any] = {"max_tokens": 9, "logprobs": 3, "prompt_logprobs": 5, "ignore_eos": True}


def test_against_transformers() -> None:
    with tiny_engine(max_num_batched_tokens=32, max_num_seqs=8) as engine:
        reply = engine.agent("ada").generate(PROMPT, **ASKED)
    tokens = PROMPT + list(reply.token_ids)
    check(reply.prompt_logprobs, tokens[: len(PROMPT)], 1, 5)
    assert reply.prompt_logprobs is not None and len(reply.prompt_logprobs) == len(PROMPT) - 1
    check(reply.logprobs, tokens, len(PROMPT), 3)
    assert reply.logprobs is not None and len(reply.logprobs) == 9


def test_scoring_alone_behind_a_prefix_in_memory() -> None:
    """Options behind one prefix: nothing is generated, and the prefix is found."""
    options = [[1, 2, 3], [200], [7] * 20]
    with tiny_engine() as engine:
        ada = engine.agent("ada")
        ada.generate(PROMPT, max_tokens=1)
        requests = [
            ada.request(
                PROMPT + option, max_tokens=0, prompt_logprobs=0,
                prompt_logprobs_start=len(PROMPT),
            )
            for option in options
        ]  # fmt: skip
        replies = engine.run(requests)
        assert engine.parts.scheduler.num_running == 0
    for reply, option in zip(replies, options, strict=True):
        assert isinstance(reply, Reply)
        assert reply.token_ids == () and reply.text == "" and reply.finish_reason == "length"
        assert reply.usage.cached_tokens in (96, 99) and reply.logprobs is None
        check(reply.prompt_logprobs, PROMPT + option, len(PROMPT), 0)
        assert reply.prompt_logprobs is not None and len(reply.prompt_logprobs) == len(option)


@pytest.mark.parametrize("kind", ["chunks", "pressure", "two in flight", "two, no graphs"])
def test_the_same_numbers_under_every_circumstance(kind: str) -> None:
    settings: dict[str, Any] = {"max_num_batched_tokens": 16, "max_num_seqs": 4}
    prompts = [PROMPT[i : i + 60 + i] for i in range(6)]
    params = {**ASKED, "max_tokens": 30}
    with tiny_engine() as engine:
        alone = [engine.agent(i).generate(p, **params) for i, p in enumerate(prompts)]
    if kind == "chunks":
        engine = tiny_engine(**settings)
    elif kind == "pressure":
        engine = tiny_engine(**settings, device_pages=10, host_pages=0, safe_point_tokens=8)
    else:
        graphs = kind == "two in flight"
        engine = hostile_engine(hostile(order="random"), watch=False, graphs=graphs, **settings)
    with engine:
        agents = [engine.agent(i) for i in range(len(prompts))]
        requests = [a.request(p, **params) for a, p in zip(agents, prompts, strict=True)]
        replies = engine.run(requests)
        if kind == "pressure":
            assert engine.parts.memory.counters.preemptions > 0
    for reply, want in zip(replies, alone, strict=True):
        assert isinstance(reply, Reply) and reply.token_ids == want.token_ids
        assert same(reply.logprobs, want.logprobs)
        assert same(reply.prompt_logprobs, want.prompt_logprobs)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logprobs": 21}, "logprobs=21: at most 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs=-1 must be a whole number, at least 0"),
        ({"prompt_logprobs": 0, "prompt_logprobs_start": 0}, "prompt_logprobs_start=0 must be"),
        ({"max_tokens": 0}, "max_tokens=0 must be a whole number, at least 1"),
    ],
)
def test_what_is_refused(params: dict[str, Any], message: str) -> None:
    with tiny_engine() as engine, pytest.raises(RequestError, match=message):
        engine.agent("ada").generate("hello", **params)


def test_where_there_are_no_logits() -> None:
    from scalesim.engine.engine import Engine
    from scalesim.testing.tag_parts import tag_parts

    with (
        Engine(tag_parts(device_pages=9, host_pages=0)) as engine,
        pytest.raises(RequestError, match="no logits"),
    ):
        engine.agent("ada").generate([1, 2], logprobs=0)


def test_pieces_of_a_stream_have_the_log_probabilities_of_their_tokens() -> None:
    """Also where the mailbox held several tokens, and of the token that ends the text."""
    with tiny_engine() as engine:
        whole = engine.agent("a").generate(PROMPT, max_tokens=9, logprobs=3, seed=1)
        pieces = list(engine.agent("b").stream(PROMPT, max_tokens=9, logprobs=3, seed=1))
    assert whole.logprobs is not None
    for field in ("token_ids", "logprobs", "top_ids", "top_logprobs"):
        parts = [getattr(piece.logprobs, field) for piece in pieces if piece.token_ids]
        assert np.array_equal(np.concatenate(parts), getattr(whole.logprobs, field))
    starts = [piece.logprobs.start for piece in pieces if piece.logprobs and len(piece.logprobs)]
    assert starts[0] == whole.logprobs.start and starts == sorted(set(starts))


def test_a_stream_that_asked_for_none_has_none() -> None:
    with tiny_engine() as engine:
        assert all(piece.logprobs is None for piece in engine.agent("a").stream("hi", max_tokens=3))
