"""Reads from sources: on a thread of their own, in order, behind fences, and their errors told."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from scalesim.core import Bytes2D, Fence
from scalesim.errors import AdapterError
from scalesim.memory.links import Copies, Held, ThreadLink, Timeline, VirtualLink
from scalesim.memory.source_link import SourceLink
from scalesim.memory.storage import writer
from tests.memory.test_links import PAGE, drain, pools


@dataclass
class Gate:
    """A source that waits until it is opened, and says that it was asked."""

    pages: Bytes2D
    open: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)

    def read(self) -> Bytes2D:
        self.asked.set()
        assert self.open.wait(10.0)
        return self.pages


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self) -> Bytes2D:
        raise self.error


def source_link(device: Bytes2D, host: Bytes2D, timeline: Timeline | None = None) -> SourceLink:
    timeline = timeline or Timeline()
    link = ThreadLink(device, host, timeline)
    return SourceLink(link, writer(device), writer(host), timeline)


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
    (fill,) = link.submit(Copies("out", [], [3, 4], Held(rows(2, 9))))
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


@pytest.mark.parametrize("error", [AdapterError("it is gone"), OSError("disk")])
def test_errors_end_their_ticket_only(error: Exception) -> None:
    device, host = pools()
    link = source_link(device, host)
    bad = link.submit(Copies("in", [1], [], Broken(error)))
    good = link.submit(Copies("in", [2], [], Held(rows(1, 5))))
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
    (fourth,) = link.submit(Copies("in", [4], [], Held(rows(1, 4))))
    assert link.cancel(fourth) and not link.cancel(fourth) and not link.cancel(first)
    gate.open.set()
    assert soon.asked.wait(10.0) and not late.asked.is_set()
    soon.open.set()
    late.open.set()
    assert drain(link, 3).keys() == {first, second, third}  # type: ignore[arg-type]
    assert not link.wait(0.0)
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
    link = VirtualLink(PAGE, bytes_per_s=PAGE, pools=(device, host))
    link.submit(Copies("in", [1, 2], [], Held(rows(3, 8)), first=1))
    link.submit(Copies("out", [], [0], Held(rows(1, 6))))
    assert link.wait(10.0) and link.now_s == 1.0
    assert link.wait(10.0)
    link.advance_to(2.0)
    assert (device[1:3] == 8).all() and (host[0] == 6).all()
