"""Sampling parameters through the whole engine: transformers' greedy texts, and the same texts
whatever the neighbours, the memory, and the steps in flight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scalesim.config import EngineConfig
from scalesim.core import Int32s
from scalesim.engine.build import build_parts, with_settings
from scalesim.engine.engine import Engine
from scalesim.errors import ConfigError, RequestError
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from tests.device.world import hostile, hostile_engine
from tests.engine.world import tiny_engine, tiny_model

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(0, 256, 20 + 7 * i).tolist() for i in range(6)]
EOS = 257
PARAMS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"min_p": 0.3, "top_k": 40},
    {"logit_bias": {65: 6.0, 66: -np.inf}, "min_tokens": 12, "stop_token_ids": (65,)},
    {},
    {"repetition_penalty": 0.8, "temperature": 0.0},
]


@cache
def transformers_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model().folder, dtype=torch.float32)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"logit_bias": {40: 1.5, 41: -2.0}}, {"sequence_bias": {(40,): 1.5, (41,): -2.0}}),
        (
            {"min_tokens": 9, "logit_bias": {EOS: 9.0}, "stop_token_ids": (EOS,)},
            {"min_new_tokens": 9, "sequence_bias": {(EOS,): 9.0}, "eos_token_id": EOS},
        ),
    ],
)
def test_greedy_texts_are_those_of_transformers(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    with tiny_engine() as engine:
        reply = engine.agent("ada").generate(PROMPTS[2], temperature=0, max_tokens=24, **ours)
    options = {"eos_token_id": None, "pad_token_id": 0, **theirs}
    prompt = torch.tensor([PROMPTS[2]])
    with torch.inference_mode():
        ids = transformers_model().generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=24,
            **options,
        )  # fmt: skip
    assert list(reply.token_ids) == ids[0, len(PROMPTS[2]) :].tolist()


def requests(engine: Engine, **more: Any) -> list[Request]:
    options = {"max_tokens": 40, "ignore_eos": True, **more}
    return [
        engine.agent(i).request(prompt, **{**options, **params})
        for i, (prompt, params) in enumerate(zip(PROMPTS, PARAMS, strict=True))
    ]


@cache
def alone() -> list[tuple[int, ...]]:
    with tiny_engine() as engine:
        return [engine.generate(request).token_ids for request in requests(engine)]


SMALL: dict[str, Any] = {"max_num_batched_tokens": 16, "max_num_seqs": 4}
WORLDS: dict[str, Callable[[], Engine]] = {
    "batch": tiny_engine,
    "pressure": lambda: tiny_engine(
        **SMALL, device_pages=9, host_pages=0, safe_point_tokens=8
    ),
    "graphs": lambda: hostile_engine(hostile(order="random"), watch=False, **SMALL),
    "lazy": lambda: hostile_engine(hostile(order="lazy"), watch=False, graphs=False, **SMALL),
    "two, pressure": lambda: hostile_engine(
        hostile(order="random"), watch=False, device_pages=9, host_pages=0, safe_point_tokens=8,
        **SMALL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("world", WORLDS)
def test_texts_depend_on_nobody_else(world: str) -> None:
    with WORLDS[world]() as engine:
        replies = engine.run(requests(engine))
        if "pressure" in world:
            assert engine.parts.memory.counters.preemptions > 0
    assert [reply.token_ids for reply in replies if isinstance(reply, Reply)] == alone()


def test_what_the_parameters_did() -> None:
    penalized, present, _, biased, plain, _ = alone()
    assert len(set(penalized)) > len(set(plain))
    assert len(set(present)) > len(set(plain))
    assert 66 not in biased and 65 not in biased[:12] and biased[-1] == 65


# n samples ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [(), ("a", "e")])
def test_samples_share_their_prefix(stop: tuple[str, ...]) -> None:
    prompt = PROMPTS[5] * 3
    with tiny_engine() as engine:
        ada = engine.agent("ada")
        params = {"max_tokens": 12, "seed": 3, "stop": stop}
        reply = ada.generate(prompt, n=5, **params)
        singly = [ada.generate(prompt, sample_index=i, **params) for i in range(5)]
    assert len(reply.samples) == 5 and reply.samples[0] is reply
    assert [each.token_ids for each in reply.samples] == [each.token_ids for each in singly]
    assert [each.text for each in reply.samples] == [each.text for each in singly]
    assert len({each.token_ids for each in reply.samples}) > 1
    full = len(prompt) // 16 * 16
    assert reply.usage.cached_tokens == 0
    assert all(each.usage.cached_tokens >= full for each in reply.others)


def test_samples_among_other_requests_and_asynchronously() -> None:
    import asyncio

    with tiny_engine(max_num_seqs=3) as engine:
        ada = engine.agent("ada")
        three = ada.request(PROMPTS[1], n=3, max_tokens=5, seed=1)
        replies = engine.run([three, ada.request(PROMPTS[0], max_tokens=2), three])
        again = asyncio.run(engine.generate_async(three))
        sizes = [len(reply.samples) for reply in replies if isinstance(reply, Reply)]
        assert sizes == [3, 1, 3] and len(again.samples) == 3
        with pytest.raises(RequestError, match="n=2: one sample at a time"):
            engine.submit(ada.request("hi", n=2))
        assert engine.parts.scheduler.num_waiting == 0


def test_samples_that_time_out_end_together() -> None:
    from scalesim.errors import RequestTimeoutError

    with tiny_engine() as engine:
        with pytest.raises(RequestTimeoutError):
            engine.agent("ada").generate(PROMPTS[5] * 9, n=4, max_tokens=900, timeout=0.02)
        engine.agent("bob").generate("on it goes", max_tokens=2)
        assert engine.parts.scheduler.num_running == 0


# Masks -------------------------------------------------------------------------------------------


def digits(prompt: Int32s, output: Int32s) -> list[int]:
    """Digits, each at least the one before."""
    least = int(output[-1]) if len(output) else ord("0")
    return list(range(least, ord("9") + 1))


@pytest.mark.parametrize("world", ["batch", "lazy", "two, pressure"])
def test_a_mask_sees_every_token_and_is_kept(world: str) -> None:
    calls: dict[int, list[tuple[int, int]]] = {i: [] for i in range(6)}

    def rule(i: int) -> Callable[[Int32s, Int32s], list[int]]:
        def mask(prompt: Int32s, output: Int32s) -> list[int]:
            assert prompt.tolist() == PROMPTS[i]
            calls[i].append((len(prompt), len(output)))
            return digits(prompt, output)

        return mask

    with WORLDS[world]() as engine:
        agents = [engine.agent(i) for i in range(6)]
        asked = [
            agent.request(prompt, max_tokens=30, mask=rule(i) if i % 2 else None, seed=i)
            for i, (agent, prompt) in enumerate(zip(agents, PROMPTS, strict=True))
        ]
        replies = engine.run(asked)
    for i, reply in enumerate(replies):
        assert isinstance(reply, Reply)
        if i % 2:
            assert all(48 <= token <= 57 for token in reply.token_ids)
            assert list(reply.token_ids) == sorted(reply.token_ids)
            assert {length for _, length in calls[i]} == set(range(30))


def test_a_broken_mask_ends_its_own_request() -> None:
    def late(prompt: Int32s, output: Int32s) -> None:
        if len(output) == 3:
            raise KeyError("no more")

    nothing, wrong = (lambda prompt, output: []), (lambda prompt, output: [999])
    with tiny_engine() as engine:
        agents = [engine.agent(i) for i in range(4)]
        masks = [late, nothing, wrong, None]
        asked = [
            agent.request("hello", max_tokens=9, mask=mask, ignore_eos=True)
            for agent, mask in zip(agents, masks, strict=True)
        ]
        replies = engine.run(asked, return_exceptions=True)
        assert engine.parts.scheduler.num_running == 0
    assert isinstance(replies[0], KeyError)
    assert "allows no token at position" in str(replies[1])
    assert "token 999, which is outside the vocabulary" in str(replies[2])
    assert isinstance(replies[3], Reply) and len(replies[3].token_ids) == 9


def test_a_bool_mask_and_min_tokens() -> None:
    only = np.zeros(tiny_model().config.vocab_size, np.bool_)
    only[[EOS, 97]] = True
    with tiny_engine() as engine:
        reply = engine.agent("ada").generate(
            "x", max_tokens=40, min_tokens=10, mask=lambda prompt, output: only,
            logit_bias={EOS: 20.0},
        )  # fmt: skip
        assert list(reply.token_ids) == [97] * 10 + [EOS] and reply.text == "a" * 10
        only[97] = False  # nothing but the end is left: it comes before min_tokens
        reply = engine.agent("ada").generate(
            "x", max_tokens=40, min_tokens=10, mask=lambda prompt, output: only
        )
        assert list(reply.token_ids) == [EOS]


# The model's own defaults ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model().folder, copy)
    yield copy


def engine_of(folder: Path, **settings: Any) -> Engine:
    sizes = {"device_memory": "4MB", "host_memory": "0MB"}
    return Engine(build_parts(folder, with_settings(None, {**sizes, **settings})))


def test_generation_config_gives_the_defaults(folder: Path) -> None:
    said = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05,
            "do_sample": True, "min_p": None, "max_new_tokens": 7}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(said))
    with engine_of(folder) as engine:
        params = engine.agent("ada").request([1, 2], top_p=0.5).params
        assert (params.temperature, params.top_p, params.top_k) == (0.6, 0.5, 20)
        assert params.repetition_penalty == 1.05 and params.max_tokens == 128
        assert engine.sampling(temperature=0).top_k == 20
        assert Request([1, 2]).params.temperature == 1.0
    with engine_of(folder, generation_config=False) as engine:
        assert engine.sampling().temperature == 1.0 and engine.sampling().top_k == 0
    (folder / "generation_config.json").write_text('{"top_p": 3}')
    with pytest.raises(ConfigError, match=r"generation_config.json: top_p=3.0 .*config=False"):
        engine_of(folder)
    assert EngineConfig().generation_config


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"min_p": 1.5}, "min_p=1.5 must be finite, at least 0.0 and at most 1.0"),
        ({"presence_penalty": 3}, "presence_penalty=3 must be finite, at least -2.0"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty=nan must be finite"),
        ({"repetition_penalty": 0}, "repetition_penalty=0 must be finite, at least 0.01"),
        ({"temperature": 1e7}, "temperature=10000000.0 must be finite"),
        ({"logit_bias": {9999: 1.0}}, "logit_bias token 9999 is outside the vocabulary"),
        ({"logit_bias": {1: 101.0}}, r"logit_bias\[1\]=101.0 must be finite"),
        ({"logit_bias": [1]}, "must map token ids to numbers"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens=9 is more than max_tokens=3"),
        ({"n": 0}, "n=0 must be a whole number, at least 1"),
        ({"mask": 3}, "mask=3 must be a function"),
        ({"mask": digits, "regex": "a"}, "mask and regex are both given"),
        ({"regex": 3}, "regex=3 must be a string"),
        ({"json_schema": 3}, "json_schema=3 must be a mapping, JSON text, or a class"),
    ],
)
def test_what_is_refused(params: dict[str, Any], message: str) -> None:
    with tiny_engine() as engine, pytest.raises(RequestError, match=message):
        engine.agent("ada").generate("hello", **params)
