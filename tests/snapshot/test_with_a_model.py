"""Snapshots of engines with a model: KV, adapters, the same logits to the last bit."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from scalesim.engine.build import parts_for, with_settings
from scalesim.engine.engine import Engine
from scalesim.engine.parts import EngineParts
from scalesim.engine.restoring import newest_in
from scalesim.errors import AdapterError, ModelError, SnapshotWarning
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.loader import load_model
from scalesim.requests.reply import Reply
from scalesim.snapshot.folder import Folder
from scalesim.snapshot.page_file import HEADER_BYTES
from tests.engine.world import BLOCK, PAGE_BYTES, SHAPE, TOKENIZER, said, tiny_model
from tests.inside import check_memory
from tests.model.adapter_folders import adapter_tensors, write_adapter
from tests.model_folders import write_dummy_model

GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True}


def model_parts(pages: int = 120, **settings: object) -> EngineParts:
    settings = {
        "device_memory": PAGE_BYTES * pages, "host_memory": PAGE_BYTES * 200, "block_size": BLOCK,
        "digests": True, "integrity": "raise", **settings,
    }  # fmt: skip
    return parts_for(tiny_model(), with_settings(None, settings), tokenizer=TOKENIZER)


def begin(engine: Engine, adapters: Path) -> None:
    for name, seed in (("quiet", 1), ("loud", 2)):
        engine.adapters.add(name, write_adapter(adapters / name, SHAPE, 4, seed=seed))
    engine.agent("ada", adapter="quiet")
    engine.agent("bob", adapter="loud")
    play(engine, 0)


def play(engine: Engine, turn: int) -> list[Reply]:
    replies = []
    for name in ("ada", "bob", "eve"):
        prompt = f"{name} lives in a village of {turn} houses. " * 2 + "What now?" * turn
        options = {"max_tokens": 9, "temperature": 0.7, "ignore_eos": True}
        [reply] = engine.run([engine.agent(name).request(prompt, **options)])
        assert isinstance(reply, Reply)
        replies.append(reply)
    engine.tick()
    return replies


def test_texts_and_logits(tmp_path: Path) -> None:
    with Engine(model_parts()) as engine:
        begin(engine, tmp_path)
        engine.snapshot(tmp_path / "s")
        expected = said(play(engine, 1)), said(play(engine, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = Engine.restore(tmp_path / "s", model_parts())
    with engine:
        assert engine.restored is not None and engine.restored.num_pages > 0
        assert [info.name for info in engine.adapters.list()] == ["loud", "quiet"]
        assert engine.agent("bob").adapter == "loud"
        assert (said(play(engine, 1)), said(play(engine, 0))) == expected
        assert engine.stats.cached_tokens > 0
    check_integrity(engine.parts.memory)


def test_another_page_layout(tmp_path: Path) -> None:
    with Engine(model_parts()) as engine:
        begin(engine, tmp_path)
        engine.snapshot(tmp_path / "s")
        expected = said(play(engine, 1))
    with pytest.warns(SnapshotWarning, match="page layout"):
        engine = Engine.restore(tmp_path / "s", model_parts(block_size=32))
    with engine:
        assert said(play(engine, 1)) == expected


def test_other_weights_of_the_same_shape(tmp_path: Path) -> None:
    with Engine(model_parts()) as engine:
        begin(engine, tmp_path)
        engine.snapshot(tmp_path / "s")
    write_dummy_model(tmp_path / "model", SHAPE, seed=2)
    config = with_settings(None, {"device_memory": PAGE_BYTES * 120, "block_size": BLOCK})
    other = parts_for(load_model(tmp_path / "model"), config, tokenizer=TOKENIZER)
    with pytest.warns(SnapshotWarning, match="another model"):
        engine = Engine.restore(tmp_path / "s", other)
    with engine:
        assert engine.restored is not None and engine.restored.num_pages == 0
        assert engine.clock.now == 1


@pytest.mark.parametrize("change", ["gone", "other content"])
def test_an_adapter_that_is_not_what_it_was(tmp_path: Path, change: str) -> None:
    with Engine(model_parts()) as engine:
        begin(engine, tmp_path)
        engine.snapshot(tmp_path / "s")
        expected = said(play(engine, 1))
    kept = shutil.copytree(tmp_path / "loud", tmp_path / "kept")
    shutil.rmtree(tmp_path / "loud")
    if change == "other content":
        write_adapter(tmp_path / "loud", SHAPE, 4, seed=3)
    with pytest.warns(SnapshotWarning, match="adapter 'loud' is not restored"):
        engine = Engine.restore(tmp_path / "s", model_parts())
    with engine:
        with pytest.raises(AdapterError, match="'loud' is unknown"):
            engine.agent("bob").generate("Hello", max_tokens=2)
        engine.snapshot(tmp_path / "without")
        with pytest.warns(SnapshotWarning, match=r"adapters .* were gone .*\['loud'\]"):
            Engine.restore(tmp_path / "without", model_parts()).close()
        engine.adapters.add("loud", kept)
        engine.agent("bob", adapter="loud")
        assert said(play(engine, 1)) == expected


def test_updated_adapters_come_back(tmp_path: Path) -> None:
    """The newest weights, whatever is in the folder, with the KV that was computed with them; their
    pages are written once, and one that is damaged is refused."""
    twin = write_dummy_model(tmp_path / "twin", SHAPE, seed=7)

    def weights(seed: int) -> dict[str, Tensor]:
        return adapter_tensors(SHAPE, 4, seed=seed)

    def speak(engine: Engine) -> object:
        asked = [engine.agent(id).request([1, 2, 3] * 12, **GREEDY) for id in ("bob", "eve")]
        return said(engine.run(asked))  # type: ignore[arg-type]

    with Engine(model_parts()) as engine:
        begin(engine, tmp_path)
        engine.add_model("twin", twin)
        engine.adapters.add("far", tmp_path / "loud", model="twin").update(weights(8))
        engine.agent("eve", model="twin", adapter="far")
        for seed in (6, 9):
            engine.adapters["loud"].update(weights(seed))
        engine.adapters.add("same", tmp_path / "loud").update(weights(9))
        expected = speak(engine)
        before = engine.snapshot(tmp_path / "s")
        again = engine.snapshot(tmp_path / "s")
        assert (again.num_pages, again.num_new_pages) == (before.num_pages, 0)
        digests = [info.digest for info in engine.adapters.list()]
    shutil.rmtree(tmp_path / "loud")
    for _ in range(2):  # also from a snapshot of the engine that was restored
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine = Engine.restore(tmp_path / "s", model_parts())
        with engine:
            assert [info.digest for info in engine.adapters.list()] == digests
            assert engine.adapters["loud"].info.path is None
            assert engine.adapters["far"].info.model == "twin"
            assert engine.snapshot(tmp_path / "s").num_new_pages == 0
            assert speak(engine) == expected and engine.stats.cached_tokens >= 64
    check_integrity(engine.parts.memory)
    with pytest.warns(SnapshotWarning) as told:
        engine = Engine.restore(tmp_path / "s", model_parts(block_size=32))
    with engine:
        assert sum("pages can be used here" in str(each.message) for each in told) == 3
        assert [info.name for info in engine.adapters.list()] == ["quiet"]
    found = newest_in(Folder(tmp_path / "s"))
    pages = found.manifest["pages"]
    at = int(pages["num_pages"][:-2].sum())  # the first page behind those of KV
    with (tmp_path / "s" / f"pages-{int(pages['file'][at]):08d}").open("r+b") as opened:
        opened.seek(HEADER_BYTES + int(pages["row"][at]) * found.manifest["page_bytes"])
        opened.write(b"x")
    with pytest.warns(SnapshotWarning, match="'far' is not restored"):
        engine = Engine.restore(tmp_path / "s", model_parts())
    with engine:
        with pytest.raises(AdapterError, match="'far' is unknown"):
            engine.agent("eve").generate([1], max_tokens=2)
        assert engine.adapters["loud"].info.digest == digests[1]


def test_a_forked_world_has_the_adapters(tmp_path: Path) -> None:
    with Engine(model_parts()) as engine:
        begin(engine, tmp_path)
        with engine.fork_world() as fork:
            assert fork.agent("bob").adapter == "loud"
            mine = said(play(engine, 1))
            theirs = []
            for name in ("ada", "bob", "eve"):
                prompt = f"{name} lives in a village of 1 houses. " * 2 + "What now?"
                theirs.append(
                    fork.agent(name).generate(
                        prompt, max_tokens=9, temperature=0.7, ignore_eos=True
                    )
                )
            assert said(theirs) == mine


def test_models_beside_the_engines_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and whose they are come back, and the KV that was computed with them, where a page
    still holds as many tokens of it."""
    small = replace(SHAPE, num_layers=1)
    others = {
        "guard": write_dummy_model(tmp_path / "guard", small, seed=7),
        "judge": write_dummy_model(tmp_path / "judge", SHAPE, seed=8),
    }
    loud = write_adapter(tmp_path / "loud", SHAPE, 4, seed=2)

    def speak(engine: Engine) -> list[object]:
        texts: list[object] = []
        for id in ("ada", "bob", "eve"):
            reply = engine.agent(id).generate([1, 2, 3] * 12, max_tokens=8, temperature=0.0)
            texts.append(reply.token_ids)
        return texts

    with Engine(model_parts()) as engine:
        for name, folder in others.items():
            engine.add_model(name, folder)
        engine.adapters.add("loud", loud, model="judge")
        engine.agent("ada", model="guard")
        engine.agent("bob", model="judge", adapter="loud")
        expected = speak(engine)
        assert len(set(expected)) == 3
        engine.snapshot(tmp_path / "s")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = Engine.restore(tmp_path / "s", model_parts())
    with engine:
        assert engine.agent("ada").model == "guard" and engine.agent("bob").adapter == "loud"
        assert engine.adapters["loud"].info.model == "judge"
        assert speak(engine) == expected
        assert engine.stats.cached_tokens > 90
        check_memory(engine)
    with monkeypatch.context() as patch:
        patch.setattr(
            PageGeometry, "fitting", lambda *shape: PageGeometry(*shape[:3], 16, shape[3])
        )
        with pytest.warns(SnapshotWarning) as told:
            engine = Engine.restore(tmp_path / "s", model_parts())
    assert "another number of tokens" in str(told[0].message)
    with engine:
        assert speak(engine) == expected
        assert 60 < engine.stats.cached_tokens < 90  # those of the others
        check_memory(engine)
    shutil.rmtree(others["guard"])
    with pytest.warns(SnapshotWarning, match="'guard' is not restored"):
        engine = Engine.restore(tmp_path / "s", model_parts())
    with engine:
        with pytest.raises(ModelError, match="'guard' is unknown"):
            engine.agent("ada").generate([1], max_tokens=1)
        engine.add_model("guard", write_dummy_model(others["guard"], small, seed=7))
        engine.memory.view("ada")  # behind what was told of the model
        [attached] = engine.parts.memory.owners.agent("ada").attached
        assert attached.num_blocks == engine.models.list()[0].num_pages  # before she calls
        assert speak(engine) == expected
