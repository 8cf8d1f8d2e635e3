"""Adapters change while the engine runs: which weights a call uses, and what becomes of the old."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from scalesim.engine.engine import Engine
from scalesim.errors import AdapterError, UnknownAgentError
from scalesim.memory.leases.adapters import AdapterContent
from tests.engine.test_same_texts import check_empty
from tests.engine.updates import Said, Storm
from tests.engine.world import SHAPE, said, tiny_engine
from tests.inside import between_steps
from tests.model.adapter_folders import adapter_tensors, write_adapter

RANK, PROMPT = 2, list(range(60))
OPTIONS: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True, "temperature": 0.0}


def weights(number: int) -> dict[str, torch.Tensor]:
    return adapter_tensors(SHAPE, RANK, seed=number)


@cache
def folder(number: int = 0) -> Path:
    return write_adapter(Path(mkdtemp()) / "adapter", SHAPE, RANK, tensors=weights(number))


def truth(asked: list[tuple[list[int], int | None]]) -> list[Said]:
    """Each prompt on an engine with room for all."""
    with tiny_engine(device_pages=4000, policy="resident", digests=True) as engine:
        for number in {number for _, number in asked} - {None}:
            assert number is not None
            engine.adapters.add(f"{number}", folder()).update(weights(number))
        who = engine.agent("all")
        requests = [
            who.request(
                prompt,
                adapter="" if number is None else f"{number}",
                max_tokens=5,
                ignore_eos=True,
                temperature=0.0,
            )
            for prompt, number in asked
        ]
        return said(engine.run(requests))  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
def test_updates_under_load(policy: str) -> None:
    engine = tiny_engine(device_pages=90, host_pages=120, policy=policy, digests=True)
    with engine:
        storm = Storm(engine, folder(), weights, num_agents=20, seed=1)
        storm.play(60)
        storm.check_texts(truth)
        assert storm.counts["switchs"] > 3 and len(storm.ended) > 60
        storm.check_pages()


def test_a_stale_version_is_seen() -> None:
    """A planted bug (vLLM 42125): new weights that keep the identity of the old."""
    made_of = tiny_engine(digests=True)  # its parts are closed with it
    pack = made_of.parts.pack_adapter
    assert pack is not None

    def stale(content: AdapterContent, tensors: Mapping[str, Any]) -> AdapterContent:
        return replace(pack(content, tensors), digest=content.digest)

    with Engine(replace(made_of.parts, pack_adapter=stale)) as engine:
        storm = Storm(engine, folder(), weights, num_agents=5, seed=1)
        storm.play(10)
        with pytest.raises(AssertionError):
            storm.check_texts(truth)


def test_an_update_is_the_folder_of_the_same_tensors() -> None:
    with tiny_engine(digests=True) as engine:
        hot = engine.adapters.add("hot", folder(0))
        hot.update(weights(3))
        engine.adapters.add("cold", folder(3))
        assert hot.info.digest == engine.adapters["cold"].info.digest
        assert hot.info.path is None and engine.adapters["cold"].info.path == str(folder(3))
        ada = engine.agent("ada", adapter=hot)
        first = ada.generate(PROMPT, **OPTIONS)
        ada.adapter = "cold"
        assert ada.adapter == "cold"
        again = ada.generate(PROMPT, **OPTIONS)
        assert said([first]) == said([again]) and again.usage.cached_tokens >= 48
        ada.adapter = None
        base = ada.generate(PROMPT, **OPTIONS)
        assert base.usage.cached_tokens == 0 and said([base]) != said([first])
        assert said([base]) == said([engine.agent("bob").generate(PROMPT, **OPTIONS)])


def test_requests_in_flight_end_with_what_they_began_with() -> None:
    with tiny_engine(digests=True) as engine:
        hot = engine.adapters.add("hot", folder(0))
        ada = engine.agent("ada", adapter=hot)
        options = {**OPTIONS, "max_tokens": 12}
        before = engine.submit(ada.request(PROMPT, **options))
        for _ in range(4):
            engine.step()
        assert not before.done
        hot.update(weights(1))
        after = engine.submit(ada.request(PROMPT, **options))
        ada.adapter = None
        while not (before.done and after.done):
            engine.step()
        assert after.result().usage.cached_tokens == 0
        for number, call in ((0, before), (1, after)):
            with tiny_engine(digests=True) as other:
                alone = other.agent("ada", adapter=folder(number)).generate(PROMPT, **options)
            assert said([alone]) == said([call.result()])
        engine.step()
        assert len(engine.parts.memory.adapters) == 1  # the weights of before are gone
    check_empty(engine)


def test_samples_of_one_request_use_one_version_beside_a_trainer() -> None:
    """A trainer on a thread of its own: what a call says is what the weights of one moment between
    its beginning and its end say."""
    with tiny_engine(digests=True) as engine:
        hot, numbers = engine.adapters.add("hot", folder(0)), range(1, 25)
        ada = engine.agent("ada", adapter=hot)
        known = dict(zip(numbers, truth([(PROMPT, n) for n in numbers]), strict=True))
        options = {**OPTIONS, "max_tokens": 5}
        known[0] = said([ada.generate(PROMPT, **options)])[0]
        begun = ended = 0

        def train() -> None:
            nonlocal begun, ended
            for number in numbers:
                begun = number
                hot.update(weights(number))
                ended = number

        trainer = threading.Thread(target=train)
        trainer.start()
        while True:
            is_last, first = not trainer.is_alive(), ended
            reply = ada.generate(PROMPT, n=2, **options)
            possible = [known[number] for number in range(first, begun + 1)]
            assert said([reply])[0] in possible
            assert said(list(reply.others)) == said([reply])
            if is_last:
                break
        trainer.join()
        assert first == numbers[-1]


def test_the_next_use_of_an_agent_moves_the_new_weights() -> None:
    """After an update the agent owns the new pages, so that they are loaded ahead of its call."""
    with tiny_engine(device_pages=24, host_pages=60) as engine:
        hot = engine.adapters.add("hot", folder(0))
        ada, bob = engine.agent("ada", adapter=hot), engine.agent("bob")
        ada.generate(PROMPT, **OPTIONS)
        hot.update(weights(1))
        ada.expect(1)
        bob.expect(9)
        bob.generate([1] * 300, **OPTIONS)
        engine.tick()
        bob.generate(list(range(20)), **OPTIONS)
        pages = between_steps(engine, lambda: engine.parts.memory.pages_of("ada"))
        assert pages.device + pages.coming + pages.host == hot.info.num_pages


def test_tensors_are_checked_on_the_callers_side() -> None:
    with tiny_engine() as engine, tiny_engine() as other:
        hot = engine.adapters.add("hot", folder(0))
        digest, good = hot.info.digest, weights(1)
        name = next(iter(good))
        for tensors, reason in (
            ([1], r"tensors=\[1\] must be a Mapping; give a state dict"),
            ({}, f"no tensor '{name}': give all .* as peft.get_peft_model_state_dict"),
            ({**good, "more": torch.zeros(1)}, "tensor 'more' is not one that"),
            ({**good, name: torch.zeros(3, 3)}, r"is \[3, 3\]"),
            ({**good, name: good[name] * float("nan")}, "holds NaN or infinite values"),
            ({**good, name: good[name].to(torch.int32)}, "weights are floating-point"),
            ({**good, name: "x"}, "must be a torch.Tensor"),
            ({**good, name: good[name].to("meta")}, "on meta; weights are dense"),
            ({**good, name: good[name].to_sparse()}, "of torch.sparse_coo on cpu; weights are"),
        ):
            with pytest.raises(AdapterError, match=reason):
                hot.update(tensors)  # type: ignore[arg-type]
            assert hot.info.digest == digest
        trained = {name: tensor.requires_grad_() for name, tensor in weights(1).items()}
        hot.update(trained)
        assert hot.info.digest != digest
        ada = engine.agent("ada")
        with pytest.raises(AdapterError, match=r"Adapter\('hot'\) is another engine's"):
            other.agent("ada").adapter = hot
        with pytest.raises(AdapterError, match="no such folder"):
            ada.adapter = "nowhere"
        assert ada.adapter is None
        engine.adapters.remove("hot")
        for act in (
            lambda: hot.update(weights(2)),
            lambda: hot.info,
            lambda: engine.adapters["hot"],
        ):
            with pytest.raises(AdapterError, match="'hot' is unknown, or was removed"):
                act()
        ada.forget()
        with pytest.raises(UnknownAgentError):
            ada.adapter = None
