"""``Agent.state``: values come back bit for bit, whatever memory does meanwhile."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scalesim.engine.engine import Engine
from scalesim.errors import SnapshotWarning, StateError, StateLostError, UnknownAgentError
from tests.engine.test_same_texts import check_empty
from tests.engine.world import PAGE_BYTES, tiny_engine
from tests.inside import between_steps

DTYPES = (torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64, torch.uint8)


def value(rng: random.Random) -> torch.Tensor:
    dtype = rng.choice(DTYPES)
    shape = [rng.randint(0, 9) for _ in range(rng.randint(0, 3))]
    if rng.random() < 0.3:
        shape = [rng.randint(1, 3), PAGE_BYTES // 4]
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    return (torch.randn(shape, generator=generator) * 9).to(dtype)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_a_dictionary(policy: str, seed: int) -> None:
    """Under pressure on both tiers, with forks of agents and of worlds."""
    rng = random.Random(seed)
    with tiny_engine(device_pages=14, host_pages=60, policy=policy) as engine:
        fork = None
        for name in "abc":
            engine.agent(name)
        model: dict[tuple[Engine | Any, str], dict[str, torch.Tensor]] = {
            (engine, name): {} for name in "abc"
        }
        for turn in range(120):
            world, name = rng.choice(list(model))
            agent, known = world.agent(name), model[world, name]
            key = rng.choice("xyz")
            what = rng.choice(["set", "set", "write", "delete", "call", "call", "fork", "world"])
            if what == "set":
                known[key] = value(rng)
                agent.state[key] = (
                    known[key].numpy()
                    if key == "x" and known[key].dtype != torch.bfloat16
                    else known[key]
                )
            elif what == "write" and key in known and known[key].dtype != torch.bool:
                with agent.state.active() as state:
                    state[key] += 1
                    assert state[key] is agent.state[key]
                known[key] = known[key] + 1
            elif what == "delete":
                if known.pop(key, None) is None:
                    with pytest.raises(KeyError):
                        del agent.state[key]
                else:
                    del agent.state[key]
            elif what == "call":
                agent.expect(rng.randint(0, 2))
                agent.generate(f"{name} {turn % 3} " * 20, max_tokens=3)
                engine.tick()
            elif what == "fork" and sum(owner is world for owner, _ in model) < 5:
                agent.fork(f"{name}{turn}")
                model[world, f"{name}{turn}"] = dict(known)
            elif what == "world" and fork is None:
                fork = engine.fork_world()
                model |= {(fork, n): dict(v) for (w, n), v in model.items() if w is engine}
            elif what == "world" and rng.random() < 0.3 and fork is not None:
                fork.close()
                model = {key: held for key, held in model.items() if key[0] is engine}
                fork = None
            world, name = rng.choice(list(model))
            state, known = world.agent(name).state, model[world, name]
            assert set(state) == set(known) and len(state) == len(known)
            assert all(same(state[key], known[key]) for key in known)
        if fork is not None:
            fork.close()
        engine.forget([name for world, name in model if world is engine])
        between_steps(engine, engine.parts.memory.drain)  # a save may be under way
        between_steps(engine, engine.parts.memory.poll)
        between_steps(engine, lambda: check_empty(engine))


def test_texts_do_not_depend_on_state() -> None:
    def play(*, blobs: bool) -> list[str]:
        with tiny_engine(device_pages=14, host_pages=60) as engine:
            texts = []
            for turn in range(6):
                for name in "abc":
                    agent = engine.agent(name)
                    if blobs:
                        agent.state["memory"] = torch.full((3, PAGE_BYTES // 4), float(turn))
                    prompt = f"{name} says " * 12 + "more " * turn
                    texts.append(agent.generate(prompt, max_tokens=5).text)
                    agent.expect(1)
                engine.tick()
            return texts

    assert play(blobs=True) == play(blobs=False)


def test_a_block_that_raises_writes_nothing() -> None:
    with tiny_engine() as engine:
        state = engine.agent("ada").state
        state["memory"] = torch.zeros(4)
        with pytest.raises(ZeroDivisionError), state.active():
            state["memory"] += 1
            del state["memory"]
            assert "memory" not in state and len(state) == 0
            with pytest.raises(KeyError):
                del state["memory"]
            state["more"] = torch.zeros(1)
            raise ZeroDivisionError
        assert list(state) == ["memory"] and same(state["memory"], torch.zeros(4))
        with state.active():
            state["memory"] += 1
            state["memory"] = np.ones(2)  # in place of the tensor of before
            state["more"] = torch.zeros(1)
            assert list(state) == ["memory", "more"] and len(state) == 2
            del state["more"]
            with pytest.raises(StateError, match="active already"), state.active():
                pass
        assert same(state["memory"], torch.ones(2, dtype=torch.float64))
        assert state.sizes == {"memory": 16}
        with state.active():
            del state["memory"]
        assert state.sizes == {}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(0), np.zeros((0, 3), np.float16), np.array(5), np.array(5, ">i2"),
        np.arange(8)[::-1], np.arange(8.0)[::2][:1], np.arange(4).astype(">i4"),
        np.arange(6).reshape(2, 3).T, np.broadcast_to(np.float64(3), (1,)),
        np.frombuffer(b"read only", np.uint8),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}{array.strides}",
)  # fmt: skip
def test_arrays_are_kept_however_they_lie(array: Any) -> None:
    given = [array]
    if array.dtype.isnative and array.flags.writeable and min(array.strides, default=0) >= 0:
        given.append(torch.from_numpy(array))
    with tiny_engine() as engine:
        state = engine.agent("ada").state
        for value in given:
            state["x"] = value
            assert np.array_equal(state["x"].numpy(), array) and state["x"].shape == array.shape


def test_what_cannot_be_kept_is_refused() -> None:
    with tiny_engine(device_pages=8, host_pages=4) as engine:
        agent = engine.agent("ada")
        for wrong in ([1.0], None, np.array(["a"]), torch.eye(2).to_sparse()):
            with pytest.raises(StateError, match=r"state is|no tensor"):
                agent.state["memory"] = wrong
        for name in ("", "n" * 257, 3):
            with pytest.raises(StateError, match="name"):
                agent.state[name] = torch.zeros(1)  # type: ignore[index]
        agent.state["memory"] = torch.zeros(PAGE_BYTES)  # float32: four pages
        with pytest.raises(StateError, match="raise host_memory"):
            agent.state["more"] = torch.zeros(1)
        assert list(agent.state) == ["memory"] and engine.memory.view("ada").pages.total == 4
        agent.forget()
        with pytest.raises(UnknownAgentError, match="was forgotten, with its state"):
            agent.state["memory"]
        assert list(engine.agent("ada").state) == []


def test_a_snapshot_keeps_values_and_what_forks_share(tmp_path: Path) -> None:
    """Bit for bit, as of the moment of the snapshot; also into other pages, and with little
    room."""
    rng = random.Random(7)
    with tiny_engine(device_pages=14, host_pages=60) as engine:
        ada = engine.agent("ada")
        kept = {name: value(rng) for name in "xyz"}
        for name, tensor in kept.items():
            ada.state[name] = tensor
        ada.generate("hello " * 30, max_tokens=3)
        bob = ada.fork("bob")
        bob.state["x"] = torch.arange(PAGE_BYTES // 2)
        with engine.fork_world() as world:
            world.agent("ada").state["x"] = torch.zeros(5)
            engine.snapshot(tmp_path)
        held = engine.parts.memory.blobs.num_pages
        ada.state["x"] = torch.zeros(1)
    parts = tiny_engine(device_pages=14, host_pages=60).parts
    with Engine.restore(tmp_path, parts) as engine:
        for agent, of in (("ada", kept), ("bob", {**kept, "x": torch.arange(PAGE_BYTES // 2)})):
            state = engine.agent(agent).state
            assert set(state) == set(of) and all(same(state[name], of[name]) for name in of)
        assert engine.parts.memory.blobs.num_pages == held
        engine.agent("ada").state["y"] = torch.ones(2)
        assert same(engine.agent("bob").state["y"], kept["y"])
        assert engine.restored is not None and engine.restored.num_pages > 0
    few = tiny_engine(device_pages=14, host_pages=4).parts
    with (
        pytest.warns(SnapshotWarning, match="values that agents kept are not restored"),
        Engine.restore(tmp_path, few) as engine,
    ):
        state = engine.agent("ada").state
        assert len(state) < 3
        for name in set("xyz") - set(state):
            with pytest.raises(StateLostError, match="host_memory"):
                state[name]
