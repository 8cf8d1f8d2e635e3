"""Choosing among options and embedding texts: transformers' numbers, one shared prefix, and the
same numbers however the prompt was cut."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from scalesim import errors
from scalesim.engine.engine import Engine
from scalesim.requests.request import Request
from scalesim.testing.tag_parts import tag_parts
from tests.device.world import hostile, hostile_engine
from tests.engine.test_same_texts import check_empty
from tests.engine.world import TOKENIZER, tiny_engine, tiny_model

PROMPT = "The weather in the valley was so bad that Ada stayed at home and " * 3
OPTIONS = ["slept.", "wrote a letter to Bob.", "ate", "sang, and sang, and sang"]


@cache
def oracle() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model().folder, dtype=torch.float32)


def true_scores(prompt: list[int], option: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits = oracle()(torch.tensor([[*prompt, *option]])).logits[0].double()
    rows = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    return rows.gather(1, torch.tensor(option)[:, None])[:, 0]


@pytest.mark.parametrize("by", ["sum", "mean"])
def test_choices_are_transformers(by: Any) -> None:
    ids = TOKENIZER.encode(PROMPT)
    truth = [true_scores(ids, TOKENIZER.encode(o, add_special_tokens=False)) for o in OPTIONS]
    with tiny_engine() as engine:
        choice = engine.agent("ada").choose(PROMPT, OPTIONS, by=by)
        again = asyncio.run(engine.agent("bob").choose_async(PROMPT, OPTIONS, by=by))
    for scored, want in zip(choice.scores, truth, strict=True):
        assert scored.logprob == pytest.approx(float(want.sum()), abs=1e-3)
        assert scored.mean_logprob == pytest.approx(float(want.mean()), abs=1e-4)
    worth = [float(each.sum() if by == "sum" else each.mean()) for each in truth]
    assert choice.index == int(np.argmax(worth)) and choice.option == OPTIONS[choice.index]
    assert again.scores == choice.scores


def test_options_share_one_prefix() -> None:
    with tiny_engine() as engine:
        choice = engine.agent("ada").choose(PROMPT, OPTIONS)
        blocks = len(TOKENIZER.encode(PROMPT)) // 16 * 16
        for reply in choice.replies[1:]:
            assert reply.usage.cached_tokens >= blocks - 16
        assert engine.stats.output_tokens == 0
    check_empty(engine)


def test_choices_over_token_ids_chats_and_too_long_prompts() -> None:
    with tiny_engine(max_model_len=128) as engine:
        ada = engine.agent("ada")
        by_ids = ada.choose([5, 6, 7], [[8, 9], [10]])
        assert by_ids.scores[0].token_ids == (8, 9)
        chat = [{"role": "user", "content": "Yes or no?"}]
        assert ada.choose(chat, ["yes", "no"]).option in ("yes", "no")
        with pytest.raises(errors.PromptTooLongError):
            ada.choose(PROMPT, OPTIONS)
        short = ada.choose(PROMPT, OPTIONS, on_overflow="drop_oldest")
        assert max(reply.usage.prompt_tokens for reply in short.replies) == 128


@pytest.mark.parametrize("options", [[], "text", [""], ["a", []]])
def test_options_that_are_none(options: Any) -> None:
    with tiny_engine() as engine, pytest.raises(errors.RequestError, match="option"):
        engine.agent("ada").choose("hello", options)


TEXTS = ["a", "Ada went home.", PROMPT, PROMPT + "slept", PROMPT[:100]]


def true_embeddings(pooling: str) -> np.ndarray[Any, Any]:
    rows = []
    for text in TEXTS:
        with torch.inference_mode():
            states = oracle().model(torch.tensor([TOKENIZER.encode(text)])).last_hidden_state[0]
        row = states[-1] if pooling == "last" else states.mean(0)
        rows.append((row / row.norm()).numpy())
    return np.stack(rows)


def engines(kind: str) -> Engine:
    if kind == "chunked":
        return tiny_engine(max_num_batched_tokens=24, max_num_seqs=4)
    if kind == "pressure":
        return tiny_engine(device_pages=14, host_pages=0, max_num_batched_tokens=32, max_num_seqs=8)
    if kind == "two in flight":
        return hostile_engine(hostile(order="random"), watch=False, device_pages=60, host_pages=60)
    return tiny_engine()


@pytest.mark.parametrize("kind", ["plain", "chunked", "pressure", "two in flight"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_are_transformers(kind: str, pooling: Any) -> None:
    want = true_embeddings(pooling)
    with engines(kind) as engine:
        found = engine.embed(TEXTS, pooling=pooling)
        warm = engine.embed(TEXTS, pooling=pooling)  # with everything in memory
        later = asyncio.run(engine.embed_async(TEXTS[:2], pooling=pooling))
    assert found.dtype == np.float32 and found.shape == want.shape
    assert np.abs(found - want).max() < 1e-4
    assert np.abs(warm - want).max() < 1e-4
    assert np.abs(later - want[:2]).max() < 1e-4
    check_empty(engine)


def test_embeddings_beside_texts_change_no_text() -> None:
    prompts = [[i, 7, 9] * 20 for i in range(12)]
    with tiny_engine(device_pages=40, max_num_batched_tokens=40, max_num_seqs=8) as engine:
        alone = [engine.agent(i).generate(p, max_tokens=12, seed=i) for i, p in enumerate(prompts)]
    with tiny_engine(device_pages=40, max_num_batched_tokens=40, max_num_seqs=8) as engine:
        asked: list[Request] = []
        for i, prompt in enumerate(prompts):
            asked.append(engine.agent(i).request(prompt, max_tokens=12, seed=i))
            asked.append(Request(prompt[: 5 + 4 * i], pooling="mean" if i % 2 else "last"))
        replies: list[Any] = engine.run(asked)
    assert [r.token_ids for r in replies[::2]] == [r.token_ids for r in alone]
    assert all(r.embedding.shape == (64,) and r.usage.output_tokens == 0 for r in replies[1::2])


def test_embeddings_that_cannot_be() -> None:
    with tiny_engine() as engine:
        for bad in ("one text", []):
            with pytest.raises(errors.RequestError, match="list"):
                engine.embed(bad)
        with pytest.raises(errors.RequestError, match="pooling"):
            engine.embed(["a"], pooling="max")  # type: ignore[arg-type]
        raw = engine.embed(["a"], normalize=False)
        assert np.linalg.norm(raw) != pytest.approx(1.0)
    tags = Engine(tag_parts(device_pages=9, host_pages=0))
    with tags, pytest.raises(errors.RequestError, match="hidden states"):
        tags.embed([[1, 2]])
