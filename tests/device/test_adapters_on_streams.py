"""Agents with adapters on hostile streams: the CPU runner's texts to the last bit of every logit,
whatever graph runs and whoever's adapters it finds; a wait that is left out is seen."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scalesim_kernels import KernelSet, select

from scalesim.engine.engine import Engine
from scalesim.errors import AdapterError
from scalesim.memory.links.source_link import SourceLink
from scalesim.model.adapters.layout import LayoutTable, LoraLayout, lora_sites, make_directory
from scalesim.model.runner.device_lora import FIRST_CAPACITY, DeviceLora
from scalesim.requests.reply import Reply
from tests.device.hostile_device import HostileDevice, RaceError
from tests.device.test_planted_waits import PLANTS, root
from tests.device.world import hostile, hostile_engine, prompts, reads_of, runner_of
from tests.engine.test_adapters import folders, play, unlimited
from tests.engine.test_same_texts import check_empty
from tests.engine.world import SHAPE, said, tiny_engine

FEW = 8  # two of each rank
SCHEDULES: list[Callable[[], HostileDevice]] = [
    lambda: hostile(order="lazy"),
    lambda: hostile(order="eager"),
    lambda: hostile(seed=1, favoured="in"),
    lambda: hostile(seed=2, starved="compute"),
]


def game(device: HostileDevice, num_agents: int = FEW, **settings: Any) -> Engine:
    """An engine with room for a quarter of all state."""
    _, pages = unlimited(num_agents)
    settings = {"device_pages": max(pages // 4, 110), "host_pages": pages, **settings}
    return hostile_engine(device, **settings)


@pytest.mark.parametrize(("index", "host_pages"), [(0, None), (1, 0), (2, None), (3, 0)])
def test_texts_are_the_cpu_runners(index: int, host_pages: int | None) -> None:
    """With no host pool, every load is a read of a folder, through the bounce pages."""
    settings = {} if host_pages is None else {"host_pages": host_pages}
    engine = game(SCHEDULES[index](), graphs=index % 2 == 0, **settings)
    with engine:
        assert said(play(engine, num_agents=FEW)) == unlimited(FEW)[0]
        counters = engine.parts.memory.counters
        assert counters.evicted_pages > 0 and counters.loaded_pages + counters.read_pages > 0
        if host_pages == 0:
            assert counters.read_pages > 100
        runner = runner_of(engine.parts)
        assert runner.num_waits == 0
        shapes = len(runner.graphs.shapes)
        assert runner.graphs.num_captures == 2 * shapes  # with and without
    check_empty(engine)


def test_64_agents_at_a_quarter_of_the_pool() -> None:
    texts, pages = unlimited()
    engine = hostile_engine(
        hostile(seed=3), device_pages=pages // 4, host_pages=pages // 2, max_num_seqs=16,
        watch=False,
    )  # fmt: skip
    with engine:
        assert said(play(engine)) == texts
    check_empty(engine)


def outcome(device: HostileDevice, plant: Callable[[Engine], object], **settings: Any) -> str:
    """What became of a game: ``"same"``, ``"other texts"``, or the error that ended it. A race
    counts before what came of it: weights that have not arrived may end a game as no numbers,
    before the copy that comes too late runs, which may be in ``close``."""
    engine = game(device, **settings)
    plant(engine)
    try:
        try:
            with engine:
                played = said(play(engine, num_agents=FEW))
        finally:
            device.run_all()
    except Exception as error:
        return type(device.race or root(error)).__name__
    return "same" if played == unlimited(FEW)[0] else "other texts"


@pytest.mark.parametrize("name", ["copy-in before first read", "copy-out before reuse"])
def test_a_copy_reported_too_early_is_a_race(name: str) -> None:
    for make in SCHEDULES[:2]:
        device = make()

        def plant(engine: Engine, device: HostileDevice = device) -> None:
            PLANTS[name](device)

        assert outcome(device, plant) == RaceError.__name__


def early(link: SourceLink) -> None:
    """Bounce pages are free again as soon as their copy was submitted."""
    submit = link.link.submit

    def submitting(copies: Any, *args: Any, **options: Any) -> list[int]:
        tickets: list[int] = submit(copies, *args, **options)
        if copies.host_pages and copies.host_pages[0] in bounce:
            link.bounce += copies.host_pages
        return tickets

    bounce = set(link.bounce)
    link.link.submit = submitting  # type: ignore[method-assign]


def few_bounce_pages(engine: Engine) -> SourceLink:
    link = reads_of(engine.parts)
    del link.bounce[8:]
    return link


def test_bounce_pages_given_back_too_early_are_a_race() -> None:
    """And with few of them, all is well."""
    settings: Any = {"host_pages": 0}
    assert outcome(hostile(order="lazy"), few_bounce_pages, **settings) == "same"

    def plant(engine: Engine) -> None:
        early(few_bounce_pages(engine))

    assert outcome(hostile(order="lazy"), plant, **settings) == RaceError.__name__


def test_a_load_of_weights_waits_for_the_step_that_still_reads_its_pages() -> None:
    """Ada's adapter comes into a page that a step in flight still writes: one that Bob, who was
    cancelled while it ran, had grown into."""

    def load(plant: bool) -> None:
        device = hostile(order="lazy")
        engine = hostile_engine(
            device, device_pages=14, host_pages=60, policy="lru-swap", safe_point_tokens=256,
            max_num_seqs=2,
        )  # fmt: skip
        ada, bob = engine.agent("ada", adapter=folders()[0]), engine.agent("bob")
        (first,), (second,) = prompts(1, 20), prompts(1, 112, seed=1)
        finish(engine, ada.request(first, max_tokens=2, ignore_eos=True))
        call = engine.submit(bob.request(second, max_tokens=112, ignore_eos=True))
        while engine.parts.scheduler.num_waiting or engine.stats.steps < 12:
            engine.step()
        if plant:
            PLANTS["last read before copy-in"](device)
        engine.cancel(call)
        finish(engine, ada.request([*first, 1, 2, 3], max_tokens=2, ignore_eos=True))
        device.run_all()
        assert engine.parts.memory.counters.loaded_pages > engine.adapters.list()[0].num_pages

    load(plant=False)
    with pytest.raises(RaceError, match=r"device page \d+ is (read|written)"):
        load(plant=True)


def finish(engine: Engine, request: Any) -> Reply:
    call = engine.submit(request)
    while not call.done:
        engine.step()
    return call.result()


def test_a_name_with_new_content_and_an_adapter_removed_in_use() -> None:
    prompt = list(range(80))
    expected = []
    with tiny_engine(digests=True) as engine:
        for path in folders()[1:3]:
            agent = engine.agent("ada", adapter=path)
            expected.append(said([agent.generate(prompt, max_tokens=6, seed=1)]))
    engine = hostile_engine(hostile(seed=4), device_pages=150)
    with engine:
        engine.adapters.add("role", folders()[1])
        agent = engine.agent("ada", adapter="role")
        request = agent.request(prompt, max_tokens=6, seed=1)
        call = engine.submit(request)
        engine.step()
        with pytest.raises(AdapterError, match="'role' is used by 1 open calls"):
            engine.adapters.remove("role")
        engine.adapters.add("role", folders()[2], replace=True)  # the open call keeps the old one
        while not call.done:
            engine.step()
        assert said([call.result()]) == expected[0]
        second = finish(engine, agent.request(prompt, max_tokens=6, seed=1))
        assert said([second]) == expected[1] and second.usage.cached_tokens == 0
        assert len(engine.parts.memory.adapters) == 1
        engine.adapters.remove("role")
        engine.step()
        assert len(engine.parts.memory.adapters) == 0
    check_empty(engine)


# -- the pieces -------------------------------------------------------------------------------


def layouts_of(count: int) -> list[LoraLayout]:
    scales = ((1.0,) * 7,) * SHAPE.num_layers
    return [
        LoraLayout(lora_sites(SHAPE), ((1 + index,) * 7,) * SHAPE.num_layers, scales, 2048)
        for index in range(count)
    ]


@pytest.mark.parametrize("order", ["lazy", "eager"])
def test_layouts_arrive_behind_the_steps_in_flight(order: Any) -> None:
    """Also those that make the buffers move: each is what the CPU's directory says."""
    device, table = hostile(order=order), LayoutTable()
    stream = device.stream("compute")
    directory = DeviceLora(device, stream, table, SHAPE.num_layers)
    assert not directory.update() and directory.tensors is None
    moved = []
    for layout in layouts_of(2 * FIRST_CAPACITY + 1):
        table.number(layout)
        moved.append(directory.update())
        assert not directory.update()
    assert [i for i, each in enumerate(moved) if each] == [0, FIRST_CAPACITY, 2 * FIRST_CAPACITY]
    stream.record().synchronize()
    want, found = make_directory(table.layouts, 64), directory.tensors
    assert found is not None
    for name in ("a_offsets", "b_offsets", "ranks", "scales"):
        mine = getattr(found, name)[: len(table.layouts)]
        assert torch.equal(mine, getattr(want, name)), name


