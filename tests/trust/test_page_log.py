"""The page event log: the last page events, in order, bounded, and readable."""

from __future__ import annotations

import numpy as np

from scalesim.errors import ScaleSimError
from scalesim.memory.links.link import Copies, Timeline
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.memory.page_log import NUM_EVENTS, LoggedLink, LoggedPool, PageEventLog
from scalesim.testing.hostile_link import HostileLink
from tests.trust.workload import Workload


def test_the_dump_tells_a_pages_story() -> None:
    log = PageEventLog()
    device = LoggedPool(9, first=1, tier="device", log=log)
    host = LoggedPool(4, tier="host", log=log)
    link = LoggedLink(VirtualLink(64, 1e6), log)
    pages, copies = device.allocate(3), host.allocate(3)
    assert pages is not None and copies is not None and device.allocate(9) is None
    (ticket,) = link.submit(Copies("out", pages, copies))
    assert link.wait(1.0) and link.poll() == [(ticket, None)]
    log.step(7)
    device.free(pages, 7)
    assert log.dump().splitlines() == [
        "taken: device 6-8",
        "taken: host 1-3",
        f"copy out {ticket}: device 6-8, host 1-3",
        f"copy ended {ticket}",
        "step 7",
        "freed 7: device 6-8",
    ]
    assert log.about(7, "device") == [line for line in log.dump().splitlines()
                                         if "device" in line]  # fmt: skip
    assert log.about(1, "host") == [
        "taken: host 1-3",
        f"copy out {ticket}: device 6-8, host 1-3",
    ]


def test_the_ring_is_bounded() -> None:
    log = PageEventLog()
    for step in range(NUM_EVENTS + 10):
        log.step(step)
    lines = log.dump().splitlines()
    assert len(log) == len(lines) == NUM_EVENTS and lines[0] == "step 10"
    assert log.dump(last=1) == f"step {NUM_EVENTS + 9}"


def test_failed_and_cancelled_copies_are_told() -> None:
    log = PageEventLog()
    pages = np.zeros((8, 64), np.uint8)
    hostile = HostileLink(pages, pages.copy(), Timeline())
    hostile.failures = 1
    link = LoggedLink(hostile, log)
    first, second = (link.submit(Copies("in", [page], [page]))[0] for page in (1, 2))
    while not any(failed := [error for _, error in link.poll()]):
        hostile.step()
    assert isinstance(failed[0], ScaleSimError)
    rest = {1: first, 2: second}
    for page, ticket in rest.items():
        if link.cancel(ticket):
            assert f"copy cancelled {ticket}" in log.dump()
            assert link.cancel_all(0.1) == (set(), set(), set())
        else:
            assert f"device {page}" in log.dump()
    assert "copy failed" in log.dump() and "was told to fail" in log.dump()


def test_an_engine_records_its_pages() -> None:
    with Workload() as workload:
        workload.play()
    log = workload.engine.parts.memory.page_log
    assert log is not None
    text = log.dump()
    for event in ("step ", "taken: device", "taken: host", "freed ", "copy in", "copy out"):
        assert event in text, event
