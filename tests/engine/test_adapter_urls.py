"""Adapters in an object store: read again by next use; and a store that fails."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from scalesim.engine.build import parts_for, with_settings
from scalesim.engine.engine import Engine
from scalesim.engine.inbox import Inbox
from scalesim.errors import AdapterError
from tests.engine.test_adapters import folders, texts_of
from tests.engine.test_same_texts import check_empty
from tests.engine.world import TOKENIZER, tiny_engine, tiny_model
from tests.inside import part

PROMPT = list(range(40))
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def stored(index: int) -> str:
    """The URL of a copy of ``folders()[index]``."""
    for path in folders()[index].iterdir():
        MemoryFileSystem().pipe_file(f"/adapters/{index}/{path.name}", path.read_bytes())
    return f"memory://adapters/{index}"


def said(engine: Engine, places: list[Any]) -> list[Any]:
    agents = [engine.agent(index, adapter=place) for index, place in enumerate(places)]
    texts = []
    for _ in range(2):
        for agent in agents:
            agent.expect(agents.index(agent))
        for agent in agents:
            texts += texts_of([agent.generate(PROMPT, max_tokens=5, seed=1)])
            engine.tick()
    return texts


@pytest.mark.parametrize("policy", ["deadline", "lru-swap", "lru-recompute"])
def test_adapters_of_a_store_say_what_those_of_folders_say(policy: str) -> None:
    """Without a host pool, where each is read from the store again and again."""
    with tiny_engine(policy="resident") as engine:
        expected = said(engine, folders()[:6])
    with tiny_engine(policy=policy, device_pages=90, host_pages=0) as engine:
        assert said(engine, [stored(index) for index in range(6)]) == expected
        assert [info.path for info in engine.adapters.list()] == [stored(i) for i in range(6)]
        assert engine.stats.evicted_bytes
    check_empty(engine)


def test_a_store_that_fails_fails_the_calls_that_need_it_only() -> None:
    store, path = MemoryFileSystem(), f"/adapters/0/{WEIGHTS}"
    with tiny_engine(device_pages=60, host_pages=0) as engine:
        agents = [engine.agent(i, adapter=stored(i)) for i in range(2)] + [engine.agent("plain")]
        requests = [agent.request(PROMPT, max_tokens=4, seed=1) for agent in agents]
        before, intact = engine.run(requests), store.cat_file(path)
        for content, reason in (
            (intact[:-4] + b"\0\0\0\1", "memory://adapters/0 changed since"),
            (intact[:-9], "not a readable safetensors file"),
            (None, f"{WEIGHTS} is missing"),
        ):
            store.rm(path) if content is None else store.pipe_file(path, content)
            part(engine, Inbox).post(engine.parts.memory.clear)
            outcomes = engine.run(requests, return_exceptions=True)
            assert isinstance(outcomes[0], AdapterError) and reason in str(outcomes[0])
            assert texts_of(outcomes[1:]) == texts_of(before[1:])
        store.pipe_file(path, intact)
        assert texts_of(engine.run(requests)) == texts_of(before)
    check_empty(engine)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (CONFIG, None, f"{CONFIG} is missing"),
        (WEIGHTS, None, f"{WEIGHTS} is missing"),
        (CONFIG, b"[]", f"{CONFIG} holds a list, not an object"),
        (CONFIG, b"{" + b" " * (1 << 20), f"{CONFIG} holds more than 1048576 bytes"),
        (WEIGHTS, b"\0" * (20 << 20), f"{WEIGHTS} holds more than"),
    ],
)
def test_what_is_under_a_url_is_not_trusted(name: str, content: bytes | None, reason: str) -> None:
    url, path, store = stored(3), f"/adapters/3/{name}", MemoryFileSystem()
    store.rm(path) if content is None else store.pipe_file(path, content)
    with tiny_engine() as engine:
        with pytest.raises(AdapterError, match=reason) as raised:
            engine.agent("ada", adapter=url)
        assert f"adapter {url}: " in str(raised.value)


@pytest.mark.parametrize(("kind", "is_read"), [(bytearray, True), (memoryview, True), (str, False)])
def test_a_client_may_give_whatever_has_bytes(
    kind: Any, is_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, read = stored(0), MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, **bounds: Any) -> Any:
        found = read(self, path, **bounds)
        return found.decode("latin-1") if kind is str else kind(found)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    with tiny_engine() as engine:
        if is_read:
            assert engine.adapters.add("ada", url).info.path == url
        else:
            with pytest.raises(AdapterError, match=f"adapter {url}: TypeError: .* not 'str'"):
                engine.adapters.add("ada", url)


@pytest.mark.parametrize("url", ["nosuch://adapters/0", "://", "memory://"])
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with tiny_engine() as engine, pytest.raises(AdapterError, match=f"adapter {url}: "):
        engine.adapters.add("ada", url)


def test_a_restored_engine_reads_the_store_again(tmp_path: Path) -> None:
    config = with_settings(None, {"device_memory": "4MB", "host_memory": "4MB"})
    parts = partial(parts_for, tiny_model(), config, tokenizer=TOKENIZER)
    with Engine(parts()) as engine:
        agent = engine.agent("ada", adapter=stored(2))
        expected = agent.generate(PROMPT, max_tokens=5, seed=1)
        engine.snapshot(tmp_path / "snapshot")
    with Engine.restore(tmp_path / "snapshot", parts()) as engine:
        assert engine.agent("ada").adapter == stored(2)
        found = engine.agent("ada").generate(PROMPT, max_tokens=5, seed=1)
    assert found.token_ids == expected.token_ids
