"""Reads from sources: on a thread of their own, in order, through bounce pages, behind fences, and
their errors told."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.core import Bytes2D, Fence
from scalesim.errors import AdapterError
from scalesim.memory.links.link import Copies, InMemorySource, LinkError, PageSource, Timeline
from scalesim.memory.links.source_link import FAR_READS, SourceLink
from scalesim.memory.links.thread_link import ThreadLink
from scalesim.memory.pools.storage import writer
from scalesim.testing.hostile_link import HostileLink
from tests.memory.copying_link import CopyingLink
from tests.memory.test_links import PAGE, drain
from tests.memory.test_links import pools as link_pools

HOST = 12


@dataclass
class Gate(PageSource):
    """A source that waits until it is opened, and says that it was asked."""

    pages: Bytes2D
    open: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)

    def read(self) -> Bytes2D:
        self.asked.set()
        assert self.open.wait(10.0)
        return self.pages


@dataclass
class FarGate(Gate):
    """A ``Gate`` on another machine."""

    is_far = True


class Broken(PageSource):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self) -> Bytes2D:
        raise self.error


def source_link(device: Bytes2D, host: Bytes2D, timeline: Timeline | None = None) -> SourceLink:
    link = ThreadLink(device, host, timeline or Timeline())
    return SourceLink(link, writer(host), range(HOST, len(host)))


def pools() -> tuple[Bytes2D, Bytes2D]:
    """The host pool has ``HOST`` pages of its own, and two to bounce off."""
    device, host = link_pools(HOST)
    return device, np.concatenate([host, np.full((2, PAGE), 0xEE, np.uint8)])


def rows(count: int, value: int) -> Bytes2D:
    return np.full((count, PAGE), value, np.uint8)


def test_reads_go_to_either_pool_and_copies_do_not_wait_for_them() -> None:
    device, host = pools()
    link = source_link(device, host)
    gate = Gate(np.stack([np.full(PAGE, 10 + i, np.uint8) for i in range(4)]))
    (read,) = link.submit(Copies("in", [5, 2], [], gate, first=1))
    assert gate.asked.wait(10.0) and link.poll() == [] and read < 0
    (copy,) = link.submit(Copies("in", [0], [7]))  # a read is under way all the while
    assert drain(link, 1) == {copy: None}  # type: ignore[arg-type]
    gate.open.set()
    assert drain(link, 1) == {read: None}  # type: ignore[arg-type]
    assert (device[5] == 11).all() and (device[2] == 12).all()
    (fill,) = link.submit(Copies("out", [], [3, 4], InMemorySource(rows(2, 9))))
    assert drain(link, 1) == {fill: None}  # type: ignore[arg-type]
    assert (host[3:5] == 9).all()
    link.close()


def test_a_read_waits_for_the_fence_of_its_pages() -> None:
    device, host = pools()
    timeline = Timeline()
    link = source_link(device, host, timeline)
    gate = Gate(rows(1, 1))
    gate.open.set()
    (ticket,) = link.submit(Copies("in", [2], [], gate), Fence("compute", 3))
    assert gate.asked.wait(10.0)
    device[2] = 77  # a launched step still writes it
    assert link.poll() == [] and (device[2] == 77).all()
    timeline.reach(3)
    assert drain(link, 1) == {ticket: None}  # type: ignore[arg-type]
    assert (device[2] == 1).all()
    link.close()


@pytest.mark.parametrize("far", [False, True])
def test_closing_leaves_a_source_behind_that_does_not_answer(
    far: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalesim.memory.links.source_link.CLOSE_S", 0.0)
    device, host = pools()
    others = set(threading.enumerate())
    link = source_link(device, host)
    gate = (FarGate if far else Gate)(rows(1, 1))
    before = host.copy()
    link.submit(Copies("out", [], [3], gate))
    assert gate.asked.wait(10.0)
    link.close()
    [left] = set(threading.enumerate()) - others
    gate.open.set()
    left.join(10.0)
    assert not left.is_alive() and (host == before).all()


@pytest.mark.parametrize("error", [AdapterError("it is gone"), OSError("disk")])
def test_errors_end_their_ticket_only(error: Exception) -> None:
    device, host = pools()
    link = source_link(device, host)
    bad = link.submit(Copies("in", [1], [], Broken(error)))
    good = link.submit(Copies("in", [2], [], InMemorySource(rows(1, 5))))
    ended = drain(link, 2)  # type: ignore[arg-type]
    assert isinstance(ended[bad[0]], AdapterError) and ended[good[0]] is None
    assert (device[2] == 5).all()
    link.close()


def test_what_has_not_started_can_be_called_back_and_urgent_reads_overtake() -> None:
    device, host = pools()
    link = source_link(device, host)
    gate = Gate(rows(1, 1))
    (first,) = link.submit(Copies("in", [1], [], gate))
    assert gate.asked.wait(10.0)
    late, soon = Gate(rows(1, 2)), Gate(rows(1, 3))
    (second,) = link.submit(Copies("in", [2], [], late))
    (third,) = link.submit(Copies("in", [3], [], soon), urgent=True)
    (fourth,) = link.submit(Copies("in", [4], [], InMemorySource(rows(1, 4))))
    assert link.cancel(fourth) and not link.cancel(fourth) and not link.cancel(first)
    gate.open.set()
    assert soon.asked.wait(10.0) and not late.asked.is_set()
    soon.open.set()
    late.open.set()
    assert drain(link, 3).keys() == {first, second, third}  # type: ignore[arg-type]
    assert not link.wait(0.0)
    link.close()


def test_a_read_larger_than_the_bounce_pages_goes_through_them_in_parts() -> None:
    device, host = pools()
    link = source_link(device, host)
    whole = np.stack([np.full(PAGE, 100 + i, np.uint8) for i in range(10)])
    (read,) = link.submit(Copies("in", [9, 0, 3, 1, 7, 6, 11], [], InMemorySource(whole), first=2))
    (other,) = link.submit(Copies("in", [2, 4, 5], [], InMemorySource(whole)))
    assert drain(link, 2) == {read: None, other: None}  # type: ignore[arg-type]
    assert device[[9, 0, 3, 1, 7, 6, 11], 0].tolist() == list(range(102, 109))
    assert device[[2, 4, 5], 0].tolist() == [100, 101, 102]
    link.close()


def test_who_waits_for_one_source_shares_one_read_of_it() -> None:
    """A call that comes while its adapter is read ahead does not read it again."""
    device, host = pools()
    link = source_link(device, host)
    gate, reads = Gate(rows(3, 4)), []
    read = gate.read
    gate.read = lambda: (reads.append(1), read())[1]  # type: ignore[method-assign]
    (ahead,) = link.submit(Copies("out", [], [0, 1, 2], gate))
    assert gate.asked.wait(10.0)
    (demand,) = link.submit(Copies("in", [5, 6], [], gate, first=1), urgent=True)
    gate.open.set()
    assert drain(link, 2) == {ahead: None, demand: None}  # type: ignore[arg-type]
    assert (device[5:7] == 4).all() and (host[:3] == 4).all() and reads == [1]
    assert link.read_rate != SourceLink(link.link, writer(host), []).read_rate
    link.close()


class Flaky(ThreadLink):
    """Fails the copy into ``bad``."""

    bad = -1

    def copy(self, copies: Copies) -> None:
        if self.bad in copies.device_pages:
            raise OSError("a bus error")
        super().copy(copies)


def test_a_part_that_is_not_copied_fails_its_read_and_gives_its_pages_back() -> None:
    device, host = pools()
    inner = Flaky(device, host, Timeline())
    link = SourceLink(inner, writer(host), range(HOST, HOST + 2))
    inner.bad = 4
    (bad,) = link.submit(Copies("in", [0, 1, 2, 3, 4, 5, 6], [], InMemorySource(rows(7, 1))))
    (good,) = link.submit(Copies("in", [7, 8, 9, 10], [], InMemorySource(rows(4, 2))))
    ended = drain(link, 2)  # type: ignore[arg-type]
    assert isinstance(ended[bad], LinkError) and ended[good] is None
    assert (device[7:11] == 2).all() and sorted(link.bounce) == [HOST, HOST + 1]
    link.close()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.booleans()), max_size=8),
       st.integers(0, 99), st.integers(1, 3))  # fmt: skip
def test_any_order_of_completions_gives_the_bytes(
    jobs: list[tuple[bool, int, bool]], seed: int, num_bounce: int
) -> None:
    """Reads to the device and to the host, of any lengths, on a link that copies and reports as
    late and in as bad an order as it may: each page gets its own bytes, none twice."""
    device, host = np.zeros((40, PAGE), np.uint8), np.zeros((40 + num_bounce, PAGE), np.uint8)
    inner = HostileLink(device, host, Timeline(), seed=seed)
    link = SourceLink(inner, writer(host), range(40, 40 + num_bounce), threaded=False)
    expected, used, tickets = {}, 0, set()
    for index, (inward, count, urgent) in enumerate(jobs):
        pages = list(range(used, used + count))
        used += count
        source = InMemorySource(np.full((count, PAGE), index + 1, np.uint8))
        copies = Copies("in", pages, [], source) if inward else Copies("out", [], pages, source)
        tickets |= set(link.submit(copies, urgent=urgent))
        expected[index] = (device if inward else host, pages)
    ended: set[int] = set()
    while ended != tickets:
        assert link.wait(1.0)
        for ticket, error in link.poll():
            assert error is None and ticket not in ended
            ended.add(ticket)
            pool, pages = expected[-ticket - 1]
            assert (pool[pages] == -ticket).all()
    assert not link.wait(0.0) and len(link.bounce) == num_bounce


def test_far_sources_are_read_side_by_side_and_near_ones_do_not_wait_for_them() -> None:
    device, host = pools()
    link = source_link(device, host)
    gates = [FarGate(rows(1, index)) for index in range(FAR_READS + 1)]
    far = [link.submit(Copies("out", [], [index], gate))[0] for index, gate in enumerate(gates)]
    assert all(gate.asked.wait(10.0) for gate in gates[:-1]) and not gates[-1].asked.is_set()
    (near,) = link.submit(Copies("in", [3], [], InMemorySource(rows(1, 77))))
    assert drain(link, 1) == {near: None} and (device[3] == 77).all()  # type: ignore[arg-type]
    gates[2].open.set()
    assert gates[-1].asked.wait(10.0) and drain(link, 1) == {far[2]: None}  # type: ignore[arg-type]
    for gate in gates:
        gate.open.set()
    assert drain(link, FAR_READS).keys() == set(far) - {far[2]}  # type: ignore[arg-type]
    assert [int(host[index, 0]) for index in range(len(gates))] == list(range(len(gates)))
    link.close()


def test_closing_does_not_wait_for_a_fence_that_never_comes() -> None:
    device, host = pools()
    link = source_link(device, host)
    gate = Gate(rows(1, 1))
    gate.open.set()
    link.submit(Copies("in", [1], [], gate), Fence("compute", 9))
    assert gate.asked.wait(10.0)
    link.close()


def test_virtual_link_takes_sources_too() -> None:
    device, host = pools()
    link = CopyingLink(device, host, bytes_per_s=PAGE)
    link.submit(Copies("in", [1, 2], [], InMemorySource(rows(3, 8)), first=1))
    link.submit(Copies("out", [], [0], InMemorySource(rows(1, 6))))
    assert link.wait(10.0) and link.now_s == 1.0
    assert link.wait(10.0)
    link.advance_to(2.0)
    assert (device[1:3] == 8).all() and (host[0] == 6).all()
