"""Several models in a replay: their weights are state in the pool, and nobody exceeds the roof."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from scalesim.cli import main
from scalesim.replay.arms import Outcome, play
from scalesim.replay.hardware import HARDWARE, CostModel, ModelCosts
from scalesim.replay.machine import Machine
from scalesim.replay.models import BoundModels
from scalesim.replay.peers.policies import REPLAY_POLICIES
from scalesim.replay.roof import least_weight_loads, roof
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick, with_truth
from tests.engine.test_models import SHAPES, engine_with
from tests.engine.world import SHAPE

SMALL = ModelCosts("small", 4e7, 4, 4, 2, 64, 1e7, tied=True)
LARGE = ModelCosts("large", 9e7, 4, 4, 2, 64, 1e7)
NUM_MODELS, EACH = 4, 2  # agents of each model


def turn(agent: int, at: int, text: str = "own", output: int = 12) -> TraceCall:
    own = f"{text} of {agent}" if text == "own" else text
    return TraceCall(agent, (TracePiece(own, 150), TracePiece(f"new {at}.{agent}", 20)),
                     TracePiece(f"said {at}.{agent}", output))  # fmt: skip


def told(turns: list[list[int]], output: int = 12) -> list[TraceTick]:
    """Ticks in which the agents of these models call; when each calls next is known."""
    agents = range(NUM_MODELS * EACH)
    ticks = [TraceTick(0.0, [], [turn(agent, 0, output=1) for agent in agents])]
    for at, models in enumerate(turns, 1):
        calls = [turn(a, at, output=output) for a in agents if a % NUM_MODELS in models]
        ticks.append(TraceTick(float(at), [], calls))
    found = with_truth(ticks)
    for tick in found:
        tick.calls[:] = [replace(call, expect=call.truth) for call in tick.calls]
    return found


def machine_for(models: BoundModels, in_memory: float, link: float = 1.0) -> Machine:
    cost = CostModel(HARDWARE["h100"], LARGE)
    page_bytes = cost.model.geometry().page_bytes
    device = int(in_memory * models.largest(page_bytes)) + 80
    return Machine(cost, device, 20_000, 400, 8, link_share=link, models=models)


def turns_of(order: str) -> list[list[int]]:
    rng = random.Random(1)
    if order == "cyclic":
        return [[tick % NUM_MODELS] for tick in range(16)]
    if order == "skewed":
        return [[min(int(rng.expovariate(0.7)), NUM_MODELS - 1)] for _ in range(16)]
    return [rng.sample(range(NUM_MODELS), 1 + tick % NUM_MODELS) for tick in range(10)]


@pytest.mark.parametrize("link", [0.02, 1.0])
@pytest.mark.parametrize("order", ["cyclic", "skewed", "mixed"])
def test_no_policy_exceeds_the_roof(order: str, link: float) -> None:
    models = BoundModels.in_turn([SMALL, LARGE] * 2, range(NUM_MODELS * EACH))
    ticks = list(models.apart(told(turns_of(order))))
    machine = machine_for(models, 2.0, link)
    limit = roof(machine, ticks, 2)
    for name, policy in REPLAY_POLICIES.items():
        one, simulation = play(machine, name, ticks, warmup=2, witness=True)
        assert simulation.log.turns == sum(len(tick.calls) for tick in ticks)
        most = limit.turns_per_s if policy.limited else limit.resident_turns_per_s
        assert one.turns_per_s <= most * (1 + 1e-9), name
        assert one.rebuilt_bytes >= 0 and one.waited <= 1, name
    assert limit.turns_per_s <= limit.resident_turns_per_s


def test_the_weights_that_must_come_are_fewer_under_no_choice() -> None:
    """Against every choice of the pages that are kept, on small cases."""
    rng = random.Random(3)
    for _ in range(60):
        sizes = {number: rng.randint(1, 3) for number in (1, 2, 3)}
        used = [set(rng.sample([1, 2, 3], rng.randint(0, 2))) for _ in range(5)]
        capacity = rng.randint(max(sizes.values()), sum(sizes.values()))
        assert least_weight_loads(used, sizes, capacity) == fewest(used, sizes, capacity)


def fewest(used: list[set[int]], sizes: dict[int, int], capacity: int) -> int:
    states = [
        state
        for state in itertools.product(*(range(size + 1) for size in sizes.values()))
        if sum(state) <= capacity
    ]
    costs = dict.fromkeys(states, 0)
    for numbers in used:
        after = dict.fromkeys(states, 10**9)
        for state, cost in costs.items():
            held = [
                sizes[n] if n in numbers else kept for n, kept in zip(sizes, state, strict=True)
            ]
            paid = cost + sum(held) - sum(state)
            room = capacity - max((sizes[n] for n in numbers), default=0)
            for next_state in states:
                kept = dict(zip(sizes, next_state, strict=True))
                beside = sum(kept[number] for number in sizes if number not in numbers)
                if beside <= room and all(a <= b for a, b in zip(next_state, held, strict=True)):
                    after[next_state] = min(after[next_state], paid)
        costs = after
    return min(costs.values())


def test_models_compute_in_turn_and_share_no_state() -> None:
    """Two calls of one text: of two models they take the time of both, and no page of the other."""
    seconds: dict[int, float] = {}
    for count in (1, 2):
        models = BoundModels.in_turn([SMALL] * 2, range(2))
        calls = [turn(agent, 1, text="same") for agent in range(count)]
        ticks = [TraceTick(0.0, [], [turn(0, 0), turn(1, 0)]), TraceTick(1.0, [], calls)]
        one, _ = play(machine_for(models, 4.0), "resident", models.apart(ticks), warmup=1)
        assert one.counters["device_blocks"] == 0
        seconds[count] = one.seconds
    assert seconds[2] == pytest.approx(2 * seconds[1])


def test_a_page_holds_as_many_tokens_of_each_model_as_in_an_engine() -> None:
    shapes = {None: SHAPE, "llama": SHAPES["llama"], "qwen": SHAPES["qwen"]}
    costs = [
        ModelCosts(
            str(name), 1e6, one.num_layers, one.num_heads, one.num_kv_heads, one.head_dim, 1e5
        )
        for name, one in shapes.items()
    ]
    models = BoundModels.in_turn(costs, range(3))
    machine = Machine(
        CostModel(HARDWARE["h100"], costs[0]), 4_000, 4_000, 400, block_size=32, models=models
    )
    with engine_with("llama", "qwen") as engine:
        sizes = {info.name: info.block_size for info in engine.models.list()}
    assert [machine.block_size_of(number) for number in (1, 2, 3)] == [
        32,
        sizes["llama"],
        sizes["qwen"],
    ]
    ticks = models.apart([TraceTick(0.0, [], [turn(agent, 0, output=11) for agent in range(3)])])
    _, simulation = play(machine, "deadline", ticks, witness=True)
    pages = {access.num_read: len(access.pages) for access in simulation.log.accesses.values()}
    assert pages == {169 // size: 180 // size for size in (32, *sizes.values())}


def test_weights_come_while_another_model_computes() -> None:
    """Models in turn, in memory for two: who calls next is known, and the link has time."""
    models = BoundModels.in_turn([SMALL] * NUM_MODELS, range(NUM_MODELS * EACH))
    ticks = list(models.apart(told(turns_of("cyclic"), output=40)))
    machine = machine_for(models, 2.0)
    found: dict[str, Outcome] = {
        name: play(machine, name, ticks, warmup=NUM_MODELS + 1)[0]
        for name in ("resident", "deadline", "lru-swap")
    }
    assert found["deadline"].turns_per_s >= 0.97 * found["resident"].turns_per_s
    assert found["deadline"].turns_per_s > found["lru-swap"].turns_per_s
    assert found["deadline"].loaded_bytes < found["lru-swap"].loaded_bytes


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--models", "1"], "--models 1: it must be 2 at least"),
        (["--models", "2", "--model", "qwen2.5-0.5b,llama-3.2-1b,qwen2.5-7b"], "than the 3 shapes"),
        (["--models", "9", "--agents", "8"], "9 models for 8 agents"),
        (["--models", "2", "--pool", "10GB"], "of them for its model's weights"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["replay", "w1", *words]) == 2
    assert says in capsys.readouterr().err


def test_the_command_line_names_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--agents", "6", "--ticks", "2", "--private", "96", "--output", "8"]
    models = ["--model", "qwen2.5-0.5b,llama-3.2-1b", "--models", "3", "--policy", "deadline"]
    assert main(["replay", "w4", *words, *models]) == 0
    assert "2 × qwen2.5-0.5b, 1 × llama-3.2-1b on h100" in capsys.readouterr().out
