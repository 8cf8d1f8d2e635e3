"""The flight recorder: the last page events, in order, bounded, and readable."""

from __future__ import annotations

import numpy as np

from scalesim.errors import ScaleSimError
from scalesim.memory.links.link import Copies, Timeline
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.memory.page_log import NUM_EVENTS, LoggedLink, LoggedPool, PageEventLog
from scalesim.testing.hostile_link import HostileLink
from tests.trust.workload import Workload


def test_the_dump_tells_a_pages_story() -> None:
    flight = PageEventLog()
    device = LoggedPool(9, first=1, tier="device", flight=flight)
    host = LoggedPool(4, tier="host", flight=flight)
    link = LoggedLink(VirtualLink(64, 1e6), flight)
    pages, copies = device.allocate(3), host.allocate(3)
    assert pages is not None and copies is not None and device.allocate(9) is None
    (ticket,) = link.submit(Copies("out", pages, copies))
    assert link.wait(1.0) and link.poll() == [(ticket, None)]
    flight.step(7)
    device.free(pages, 7)
    assert flight.dump().splitlines() == [
        "taken: device 6-8",
        "taken: host 1-3",
        f"copy out {ticket}: device 6-8, host 1-3",
        f"copy ended {ticket}",
        "step 7",
        "freed 7: device 6-8",
    ]
    assert flight.about(7, "device") == [line for line in flight.dump().splitlines()
                                         if "device" in line]  # fmt: skip
    assert flight.about(1, "host") == [
        "taken: host 1-3",
        f"copy out {ticket}: device 6-8, host 1-3",
    ]


def test_the_ring_is_bounded() -> None:
    flight = PageEventLog()
    for step in range(NUM_EVENTS + 10):
        flight.step(step)
    lines = flight.dump().splitlines()
    assert len(flight) == len(lines) == NUM_EVENTS and lines[0] == "step 10"
    assert flight.dump(last=1) == f"step {NUM_EVENTS + 9}"


def test_failed_and_cancelled_copies_are_told() -> None:
    flight = PageEventLog()
    pages = np.zeros((8, 64), np.uint8)
    hostile = HostileLink(pages, pages.copy(), Timeline())
    hostile.failures = 1
    link = LoggedLink(hostile, flight)
    first, second = (link.submit(Copies("in", [page], [page]))[0] for page in (1, 2))
    while not any(failed := [error for _, error in link.poll()]):
        hostile.step()
    assert isinstance(failed[0], ScaleSimError)
    rest = {1: first, 2: second}
    for page, ticket in rest.items():
        if link.cancel(ticket):
            assert f"copy cancelled {ticket}" in flight.dump()
            assert link.abandon(0.1) == (set(), set())
        else:
            assert f"device {page}" in flight.dump()
    assert "copy failed" in flight.dump() and "was told to fail" in flight.dump()


def test_an_engine_records_its_pages() -> None:
    with Workload() as workload:
        workload.play()
    flight = workload.engine.parts.memory.flight
    assert flight is not None
    text = flight.dump()
    for event in ("step ", "taken: device", "taken: host", "freed ", "copy in", "copy out"):
        assert event in text, event
