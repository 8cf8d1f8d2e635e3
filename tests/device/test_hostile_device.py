"""The hostile device itself: order within a stream, legal disorder between two, races seen."""

from __future__ import annotations

import pytest
import torch

from tests.device.hostile_device import RaceError
from tests.device.world import hostile


@pytest.mark.parametrize("order", ["eager", "lazy", "random"])
def test_a_stream_runs_in_order_and_events_order_two(order: str) -> None:
    for seed in range(10):
        device, ran = hostile(order=order, seed=seed), list[str]()
        first, second = device.stream("a"), device.stream("b")
        first.submit(lambda ran=ran: ran.append("a1"))
        first.submit(lambda ran=ran: ran.append("a2"))
        second.submit(lambda ran=ran: ran.append("b1"))
        second.wait(first.record())
        second.submit(lambda ran=ran: ran.append("b2"))
        second.record().synchronize()
        assert ran.index("a1") < ran.index("a2") < ran.index("b2")
        assert ran.index("b1") < ran.index("b2")


def test_streams_overtake_each_other_and_lazy_ones_run_only_what_is_needed() -> None:
    orders = set()
    for seed in range(20):
        device, ran = hostile(seed=seed), list[str]()
        for name in "ab":
            device.stream(name).submit(lambda name=name, ran=ran: ran.append(name))
        device.run_all()
        orders.add("".join(ran))
    assert orders == {"ab", "ba"}
    device, ran = hostile(order="lazy"), []
    for name in "ab":
        device.stream(name).submit(lambda name=name: ran.append(name))
    device.stream("b").record().synchronize()
    assert ran == ["b"]


def test_bytes_are_read_when_a_copy_runs_over_a_scribbled_destination() -> None:
    device = hostile(order="lazy")
    source, target = torch.zeros(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)
    stream = device.stream("a")
    stream.copy(target, source)
    source.fill_(7)
    device.pause()
    assert target.tolist() == [0xA5] * 4
    stream.record().synchronize()
    assert target.tolist() == [7] * 4


@pytest.mark.parametrize("how", ["nothing", "event", "host", "same stream"])
@pytest.mark.parametrize("order", ["eager", "lazy"])
def test_unordered_accesses_are_races_whatever_came_first(order: str, how: str) -> None:
    device = hostile(order=order)
    memory = torch.zeros(64, dtype=torch.uint8)
    device.watch("memory", memory, 16)
    writer = device.stream("a")
    reader = writer if how == "same stream" else device.stream("b")
    writer.copy(memory[:32], torch.ones(32, dtype=torch.uint8))
    if how == "event":
        reader.wait(writer.record())
    if how == "host":
        writer.record().synchronize()
    target = torch.zeros(16, dtype=torch.uint8)

    def read() -> None:
        reader.copy(target, memory[16:32])
        reader.record().synchronize()
        writer.record().synchronize()

    if how == "nothing":
        with pytest.raises(RaceError, match=r"memory 1 is (read|written) by"):
            read()
    else:
        read()


def test_two_readers_and_two_places_are_no_race() -> None:
    device = hostile(order="eager")
    memory, target = torch.zeros(64, dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)
    device.watch("memory", memory, 16)
    for name in "ab":
        device.stream(name).copy(target, memory[:16])
    device.stream("c").copy(memory[16:32], target)
    device.stream("d").copy(memory[32:48], target)


def test_a_reader_that_the_writer_does_not_know_of_is_a_race() -> None:
    device = hostile(order="eager")
    memory, target = torch.zeros(16, dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)
    device.watch("memory", memory, 16)
    device.stream("a").copy(target, memory)
    with pytest.raises(RaceError, match="was read by a"):
        device.stream("b").copy(memory, target)


def test_a_host_that_writes_what_a_copy_given_before_reads_is_a_race() -> None:
    """Also where the copy has not run yet; what the host wrote before it gave the copy is none."""
    device = hostile(order="lazy")
    memory, target = torch.zeros(16, dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)
    device.watch("memory", memory, 16)
    device.touch("memory", [0], is_write=True)
    device.stream("a").copy(target, memory)
    device.run_all()
    device.stream("a").record().synchronize()
    device.stream("a").copy(target, memory)
    device.touch("memory", [0], is_write=True)
    with pytest.raises(RaceError, match=r"is read by a's work .* written by host's work number 2"):
        device.run_all()
