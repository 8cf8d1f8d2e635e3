"""Adapters that are on no tier are read in time for who is known to come: not sooner, to the host
if it has room, and at no cost to what is needed before."""

from __future__ import annotations

import numpy as np
import pytest

from scalesim.core import Bytes2D
from scalesim.errors import AdapterError
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.leases.adapters import AdapterContent, adapter_spec
from scalesim.memory.links.link import PageSource
from scalesim.memory.manager import MemoryManager
from tests.memory.test_residency import PAGE, SIZE, manager, settle, tokens, turn

PAGES = 4


class Folder(PageSource):
    def read(self) -> Bytes2D:
        return np.zeros((PAGES, PAGE), np.uint8)


def with_adapter(memory: MemoryManager, agent: int, read_s: float | None = None) -> None:
    """``agent`` has an adapter of its own, which is on no tier. Reading takes twice as long as
    copying."""
    digest = bytes([agent]) * 16
    folder = Folder()
    folder.read_s = read_s
    memory.add_adapter(AdapterContent(digest, 0, PAGES, None, folder))
    memory.bind_adapter(agent, digest)


def at(memory: MemoryManager, time_s: float) -> None:
    """A step takes a second."""
    tick = float(int(time_s))
    memory.timing.now = tick
    memory.timing.tick_s = 1.0
    memory.plan(time_s)
    check_integrity(memory)


def call(memory: MemoryManager, agent: int) -> bool:
    """Whether a call finds its adapter on the device."""
    lease = memory.acquire(
        agent, tokens(agent, SIZE), 1, attachments=[adapter_spec(bytes([agent]) * 16, 0)]
    )
    assert lease is not None
    ready = lease.is_ready
    settle(memory)
    memory.release(lease)
    check_integrity(memory)
    return ready


def test_a_read_starts_when_its_window_opens() -> None:
    memory = manager(8, 8)
    with_adapter(memory, 0)
    memory.hint([(0, 5.0)])
    at(memory, 2.0)  # 0.8 s of reading and 0.4 of copying; the clock may move at once, and again
    assert memory.counters.read_ahead_pages == 0
    at(memory, 3.0)
    assert memory.counters.read_ahead_pages == PAGES
    assert memory.residency.transfers.filling_pages == PAGES
    settle(memory)
    segment = memory.adapters.segment(bytes(16))
    assert segment.host.valid == PAGES and not segment.device
    assert memory.residency.transfers.filling_pages == 0
    at(memory, 4.0)  # and then loaded, in time for its use
    settle(memory)
    assert call(memory, 0)
    assert memory.counters.read_pages == 0 and memory.counters.prefetch_used == PAGES
    assert memory.counters.demand_loads == 0


@pytest.mark.parametrize(("read_s", "begins_at"), [(0.0, 4.0), (None, 3.0), (1.6, 2.0), (2.6, 1.0)])
def test_a_read_that_takes_longer_by_what_its_kind_says_starts_sooner(
    read_s: float | None, begins_at: float
) -> None:
    memory = manager(8, 8)
    with_adapter(memory, 0, read_s)
    memory.hint([(0, 5.0)])
    for time_s in (1.0, 2.0, 3.0, 4.0):
        at(memory, time_s)
        assert bool(memory.counters.read_ahead_pages) == (time_s >= begins_at), time_s


def test_nobody_reads_ahead_for_who_is_not_expected() -> None:
    memory = manager(8, 8)
    with_adapter(memory, 0)
    at(memory, 3.6)
    assert memory.counters.read_ahead_pages == 0
    assert not call(memory, 0)
    assert memory.counters.read_pages == PAGES


def test_without_room_on_the_host_it_is_read_to_the_device() -> None:
    memory = manager(8, 0)
    with_adapter(memory, 0)
    memory.hint([(0, 5.0)])
    at(memory, 4.5)
    settle(memory)
    assert memory.counters.read_ahead_pages == PAGES and memory.residency.host.num_usable == 0
    assert call(memory, 0) and memory.counters.demand_loads == 0


@pytest.mark.parametrize(("theirs", "read"), [(4.2, 0), (9.0, PAGES)])
def test_only_what_is_used_later_gives_way(theirs: float, read: int) -> None:
    """Another agent's text takes the whole host pool, and the device holds nothing but what is
    used soon."""
    memory = manager(6, 5)
    turn(memory, 1, 5)
    memory.hint([(1, theirs)])
    turn(memory, 2, 5)  # sends it to the host
    memory.hint([(2, 4.1)])
    with_adapter(memory, 0)
    memory.hint([(0, 5.0)])
    at(memory, 4.0)
    settle(memory)
    assert memory.counters.read_ahead_pages == read


def test_several_reads_are_started_early_enough_for_the_last() -> None:
    """They follow each other on one thread."""
    memory = manager(20, 20)
    for agent in range(3):
        with_adapter(memory, agent)
        memory.hint([(agent, 6.0)])
    at(memory, 3.0)  # alone, each would start 1.2 s before its use
    assert memory.counters.read_ahead_pages == 0
    at(memory, 4.0)
    assert memory.counters.read_ahead_pages == 3 * PAGES


def test_a_folder_that_is_gone_is_tried_a_few_times_each_time_a_next_use_is_told() -> None:
    memory = manager(8, 8)
    with_adapter(memory, 0)
    segment = memory.adapters.segment(bytes(16))
    for told in range(1, 3):
        memory.hint([(0, 10.0 * told)])
        for step in range(8):
            at(memory, 10.0 * told - 1.0 + 0.1 * step)
            for transfer in list(memory.residency.transfers.values()):
                transfer.error = AdapterError("the folder is gone")
            settle(memory)
            assert not segment.host
        assert memory.counters.read_ahead_pages == 3 * told * PAGES
        assert memory.counters.failed_transfers == 3 * told
    memory.hint([(0, 30.0)])
    at(memory, 29.9)
    settle(memory)
    assert len(segment.host) == PAGES


def test_what_was_read_and_evicted_from_both_tiers_is_read_again() -> None:
    memory = manager(8, 8)
    with_adapter(memory, 0)
    memory.hint([(0, 3.0)])
    at(memory, 2.9)
    settle(memory)
    memory.clear()
    assert not memory.adapters.segment(bytes(16)).host
    at(memory, 2.95)
    settle(memory)
    assert memory.counters.read_ahead_pages == 2 * PAGES
