"""Models are replaced and removed while the engine runs: which weights a call uses, and what
becomes of the old."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from scalesim.engine.engine import Engine
from scalesim.engine.inbox import Inbox
from scalesim.errors import AdapterError, ModelError, PromptTooLongError, RequestError
from scalesim.model.runner.several_models import ModelRunners
from scalesim.requests.added_model import AddedModel
from tests.engine.test_same_texts import check_empty
from tests.engine.updates import ModelStorm, Said
from tests.engine.world import SHAPE, said, tiny_engine
from tests.inside import part
from tests.model.adapter_folders import adapter_tensors, write_adapter
from tests.model_folders import write_dummy_model

SMALL = replace(SHAPE, num_layers=1, max_position=512)
OTHER = replace(SMALL, intermediate_size=96)
PROMPT = list(range(60))
OPTIONS: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True, "temperature": 0.0}


@cache
def folder(number: int = 0) -> Path:
    """Weights of a number; every third has another shape."""
    shape = OTHER if number % 3 == 2 else SMALL
    return write_dummy_model(Path(mkdtemp(prefix="scalesim-test-")) / "m", shape, seed=9 + number)


@cache
def adapter(seed: int = 5) -> Path:
    path = Path(mkdtemp(prefix="scalesim-test-"))
    return write_adapter(path / "adapter", SMALL, rank=2, seed=seed)


def truth(asked: list[tuple[list[int], int | None]]) -> list[Said]:
    """Each prompt on an engine with room for all."""
    with tiny_engine(device_pages=4000, policy="resident", digests=True) as engine:
        requests = []
        for prompt, number in asked:
            if number is not None and f"{number}" not in engine.models:
                engine.add_model(f"{number}", folder(number))
            name = None if number is None else f"{number}"
            agent = engine.agent(f"of {name}", model=name)
            requests.append(agent.request(prompt, **{**OPTIONS, "max_tokens": 5}))
        return said(engine.run(requests))  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["deadline", "lru-recompute"])
def test_replacements_under_load(policy: str) -> None:
    """More models than the device holds, which change under their agents."""
    engine = tiny_engine(device_pages=100, host_pages=300, policy=policy, digests=True)
    with engine:
        storm = ModelStorm(engine, folder(), folder, num_agents=6, seed=1)
        storm.play(16)
        storm.check_texts(truth)
        assert len(storm.ended) > 20 and engine.stats.failed == 0
        storm.check_pages()


def test_stale_weights_are_seen() -> None:
    """A planted bug: a replacement that keeps the identity of the model before."""
    made_of = tiny_engine(digests=True)  # its parts are closed with it
    join, first = made_of.parts.join_model, dict[str, bytes]()
    assert join is not None

    def stale(name: str, path: str | Path, number: int, dummy: bool) -> AddedModel:
        made = join(name, path, number, dummy)
        digest = first.setdefault(name, made.weights.digest)
        return replace(made, weights=replace(made.weights, digest=digest))

    with Engine(replace(made_of.parts, join_model=stale)) as engine:
        storm = ModelStorm(engine, folder(), lambda n: folder(3 * n), num_agents=3, seed=1)
        storm.play(6)
        with pytest.raises(AssertionError):
            storm.check_texts(lambda asked: truth([(ids, n and 3 * n) for ids, n in asked]))


def test_calls_in_flight_end_on_what_they_began_with() -> None:
    with tiny_engine(digests=True) as engine:
        engine.add_model("guard", folder(0))
        ada = engine.agent("ada", model="guard")
        before = engine.submit(ada.request(PROMPT, **OPTIONS))
        for _ in range(3):
            engine.step()
        with pytest.raises(ModelError, match="'guard' is used by 1 open calls; wait"):
            engine.remove_model("guard")
        with pytest.raises(ModelError, match="is taken, by"):
            engine.add_model("guard", folder(1))
        engine.add_model("guard", folder(1), replace=True)
        after = engine.submit(ada.request(PROMPT, **OPTIONS))
        engine.step()
        assert not before.done and len(engine.parts.memory.weights) == 2
        while not (before.done and after.done):
            engine.step()
        assert after.result().usage.cached_tokens == 0
        for number, call in enumerate((before, after)):
            with tiny_engine(digests=True) as other:
                other.add_model("guard", folder(number))
                alone = other.agent("ada", model="guard").generate(PROMPT, **OPTIONS)
            assert said([alone]) == said([call.result()])
        engine.cancel(before)  # it has ended: no effect
        engine.step()
        assert len(engine.parts.memory.weights) == 1
        again = engine.submit(ada.request(PROMPT, **OPTIONS))
        engine.step()
        engine.cancel(again)
        with tiny_engine() as other, pytest.raises(RequestError, match="another engine's"):
            other.cancel(again)
        while not again.done:
            engine.step()
        engine.remove_model("guard", timeout=5.0)
        with pytest.raises(ModelError, match="'guard' is unknown, or was removed"):
            ada.generate(PROMPT, **OPTIONS)
        engine.add_model("guard", folder(0))  # whoever used the name uses it again
        same = engine.submit(ada.request(PROMPT, **OPTIONS))
        while not same.done:
            engine.step()
        assert said([same.result()]) == said([before.result()])
        engine.remove_model("guard")
    check_empty(engine)


def test_a_call_runs_on_one_version_beside_another_thread() -> None:
    """All samples of a request run on the model that there was at one moment of the call."""
    with tiny_engine(digests=True) as engine:
        numbers = range(1, 7)
        engine.add_model("guard", folder(0))
        ada = engine.agent("ada", model="guard")
        known = dict(enumerate(truth([(PROMPT, number) for number in (0, *numbers)])))
        begun = ended = 0

        def change() -> None:
            nonlocal begun, ended
            for number in numbers:
                begun = number
                engine.add_model("guard", folder(number), replace=True)
                ended = number

        thread = threading.Thread(target=change)
        thread.start()
        while True:
            is_last, first = not thread.is_alive(), ended
            reply = ada.generate(PROMPT, n=2, **{**OPTIONS, "max_tokens": 5})
            possible = [known[number] for number in range(first, begun + 1)]
            assert said([reply])[0] in possible
            assert said(list(reply.others)) == said([reply])
            if is_last:
                break
        thread.join()
        assert first == numbers[-1]


def test_a_call_that_is_made_keeps_its_version_until_it_is_handed_in_or_gone() -> None:
    with tiny_engine(digests=True) as engine:
        engine.add_model("guard", folder(0))
        ada, options = engine.agent("ada", model="guard"), {**OPTIONS, "max_tokens": 5}

        def asked(last: object) -> Iterator[Any]:
            yield ada.request(PROMPT, **options)
            engine.add_model("guard", folder(1), replace=True)
            yield last

        replies = engine.run(asked(ada.request(PROMPT, **options)))
        assert said(replies) == truth([(PROMPT, 0), (PROMPT, 1)])  # type: ignore[arg-type]
        with pytest.raises(RequestError):
            engine.run(asked("no request"))  # the first one is never handed in
        gc.collect()
        engine.add_model("guard", folder(3), replace=True)
        ada.generate(PROMPT, **options)
        assert len(engine.parts.memory.weights) == len(part(engine, ModelRunners)) - 1 == 1


def test_adapters_stay_with_models_of_their_shapes() -> None:
    with tiny_engine(digests=True) as engine:
        engine.add_model("guard", folder(0))
        engine.add_model("twin", folder(0))
        engine.adapters.add("strict", adapter(), model="guard")
        ada = engine.agent("ada", model="guard", adapter="strict")
        first = ada.generate(PROMPT, **OPTIONS)
        engine.add_model("guard", folder(1), replace=True)
        second = ada.generate(PROMPT, **OPTIONS)
        engine.add_model("guard", folder(0), replace=True)
        assert said([ada.generate(PROMPT, **OPTIONS)]) == said([first]) != said([second])
        told = "'strict' is of model 'guard', and the call runs on model 'twin': set agent.model or"
        with pytest.raises(AdapterError, match=told):
            engine.agent("bob", model="twin", adapter="strict").generate(PROMPT, **OPTIONS)
        with pytest.raises(AdapterError, match="'strict' is of model 'guard', and not of model 't"):
            engine.adapters.add("strict", adapter(), model="twin")  # of equal content
        engine.adapters.add("loud", adapter(6), model="twin")  # of other layouts, of one shape
        engine.adapters.add("mild", adapter(), model="twin")
        bob = engine.agent("bob", adapter="mild")
        assert said([bob.generate(PROMPT, **OPTIONS)]) == said([first])
        engine.add_model("guard", folder(2), replace=True)
        with pytest.raises(AdapterError, match="'strict' was made for other shapes than model"):
            ada.generate(PROMPT, **OPTIONS)
        ada.adapter = None
        assert len(ada.generate(PROMPT, **OPTIONS).token_ids) == 6


def test_an_adapter_that_grew_since_the_request_was_made_fits_beside_the_model(
    tmp_path: Path,
) -> None:
    large = write_adapter(tmp_path / "large", SMALL, rank=32)
    with tiny_engine(device_pages=60) as engine:
        engine.add_model("guard", folder(0))
        engine.adapters.add("role", adapter(), model="guard")
        ada = engine.agent("ada", model="guard", adapter="role")
        options = {**OPTIONS, "max_tokens": 300}

        def asked() -> Iterator[Any]:
            yield ada.request(PROMPT, **options)
            info = engine.adapters.add("role", large, replace=True, model="guard").info
            assert 60 - 12 < info.num_pages + engine.models.list()[0].num_pages < 60

        for ask in (lambda: engine.run(asked()), lambda: ada.generate(PROMPT, **options)):
            with pytest.raises(PromptTooLongError, match="raise device_memory"):
                ask()
        assert len(ada.generate(PROMPT, **OPTIONS).token_ids) == 6


def test_a_refused_agent_leaves_nothing_behind() -> None:
    with tiny_engine() as engine:
        engine.add_model("guard", folder(0))
        ada = engine.agent("ada")
        for id, error, wrong in (
            ("new", ModelError, {"model": "nobody"}),
            ("new", AdapterError, {"adapter": "nowhere"}),
            ("ada", AdapterError, {"model": "guard", "adapter": "nowhere"}),
        ):
            with pytest.raises(error, match=r"nobody|nowhere"):
                engine.agent(id, **wrong)
        assert ada.model is None and ada.fork("new").id == "new"


def test_why_names_what_waits_and_what_changed() -> None:
    with tiny_engine(device_pages=60, policy="lru-swap") as engine:
        for name, number in (("guard", 0), ("judge", 3)):
            engine.add_model(name, folder(number))
        engine.adapters.add("strict", adapter(), model="guard")
        ada, bob = engine.agent("ada", model="guard", adapter="strict"), engine.agent("bob")

        def cause() -> tuple[str, set[str], str]:
            ada.generate(PROMPT, **OPTIONS)
            miss = engine.why("ada")
            assert miss is not None
            return miss.cause, {kind for kind, _ in miss.waits}, str(miss)

        found, kinds, words = cause()
        assert (found, kinds) == ("no hint", {"adapter", "weights"})
        assert f"waited for: {engine.models.list()[0].num_pages} pages of weights" in words
        bob.generate([7] * 940, max_tokens=1)
        found, kinds, _ = cause()
        assert found == "no hint" and kinds >= {"adapter", "weights"}
        tensors = adapter_tensors(SMALL, 2, seed=8)
        engine.adapters["strict"].update(tensors)
        found, kinds, words = cause()
        assert (found, kinds) == ("adapter changed", {"adapter"}) and "content" in words
        engine.add_model("guard", folder(1), replace=True)
        assert cause()[:2] == ("model changed", {"weights"})
        ada.model, ada.adapter = "judge", None
        assert cause()[:2] == ("model changed", {"weights"})


def test_weights_and_adapters_are_read_from_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are given by relative paths; then the process changes its folder."""
    monkeypatch.chdir(folder().parent)
    with tiny_engine(policy="lru-recompute", host_pages=0) as engine:
        engine.add_model("guard", folder().name)
        engine.adapters.add("role", near := os.path.relpath(adapter()), model="guard")
        agent = engine.agent("ada", model="guard", adapter="role")
        before = agent.generate(PROMPT, **OPTIONS)
        monkeypatch.chdir(tmp_path)
        part(engine, Inbox).post(engine.parts.memory.clear)  # all is read from its source again
        assert agent.generate(PROMPT, **OPTIONS).token_ids == before.token_ids
        assert [info.path for info in engine.models.list()] == [str(folder())]
        assert [info.path for info in engine.adapters.list()] == [f"{folder().parent / near}"]
