"""Each wait of the link and the runner is left out in turn, and that must be seen.

What is left out is one event's: the stream does not wait for it, or the host takes it for reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from scalesim.device.staging import StagingRing
from scalesim.device.streams import Fences
from scalesim.engine.engine import Engine
from scalesim.errors import KernelError
from scalesim.memory.pools.pinned import PinnedPages
from scalesim.model.runner.device_table import DeviceTable
from scalesim.requests.call import Call
from tests.device.hostile_device import HostileDevice, HostileEvent, HostileStream, RaceError
from tests.device.test_engine_on_streams import FULL, QUARTER, TURNS, unlimited
from tests.device.world import hostile, hostile_engine, prompts
from tests.engine.world import BLOCK, said
from tests.inside import part

Plant = Callable[[HostileDevice], None]


def lie(event: HostileEvent) -> HostileEvent:
    """The host takes ``event`` for reached, and learns nothing by it."""
    event.query = lambda: True  # type: ignore[method-assign]
    event.synchronize = lambda: None  # type: ignore[method-assign]
    event.elapsed_s = lambda earlier: 1e-3  # type: ignore[method-assign]
    return event


def lying(stream: HostileStream) -> None:
    record = stream.record
    stream.record = lambda *, timed=False: lie(record(timed=timed))  # type: ignore[method-assign]


def no_wait(stream: HostileStream) -> None:
    stream.wait = lambda event: None  # type: ignore[method-assign]


PLANTS: dict[str, Plant] = {
    "last read before copy-in": lambda device: no_wait(device.stream("in")),
    "copy-in before first read": lambda device: lying(device.stream("in")),
    "copy-out before reuse": lambda device: lying(device.stream("out")),
    "write before copy-out": lambda device: lying(device.stream("compute")),
}


def outcome(engine: Engine) -> str:
    """What became of a game: ``"same"``, ``"other texts"``, or the error that ended it."""
    try:
        with engine:
            played = said(TURNS.play(engine, hint=lambda agent, turn: 1))
    except Exception as error:
        return type(root(error)).__name__
    return "same" if played == unlimited() else "other texts"


def root(error: BaseException) -> BaseException:
    """What ``error`` came of in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def play(plant: Plant | None, device: HostileDevice, **settings: Any) -> str:
    engine = hostile_engine(device, device_pages=QUARTER, host_pages=FULL, **settings)
    if plant is not None:
        plant(device)
    return outcome(engine)


def test_weights_that_nobody_waited_for_are_seen() -> None:
    """Weights and tables are made by work that is given to no stream: the runner waits for it once,
    before its first step."""
    hostile_engine(hostile(order="eager")).close()
    device = hostile(order="eager")
    device.settle = lambda: None  # type: ignore[method-assign]
    with pytest.raises(KernelError, match="rotary tables 0 is read by compute's work"):
        hostile_engine(device)


