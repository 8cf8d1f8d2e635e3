"""What a caller meets: errors, cancelling, timeouts, seeds, stop strings, forks, modes, the end of
an engine."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from scalesim_kernels import select

from scalesim import errors
from scalesim.engine.build import parts_for, with_settings
from scalesim.engine.engine import Engine
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from tests.engine.world import BLOCK, PAGE_BYTES, TOKENIZER, tiny_engine, tiny_model
from tests.inside import between_steps


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 1.0}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": b"END"}, "stop"),
        ({"stop": ("",)}, "stop"),
        ({"stop_token_ids": (10**6,)}, "vocabulary"),
    ],
)
def test_sampling_parameters_out_of_range(changes: dict[str, Any], word: str) -> None:
    with tiny_engine() as engine, pytest.raises(errors.RequestError, match=word):
        engine.run([Request("hi", params=SamplingParams(**changes))])


@pytest.mark.parametrize(
    ("prompt", "error", "word"),
    [
        ("", errors.RequestError, "empty"),
        ([], errors.RequestError, "empty"),
        ([-1], errors.RequestError, "vocabulary"),
        ([10**6], errors.RequestError, "vocabulary"),
        ([1.5], errors.RequestError, "whole"),
        ([[1, 2]], errors.RequestError, "dimension"),
        ([1] * 5000, errors.PromptTooLongError, "max_model_len"),
    ],
)
def test_prompts_that_are_refused(prompt: Any, error: type[Exception], word: str) -> None:
    with tiny_engine() as engine, pytest.raises(error, match=word):
        engine.run([Request(prompt)])


def test_a_prompt_longer_than_the_pool_names_the_knob() -> None:
    with tiny_engine(device_pages=4) as engine:
        with pytest.raises(errors.PromptTooLongError, match="device_memory"):
            engine.run([Request([1] * 60, params=SamplingParams(max_tokens=10))])
        (reply,) = engine.run([Request([1] * 54, params=SamplingParams(max_tokens=10))])
        assert not isinstance(reply, Exception)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"device_memory": PAGE_BYTES}, "device_memory"),
        ({"device_memory": "lots"}, "device_memory"),
        ({"policy": "fifo"}, "policy"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_model_len": 3000, "device_memory": PAGE_BYTES * 9}, "smaller than one request"),
        ({"max_model_len": 10**6}, "positions"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(errors.ConfigError, match=word):
        tiny_engine(**settings)


def test_unknown_agents() -> None:
    with tiny_engine() as engine:
        engine.agent("ada")
        for act in (
            lambda: engine.expect({"ada": 1, "bob": 2}),
            lambda: engine.wake("bob"),
            lambda: engine.fork("bob", "eve"),
            lambda: engine.run([Request("hi", agent="bob")]),
        ):
            with pytest.raises(errors.UnknownAgentError, match="bob"):
                act()
        with pytest.raises(errors.RequestError, match="agent id"):
            engine.agent(1.5)  # type: ignore[arg-type]


def test_one_bad_request_costs_only_itself() -> None:
    with tiny_engine() as engine:
        good = Request("hello", params=SamplingParams(max_tokens=4, seed=1))
        bad = Request("")
        first, error, second = engine.run([good, bad, good], return_exceptions=True)
        assert isinstance(error, errors.RequestError)
        assert not isinstance(first, Exception) and not isinstance(second, Exception)
        assert first.token_ids == second.token_ids


def test_nan_ends_its_request_and_never_enters_the_tree() -> None:
    poison = 7
    loaded = tiny_model()
    kernels = select("cpu")
    engine = Engine(
        parts_for(
            loaded, with_settings(None, {"device_memory": PAGE_BYTES * 100}), kernels, TOKENIZER
        )
    )
    model = loaded.model
    sound = model.weights.embed.clone()
    try:
        model.weights.embed[poison] = torch.nan
        with engine:
            ada, bob = engine.agent("ada"), engine.agent("bob")
            clean = [50 + i % 20 for i in range(3 * BLOCK)]
            alone = bob.generate(clean, max_tokens=8, seed=1)
            sick, well = engine.run(
                [
                    ada.request([*clean[:20], poison, *clean], max_tokens=8),
                    bob.request(clean, max_tokens=8, seed=1),
                ],
                return_exceptions=True,
            )
            assert isinstance(sick, errors.NumericalError)
            assert not isinstance(well, Exception) and well.token_ids == alone.token_ids
            token = np.int32(poison).tobytes()
            kept = between_steps(engine, lambda: [each.tokens for each in engine.parts.memory.tree])
            for tokens in kept:
                assert token not in [tokens[i : i + 4] for i in range(0, len(tokens), 4)]
    finally:
        model.weights.embed.copy_(sound)


def test_a_cancelled_call_frees_its_pages_within_two_steps() -> None:
    engine = tiny_engine()
    memory = engine.parts.memory
    agent = engine.agent("ada")
    for steps in (0, 1, 3, 6):
        call = engine.submit(agent.request([1, 2, 3] * 20, max_tokens=50, ignore_eos=True))
        for _ in range(steps):
            engine.step()
        engine.cancel(call)
        engine.step()
        engine.step()
        assert call.done
        with pytest.raises(errors.RequestCancelledError):
            call.result()
        assert engine.parts.scheduler.num_running == 0
        assert all(segment.pins == 0 for segment in memory.tree)
        memory.clear()
        assert memory.device.num_used == 0
    engine.close()


def test_a_timeout_ends_the_request_and_no_other() -> None:
    clock = [0.0]
    parts = tiny_engine().parts
    engine = Engine(dataclasses.replace(parts, time_s=lambda: clock[0]))
    slow = engine.submit(
        Request("abc", params=SamplingParams(max_tokens=40, ignore_eos=True), timeout=5.0)
    )
    other = engine.submit(Request("abc", params=SamplingParams(max_tokens=40, ignore_eos=True)))
    for _ in range(3):
        engine.step()
    clock[0] = 5.0
    engine.step()
    engine.step()
    assert slow.done and not other.done
    with pytest.raises(errors.RequestTimeoutError, match="timeout=5"):
        slow.result()
    while not other.done:
        engine.step()
    assert len(other.result().token_ids) == 40
    engine.close()


def test_seeds_and_repetition() -> None:
    with tiny_engine() as engine:
        ada, bob = engine.agent("ada"), engine.agent("bob")
        first, second = (ada.generate("hello", max_tokens=20).token_ids for _ in range(2))
        assert first != second  # the same prompt completed once more is another draw
        assert bob.generate("hello", max_tokens=20).token_ids not in (first, second)
        seeded = {a.generate("hello", max_tokens=20, seed=4).token_ids for a in (ada, bob, ada)}
        assert len(seeded) == 1
        greedy = {a.generate("hello", max_tokens=20, temperature=0.0).token_ids for a in (ada, bob)}
        assert len(greedy) == 1
        drawn = {
            ada.generate("hello", max_tokens=20, seed=4)
            if index == 0
            else engine.generate(ada.request("hello", max_tokens=20, seed=4, sample_index=index))
            for index in range(3)
        }
        assert len({reply.token_ids for reply in drawn}) == 3
    with tiny_engine() as again:
        assert again.agent("ada").generate("hello", max_tokens=20).token_ids == first
    with tiny_engine(seed=1) as other:
        assert other.agent("ada").generate("hello", max_tokens=20).token_ids != first


def test_stop_strings_and_ids() -> None:
    with tiny_engine() as engine:
        ada = engine.agent("ada")
        whole = ada.generate("once upon", max_tokens=60, seed=2, ignore_eos=True)
        assert whole.text is not None and whole.finish_reason == "length"
        assert whole.text == TOKENIZER.decode(list(whole.token_ids))
        stop = whole.text[10:13]
        cut = ada.generate("once upon", max_tokens=60, seed=2, ignore_eos=True, stop=(stop,))
        assert cut.finish_reason == "stop"
        assert cut.text == whole.text[: whole.text.index(stop)]
        token = whole.token_ids[7]
        ended = ada.generate(
            "once upon", max_tokens=60, seed=2, ignore_eos=True, stop_token_ids=(token,)
        )
        assert ended.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
        assert ended.finish_reason == "stop"


def test_chat_goes_through_the_template() -> None:
    with tiny_engine() as engine:
        ada = engine.agent("ada")
        messages = [{"role": "user", "content": "Who are you?"}]
        chat = ada.chat(messages, max_tokens=8, seed=1)
        said = [{"role": "user", "content": "hi"}]
        assert (
            ada.chat("hi", max_tokens=8, seed=1).text == ada.chat(said, max_tokens=8, seed=1).text
        )
        assert engine.model.template is not None
        text = engine.model.template.render(messages, add_generation_prompt=True)
        ids = TOKENIZER.encode(text, add_special_tokens=False)
        assert chat.token_ids == ada.generate(ids, max_tokens=8, seed=1).token_ids


def test_a_fork_shares_pages_and_goes_its_own_way() -> None:
    prompt = list(range(100))
    with tiny_engine() as engine:
        ada = engine.agent("ada")
        first = ada.generate(prompt, max_tokens=13, seed=1, ignore_eos=True)
        told = prompt + list(first.token_ids)
        used = engine.parts.memory.device.num_used
        eve = ada.fork("eve")
        replies = engine.run(
            [
                ada.request([*told, 1], max_tokens=20, seed=2, ignore_eos=True),
                eve.request([*told, 2], max_tokens=20, seed=2, ignore_eos=True),
            ]
        )
        for reply in replies:  # all but the last token and the prompt's new one
            assert not isinstance(reply, Exception)
            assert reply.usage.cached_tokens == len(told) - 1
        assert engine.parts.memory.device.num_used <= used + 5
        with pytest.raises(errors.RequestError, match="exists"):
            ada.fork("eve")
    with tiny_engine() as engine:
        alone = [
            engine.agent(name).generate([*told, new], max_tokens=20, seed=2, ignore_eos=True)
            for name, new in (("ada", 1), ("eve", 2))
        ]
    assert [r.token_ids for r in alone] == [r.token_ids for r in replies]  # type: ignore[union-attr]


def test_driving_both_ways_raises() -> None:
    with tiny_engine() as engine:
        engine.run([Request("hi", params=SamplingParams(max_tokens=2))])
        with pytest.raises(errors.EngineModeError):
            engine.step()
    engine = tiny_engine()
    engine.step()
    for act in (lambda: engine.run([]), lambda: engine.agent("a").generate("hi")):
        with pytest.raises(errors.EngineModeError):
            act()
    engine.close()


def test_a_closed_engine_says_so() -> None:
    engine = tiny_engine()
    agent = engine.agent("ada")
    agent.generate("hi", max_tokens=2)
    engine.close()
    engine.close()
    for act in (
        lambda: agent.generate("hi"),
        lambda: engine.expect("ada", 1),
        engine.tick,
        lambda: engine.submit(agent.request("hi")),
        engine.step,
    ):
        with pytest.raises(errors.EngineClosedError):
            act()


def test_closing_ends_what_is_open() -> None:
    engine = tiny_engine()
    call = engine.submit(engine.agent("ada").request("hi", max_tokens=50))
    engine.step()
    engine.close()
    with pytest.raises(errors.EngineClosedError):
        call.result()


def test_a_dying_engine_takes_its_cause_along() -> None:
    engine = tiny_engine()

    class Broken:
        steps_in_flight = 1

        def launch(self, batch: object) -> None:
            raise ZeroDivisionError("the device fell off")

    engine = Engine(dataclasses.replace(engine.parts, runner=Broken()))  # type: ignore[arg-type]
    with pytest.raises(errors.EngineClosedError, match="fell off") as caught:
        engine.agent("ada").generate("hi")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    engine.close()


def test_async_calls_and_their_cancellation() -> None:
    async def main() -> None:
        with tiny_engine() as engine:
            ada, bob = engine.agent("ada"), engine.agent("bob")
            one, two = await asyncio.gather(
                ada.generate_async("hello", max_tokens=10, seed=1),
                bob.chat_async([{"role": "user", "content": "hey"}], max_tokens=10, seed=1),
            )
            assert one.usage.output_tokens and two.usage.output_tokens
            task = asyncio.create_task(
                ada.generate_async([1] * 200, max_tokens=2000, ignore_eos=True)
            )
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(errors.RequestTimeoutError):
                await ada.generate_async([1] * 200, max_tokens=3000, ignore_eos=True, timeout=1e-3)
            again = await bob.generate_async("hello", max_tokens=10, seed=1)
            assert again.token_ids == one.token_ids

    asyncio.run(main())


@pytest.mark.parametrize("size", [100, 9])
def test_a_salt_keeps_prompts_apart(size: int) -> None:
    """What was computed with another salt, or without one, is not found, and the text is the same:
    whole blocks, the partial one behind them, and prompts of less than a block."""
    prompt = [int(token) for token in np.random.default_rng(size).integers(0, 256, size)]
    salts = (None, "x", "y")
    with tiny_engine() as engine:
        for agent in ("ada", "bob"):
            engine.agent(agent)

        def call(salt: str | None, agent: str | None = None) -> Reply:
            params = engine.sampling(max_tokens=4, temperature=0)
            return engine.generate(Request(prompt, agent, params, cache_salt=salt))

        first = [call(salt, "ada").usage.cached_tokens for salt in salts]
        again = [
            call(salt, agent).usage.cached_tokens for agent in ("bob", "ada") for salt in salts
        ]
        texts = {call(salt).token_ids for salt in salts}
    assert first == [0, 0, 0] and len(texts) == 1
    assert size < BLOCK or min(again) >= size // BLOCK * BLOCK