def test_one_graph_serves_any_adapters() -> None:
    """Rows of other agents' adapters, more and fewer groups, and none at all."""
    device = hostile(order="lazy")
    engine = hostile_engine(device, watch=False, device_pages=300)
    alone: list[Any] = []
    for path in (None, *folders()[:4]):
        with tiny_engine(digests=True) as other:
            agent = other.agent("x", adapter=path)
            alone.append(said([agent.generate([7] * 20, max_tokens=5, seed=1)])[0])
    with engine:
        agents = [engine.agent(i, adapter=path) for i, path in enumerate([None, *folders()[:4]])]
        captures = set()
        for some in itertools.combinations(range(5), 3):
            requests = [agents[i].request([7] * 20, max_tokens=5, seed=1) for i in some]
            replies = engine.run(requests)
            assert said(replies) == [alone[i] for i in some]  # type: ignore[arg-type]
            captures.add(runner_of(engine.parts).graphs.num_captures)
        assert len(captures) == 1


def texts(kernels: KernelSet, graphs: bool) -> list[tuple[int, ...]]:
    """Four agents, three of them with adapters of ranks 4, 8 and 16; two turns, greedy."""
    engine = hostile_engine(
        hostile(order="lazy"), kernels=kernels, watch=False, graphs=graphs, max_num_seqs=4,
        max_num_batched_tokens=48, max_model_len=64, device_pages=90, host_pages=90,
    )  # fmt: skip
    with engine:
        agents = [engine.agent(i, adapter=p) for i, p in enumerate([*folders()[:3], None])]
        said_so_far: list[tuple[int, ...]] = []
        for turn in range(2):
            asked = prompts(4, 18, seed=turn)
            replies = engine.run(
                agent.request(prompt, max_tokens=3, temperature=0.0, ignore_eos=True)
                for agent, prompt in zip(agents, asked, strict=True)
            )
            said_so_far += [r.token_ids for r in replies if isinstance(r, Reply)]
    return said_so_far


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for CPUs")
def test_triton_says_what_the_reference_says() -> None:
    expected = texts(select("reference"), graphs=False)
    assert texts(select("triton"), graphs=True) == expected
    assert len(expected) == 8 and len(set(expected)) > 4
