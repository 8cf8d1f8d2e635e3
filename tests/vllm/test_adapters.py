"""LoRA adapters in the order of next use, against caches as vLLM's are: LRU, with ``add_lora``."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from scalesim.order.board import CallBoard
from scalesim.vllm.adapters import AgentAdapters

AGENTS, SLOTS = 8, 3


@dataclass(frozen=True)
class Adapter:
    lora_int_id: int

    @property
    def lora_name(self) -> str:
        return f"adapter {self.lora_int_id}"


class Core:
    """vLLM's engine core with one LRU cache of adapters; ``loads`` are those read from disk."""

    def __init__(self, slots: int = SLOTS) -> None:
        lora = SimpleNamespace(max_loras=slots) if slots else None
        self.vllm_config = SimpleNamespace(lora_config=lora)
        self.slots = slots
        self.cache: OrderedDict[int, Adapter] = OrderedDict()
        self.loads: list[int] = []
        self.broken: set[int] = set()

    def list_loras(self) -> set[int]:
        return set(self.cache)

    def add_lora(self, adapter: Adapter) -> bool:
        number = adapter.lora_int_id
        if number in self.broken:
            raise ValueError("no such file")
        if number not in self.cache:
            self.loads.append(number)
            if len(self.cache) == self.slots:
                self.cache.popitem(last=False)
            self.cache[number] = adapter
        self.cache.move_to_end(number)
        return True


class Play:
    """Calls, one a tick, of agents with an adapter each."""

    def __init__(self, max_loads: int = 0, *, arranged: bool = True) -> None:
        self.core, self.board = Core(), CallBoard()
        self.adapters = AgentAdapters(self.board)
        self._max_loads, self._arranged = max_loads, arranged
        self.late = 0  # loads that a call waits for

    def arrange(self, *running: Adapter) -> None:
        if self._arranged:
            self.adapters.arrange(self.core, running, self._max_loads)

    def play(self, calls: list[int]) -> int:
        """How many adapters are read from disk."""
        for now, agent in enumerate(calls):
            self.board.tick(to=float(now))
            self.arrange()
            adapter, before = Adapter(agent + 1), len(self.core.loads)
            self.board.begin(f"{now}", agent)
            self.adapters.note(agent, adapter)
            self.core.add_lora(adapter)  # vLLM does, when the request is scheduled
            self.late += len(self.core.loads) - before
            later = calls[now + 1 :]
            self.board.end(f"{now}")
            if agent in later:
                self.board.expect({agent: float(now + 1 + later.index(agent))})
        return len(self.core.loads)


def belady(calls: list[int]) -> int:
    held: set[int] = set()
    loads = 0
    for now, agent in enumerate(calls):
        if agent not in held:
            loads += 1
            if len(held) == SLOTS:
                later = calls[now + 1 :]
                held.remove(max(held, key=lambda a: later.index(a) if a in later else len(calls)))
            held.add(agent)
    return loads


@pytest.mark.parametrize("order", ["cycle", "permutations"])
@pytest.mark.parametrize("max_loads", [0, 1])
def test_as_few_loads_as_belady(order: str, max_loads: int) -> None:
    rng, calls = random.Random(3), list[int]()
    for _ in range(8):
        one = list(range(AGENTS))
        if order == "permutations":
            rng.shuffle(one)
        calls += one
    ours = Play(max_loads)
    assert ours.play(calls) <= 1.05 * belady(calls) < 0.85 * Play(arranged=False).play(calls)
    if max_loads:
        assert ours.late == AGENTS  # only at its first call, nothing is known of an agent


def test_adapters_of_running_calls_stay() -> None:
    play = Play(max_loads=1)
    play.play([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    play.core.add_lora(Adapter(5))
    play.board.expect({agent: 9.5 + agent for agent in range(5)})
    held = set(play.core.cache)
    play.arrange(Adapter(5))
    assert len(held | {1, 5}) == SLOTS + 1
    assert {1, 5} < set(play.core.cache)  # agent 0 calls in this tick
    assert next(reversed(play.core.cache)) == 5


def test_an_adapter_that_cannot_be_read_is_left_to_its_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    play = Play(max_loads=8)
    play.play([0, 1, 2, 3, 4])
    play.board.expect(dict.fromkeys(range(5), 4.5))
    play.core.broken = {1}
    play.arrange()
    play.arrange()
    assert [each.message for each in caplog.records] == [
        "adapter 'adapter 1' cannot be loaded ahead"
    ]
    assert 2 in play.core.cache


def test_forgotten_agents_and_agents_without_an_adapter() -> None:
    play = Play(max_loads=8)
    play.play([0, 1, 2])
    play.adapters.note(1, None)
    play.adapters.forget([0, 99])
    assert len(play.adapters) == 1
    core: Any = Core(slots=0)
    play.adapters.arrange(core, [], 8)  # no adapters at all
    assert core.loads == []
