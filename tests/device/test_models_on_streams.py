"""Several models on hostile streams: the CPU runner's texts, and no two accesses to a page that
nothing orders; a wait that is left out is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scalesim_kernels import KernelSet, select
from torch import Tensor

from scalesim.engine import backends
from scalesim.engine.engine import Engine
from scalesim.errors import ModelError
from scalesim.memory.pools.page_access import TensorPages
from tests.device.hostile_device import HostileDevice, Order, RaceError
from tests.device.test_backends import SmallDevice
from tests.device.test_planted_waits import no_wait, root
from tests.device.world import DEVICE, empty, hostile, hostile_engine, runner_of, watching, zeros
from tests.engine.test_models import SHAPES, Play, Texts, engine_with, folder
from tests.inside import check_memory

CAST = {f"a{number}": (None, *SHAPES)[number % 4] for number in range(8)}
SCHEDULES = {
    "lazy": lambda: hostile(order="lazy"),
    "eager": lambda: hostile(order="eager"),
    "models first": lambda: hostile(seed=1, favoured="models"),
    "models last": lambda: hostile(seed=2, starved="models"),
    "steps last": lambda: hostile(seed=4, starved="compute", favoured="models"),
    "loads first": lambda: hostile(seed=3, favoured="in"),
}


def play(engine: Engine) -> Texts:
    found, said = Play(CAST), Texts()
    for _ in range(2):
        found.tick(engine, said)
    return said


@cache
def expected() -> Texts:
    with engine_with(*SHAPES, device_pages=2000, policy="resident") as engine:
        return play(engine)


class Game:
    """An engine with three more models on ``device``, whose pool holds a part of them."""

    def __init__(self, device: HostileDevice, **settings: Any) -> None:
        self.device = device
        WATCHERS.append(device)
        self.engine = hostile_engine(
            device, block_size=32, device_pages=130, host_pages=400, **settings
        )
        for name in SHAPES:
            self.engine.add_model(name, folder(name))

    def outcome(self) -> str:
        """``"same"``, ``"other texts"``, or the error that ended the game."""
        try:
            with self.engine:
                played = play(self.engine)
                check_memory(self.engine)
        except Exception as error:
            return type(self.device.race or root(error)).__name__
        return "same" if played == expected() else "other texts"


@pytest.fixture(autouse=True)
def _kernels_of_added_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of a GPU are not to be had here."""
    monkeypatch.setattr(backends, "select", lambda name, reproducible: watched())
    yield
    WATCHERS.clear()


WATCHERS: list[HostileDevice] = []


def watched() -> KernelSet:
    """Kernels that tell the device which pages a step reads, those of weights among them."""
    kernels, device = select("cpu"), WATCHERS[-1]

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        device.access(weight, is_write=False)
        return kernels.linear(x, weight, bias)

    return replace(watching(kernels, device), linear=linear)


@pytest.mark.parametrize("order", SCHEDULES)
def test_texts_are_the_cpu_runners(order: str) -> None:
    game = Game(SCHEDULES[order](), graphs=order != "eager")
    assert game.outcome() == "same"
    counters = game.engine.parts.memory.counters
    assert counters.evicted_pages > 50 and counters.loaded_pages > 50, counters
    assert runner_of(game.engine.parts).num_waits == 0


@pytest.mark.parametrize(("name", "order"), [("compute", "lazy"), ("models", "steps last")])
def test_a_stream_that_does_not_wait_is_seen(name: str, order: str) -> None:
    """A part of a step begins behind its block table, and the step ends behind its parts."""
    game = Game(SCHEDULES[order]())
    no_wait(game.device.stream(name))
    assert game.outcome() != "same"


def moved(device: HostileDevice) -> tuple[list[int], int]:
    """Pages whose content is their number: moved while a step runs, then read and written by the
    link. Returns what is in some of them, and what was saved of page 5."""
    rows = np.arange(8, dtype=np.uint8).repeat(16).reshape(8, 16)
    pages, saved = torch.from_numpy(rows.copy()), torch.zeros(16, dtype=torch.uint8)
    device.watch(DEVICE, pages, 16)
    access, compute = TensorPages(pages, rows, device), device.stream("compute")
    compute.copy(pages[5], torch.full((16,), 9, dtype=torch.uint8))  # a step that was launched
    access.move([1, 2, 6], [4, 5, 3])
    device.stream("in").copy(pages[1], torch.full((16,), 7, dtype=torch.uint8))
    device.stream("out").copy(saved, pages[5])
    for name in ("out", "in"):
        device.stream(name).record().synchronize()
    return access.read("device", [1, 3, 4, 5])[:, 0].tolist(), int(saved[0])


@pytest.mark.parametrize("order", ["lazy", "eager", "random"])
def test_pages_are_moved_behind_the_steps_that_were_launched(order: Order) -> None:
    """And before whatever the link is given next; a stream that does not wait is a race."""
    assert moved(hostile(order=order)) == ([7, 6, 1, 2], 2)
    for name in ("in", "out"):
        device = hostile(order=order)
        no_wait(device.stream(name))
        with pytest.raises(RaceError):
            moved(device)


def test_a_device_without_room_for_the_steps_of_a_further_model_says_so() -> None:
    device = SmallDevice(pinned=zeros, empty=empty, order="eager")
    WATCHERS.append(device)
    with hostile_engine(device, block_size=32) as engine:
        device.free = 1000
        with pytest.raises(ModelError, match=r"1000 of \d+ bytes free beside the pool.*lower"):
            engine.add_model("llama", folder("llama"))
        assert engine.models.list() == []
        device.free = 10 << 30
        engine.add_model("llama", folder("llama"))
        agent = engine.agent("a", model="llama")
        said = agent.generate([1, 2, 3], max_tokens=4, temperature=0.0).token_ids
        engine.add_model("llama", folder("llama"), replace=True)  # while nobody runs
        assert agent.generate([1, 2, 3], max_tokens=4, temperature=0.0).token_ids == said
        engine.agent("a").model = None
        engine.remove_model("llama")