def test_zeros_of_a_stream_are_zeros_behind_its_work() -> None:
    stream = hostile(order="lazy").stream("compute")
    made = stream.zeros(2, 3, dtype=torch.int32)
    assert bool((made != 0).all())
    stream.copy(made[0], torch.ones(3, dtype=torch.int32))
    stream.record().synchronize()
    assert made.tolist() == [[1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("name", ["copy-in before first read", "copy-out before reuse"])
@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
def test_a_copy_reported_too_early_is_a_race_under_every_schedule(name: str, policy: str) -> None:
    """By the clocks, also where the bytes came out right."""
    for device in (hostile(order="lazy"), hostile(order="eager"), hostile(seed=1)):
        assert play(PLANTS[name], device, policy=policy) == RaceError.__name__


@pytest.mark.parametrize("order", ["lazy", "eager", "random"])
def test_a_step_collected_too_early_is_seen_under_every_schedule(order: str) -> None:
    plant = PLANTS["write before copy-out"]
    played = play(plant, hostile(order=order))
    assert played == RaceError.__name__ if order == "eager" else played != "same"


def load_into_a_step_in_flight(device: HostileDevice, plant: Plant | None, **settings: Any) -> int:
    """Ada's two blocks come back into pages that a step in flight still uses: those that Bob, who
    was cancelled while it ran, held for his growth. Returns the digest of Ada's reply."""
    engine = hostile_engine(
        device, device_pages=10, host_pages=40, policy="lru-swap", max_num_seqs=2, **settings
    )
    ada, bob = engine.agent("ada"), engine.agent("bob")
    (first,), (second,) = prompts(1, 2 * BLOCK + 3), prompts(1, 7 * BLOCK, seed=1)

    def finish(call: Call) -> None:
        while not call.done:
            engine.step()

    finish(engine.submit(ada.request(first, max_tokens=2, ignore_eos=True)))
    call = engine.submit(bob.request(second, max_tokens=40, ignore_eos=True))
    while engine.parts.scheduler.num_waiting or engine.stats.steps < 12:
        engine.step()
    if plant is not None:
        plant(device)
    engine.cancel(call)
    again = engine.submit(ada.request([*first, 1, 2, 3], max_tokens=2, ignore_eos=True))
    finish(again)
    device.run_all()
    assert engine.parts.memory.counters.demand_loads > 0
    return again.result().digest


@pytest.mark.parametrize("order", ["lazy", "eager", "random"])
def test_a_load_waits_for_the_step_that_still_uses_its_pages(order: str) -> None:
    plant = PLANTS["last read before copy-in"]
    sound = load_into_a_step_in_flight(hostile(order=order), None)
    with pytest.raises(RaceError, match=r"device page \d+ is (read|written)"):
        load_into_a_step_in_flight(hostile(order=order), plant)
    seen = {
        load_into_a_step_in_flight(hostile(seed=seed, starved="compute"), plant, watch=False)
        for seed in range(6)
    }
    assert seen != {sound}  # and by the bytes alone, under some schedule


@pytest.mark.parametrize("name", [name for name in PLANTS if not name.startswith("last")])
def test_every_missing_wait_changes_texts_under_some_schedule(name: str) -> None:
    """By the bytes alone, as on a GPU: nobody watches the pages."""
    favoured = ("in", "compute", "out", "")
    devices = [hostile(order="lazy")]
    devices += [hostile(seed=seed, favoured=favoured[seed % 4]) for seed in range(8)]
    assert any(play(PLANTS[name], device, watch=False) != "same" for device in devices)


def entries_after(take: Callable[[StagingRing], Any] | None, monkeypatch: Any) -> torch.Tensor:
    """A table after 5 scatters through a ring of 2 buffers, on a device that runs when it must."""
    if take is not None:
        monkeypatch.setattr(StagingRing, "take", take)
    device = hostile(order="lazy")
    stream = device.stream("compute")
    table = DeviceTable(device, stream, 3, 8, num_buffers=2, capacity=2)
    table.apply(changes([1] * 5 + [2] * 5, [0, 1, 2, 3, 4] * 2, list(range(1, 11))))
    stream.record().synchronize()
    return table.entries.clone()


def changes(rows: list[int], cols: list[int], pages: list[int]) -> Any:
    from types import SimpleNamespace

    arrays = {"table_rows": rows, "table_cols": cols, "table_pages": pages}
    return SimpleNamespace(**{name: np.array(each, np.int32) for name, each in arrays.items()})


def test_a_staging_buffer_is_not_written_before_it_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = torch.zeros((3, 8), dtype=torch.int32)
    expected[1, :5], expected[2, :5] = torch.arange(1, 6), torch.arange(6, 11)
    assert torch.equal(entries_after(None, monkeypatch), expected)

    def take(ring: StagingRing) -> Any:
        for buffer in ring.buffers:
            buffer.fence = None
        return whole(ring)

    whole = StagingRing.take
    assert not torch.equal(entries_after(take, monkeypatch), expected)


def test_a_launch_that_fails_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fence knows of its half step, and memory that begins anew gives its pages away."""
    device = hostile(order="lazy")
    engine = hostile_engine(device, watch=False)

    def broken(step: int, event: Any) -> None:
        assert not event.reached
        raise RuntimeError("broken")

    monkeypatch.setattr(part(engine, Fences), "launched", broken)  # type: ignore[attr-defined]
    engine.submit(engine.agent("ada").request([1, 2, 3], max_tokens=2))
    with pytest.raises(RuntimeError, match="broken"):
        for _ in range(5):
            engine.step()
    assert device.stream("compute").is_idle


def test_closing_waits_for_the_copies() -> None:
    """Memory that the driver still copies to is not unregistered."""
    from scalesim.memory.links.link import Copies
    from tests.device.world import link_of

    device = hostile(order="lazy")
    engine = hostile_engine(device, watch=False)
    link = link_of(engine.parts)
    host = part(link, PinnedPages)
    at_close: list[bool] = []
    close = host.close

    def note() -> None:
        at_close.append(bool((host.pages[3] == 7).all()))
        close()

    host.close = note  # type: ignore[method-assign]
    link.device_pages[1] = 7
    link.submit(Copies("out", [1], [3]))
    engine.close()
    assert at_close == [True]
