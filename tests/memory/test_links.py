"""Links: copies are asynchronous and right, fences are waited for, tickets end once, virtual time
is exact."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from scalesim.core import Bytes2D, Fence
from scalesim.memory.links import copy_threads
from scalesim.memory.links import link as links
from scalesim.memory.links.blocking_link import BlockingLink
from scalesim.memory.links.link import Copies, LinkAround, LinkError, Timeline, innermost
from scalesim.memory.links.thread_link import ThreadLink
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.testing.hostile_link import HostileLink
from tests.memory.copying_link import CopyingLink

PAGE = 64


def pools(pages: int = 8) -> tuple[Bytes2D, Bytes2D]:
    device = np.arange(pages * PAGE, dtype=np.uint32).astype(np.uint8).reshape(pages, PAGE)
    return device.copy(), (device ^ 0xFF).copy()


def test_pieces_are_consecutive_on_both_sides() -> None:
    assert Copies("in", [1, 2, 3, 7], [5, 6, 9, 10]).pieces() == [(1, 5, 2), (3, 9, 1), (7, 10, 1)]


def drain(link: ThreadLink, count: int) -> dict[int, Exception | None]:
    ended: dict[int, Exception | None] = {}
    while len(ended) < count:
        assert link.wait(10.0), f"{len(ended)} of {count} copies ended"
        ended |= dict(link.poll())
    return ended


def test_thread_link_copies_both_ways() -> None:
    device, host = pools()
    before = device.copy(), host.copy()
    link = ThreadLink(device, host, Timeline())
    tickets = link.submit(Copies("in", [0, 1], [4, 5])) + link.submit(Copies("out", [6], [0]))
    assert drain(link, 2) == dict.fromkeys(tickets)
    assert (device[:2] == before[1][4:6]).all() and (host[0] == before[0][6]).all()
    assert link.queued_bytes("in") == link.queued_bytes("out") == 0 and link.poll() == []
    link.close()


def test_a_paced_link_takes_the_time_that_its_bytes_cost() -> None:
    """Its rate is measured with the pace, and so never above it; contents are as ever."""
    device, host = pools()
    bandwidth = 200.0 * PAGE
    link = ThreadLink(device, host, Timeline(), bandwidth)
    tickets = link.submit(Copies("in", [0, 1], [4, 5]))
    start_s = time.perf_counter()
    tickets += link.submit(Copies("in", [2], [6])) + link.submit(Copies("out", [6], [0]))
    assert drain(link, 3) == dict.fromkeys(tickets)
    assert time.perf_counter() - start_s > 1 / 200.0  # the third page's share, at the least
    assert (device[:3] == host[4:7]).all() and (host[0] == device[6]).all()
    assert max(link.rate("in"), link.rate("out")) <= bandwidth * (1.0 + 1e-9)
    link.close()


def test_a_paced_link_closes_in_the_middle_of_a_wait() -> None:
    device, host = pools()
    link = ThreadLink(device, host, Timeline(), bandwidth=1e-3)  # a page takes days
    link.submit(Copies("in", [0], [4]))
    link.submit(Copies("out", [1], [5]))
    link.close()
    assert link.queued_bytes("in") in (0, PAGE)  # begun or not


def test_a_pause_is_no_time_for_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was submitted meanwhile does not begin, what had begun takes its whole time after it,
    and the rate is that of a link without the pause."""
    now = [0.0]
    monkeypatch.setattr(copy_threads.time, "perf_counter", lambda: now[0])
    device, host = pools()
    bandwidth = PAGE / 10.0  # a page takes ten seconds of ``now``
    link = ThreadLink(device, host, Timeline(), bandwidth)
    (begun,) = link.submit(Copies("in", [0], [4]))
    while not (device[0] == host[4]).all():  # copied, and waiting for its time to be over
        assert link.poll() == []
    link.pause()
    link.pause()
    (later,) = link.submit(Copies("in", [1], [5]))
    now[0] += 100.0
    assert not link.wait(0.05) and link.queued_bytes("in") == 2 * PAGE
    link.resume()
    link.resume()  # changes nothing
    assert not link.wait(0.05) and not (device[1] == host[5]).all()
    for ticket in (begun, later):
        while not (device[ticket - 1] == host[ticket + 3]).all():
            assert link.poll() == []
        now[0] += 10.0
        link.pause()
        link.resume()  # looks at the clock again
        assert drain(link, 1) == {ticket: None}
    assert link.rate("in") == pytest.approx(bandwidth)
    link.close()


def test_a_paced_link_loses_no_time_to_a_thread_that_wakes_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copies follow one another by their bytes. What an idle link is given has its time from then
    on, and the rate is that of a thread that wakes at once."""
    now, has_copied, waits = [0.0], [False], threading.Event()

    def clock() -> float:
        if has_copied[0] and threading.current_thread().name == "scalesim-in":
            waits.set()
        return now[0]

    class Tells(ThreadLink):
        def copy(self, copies: Copies) -> None:
            super().copy(copies)
            has_copied[0] = True

    def wake(at_s: float) -> None:
        now[0] = at_s
        link.pause()
        link.resume()  # looks at the clock again

    monkeypatch.setattr(copy_threads.time, "perf_counter", clock)
    device, host = pools()
    link = Tells(device, host, Timeline(), bandwidth=PAGE / 10.0)
    tickets = [link.submit(Copies("in", [page], [page + 4]))[0] for page in range(3)]
    assert waits.wait(10.0)  # it knows when the first copy ends
    wake(25.0)
    assert drain(link, 2) == dict.fromkeys(tickets[:2])
    wake(29.0)
    assert not link.wait(0.05)
    wake(30.0)
    assert drain(link, 1) == {tickets[2]: None}
    now[0], has_copied[0] = 100.0, False
    waits.clear()
    (later,) = link.submit(Copies("in", [3], [7]))
    assert waits.wait(10.0)
    wake(109.0)
    assert not link.wait(0.05)
    wake(110.0)
    assert drain(link, 1) == {later: None}
    assert link.rate("in") == pytest.approx(PAGE / 10.0)
    link.close()


@pytest.mark.parametrize("bandwidth", [None, 1e12])
def test_a_paused_link_ends_no_copy_whose_time_was_over(bandwidth: float | None) -> None:
    """The pause comes when all of the copy's bytes have had their time, and its end is not told."""

    stands = threading.Event()

    class PausesItself(ThreadLink):
        def copy(self, copies: Copies) -> None:
            super().copy(copies)
            self.pause()
            stands.set()

    device, host = pools()
    link = PausesItself(device, host, Timeline(), bandwidth)
    (ticket,) = link.submit(Copies("in", [0], [4]))
    assert stands.wait(10.0)
    assert not link.wait(0.05) and link.queued_bytes("in") == PAGE
    link.resume()
    assert drain(link, 1) == {ticket: None} and link.queued_bytes("in") == 0
    link.close()


def test_a_paused_link_closes() -> None:
    device, host = pools()
    link = ThreadLink(device, host, Timeline(), bandwidth=1e-3)
    link.submit(Copies("in", [0], [4]))
    link.pause()
    link.submit(Copies("out", [1], [5]))
    link.close()
    assert link.queued_bytes("out") == PAGE


def test_the_innermost_link_is_the_one_that_copies() -> None:
    link = VirtualLink(PAGE, 1.0)
    assert innermost(link) is innermost(BlockingLink(LinkAround(link))) is link


def test_thread_link_waits_for_the_fence_and_nobody_waits_for_it() -> None:
    """The caller goes on while a copy waits for a step; bytes are read when it is reached."""
    device, host = pools()
    timeline = Timeline()
    link = ThreadLink(device, host, timeline)
    (ticket,) = link.submit(Copies("in", [2], [3]), Fence("compute", 5))
    (other,) = link.submit(Copies("out", [0], [7]))  # the other direction is not held up
    assert drain(link, 1) == {other: None}
    timeline.reach(4)
    device[2] = 1  # a launched step still writes the page
    host[3] = 9
    assert link.poll() == [] and link.queued_bytes("in") == PAGE
    timeline.reach(5)
    assert drain(link, 1) == {ticket: None}
    assert (device[2] == 9).all()
    link.close()


def test_thread_link_cancels_only_what_has_not_started() -> None:
    device, host = pools()
    timeline, started = Timeline(), threading.Event()
    wait = timeline.wait

    def tell(fence: Fence, timeout_s: float) -> bool:
        started.set()
        return wait(fence, timeout_s)

    timeline.wait = tell  # type: ignore[method-assign]
    link = ThreadLink(device, host, timeline)
    (first,) = link.submit(Copies("in", [0], [0]), Fence("compute", 0))
    assert started.wait(10.0)
    (second,) = link.submit(Copies("in", [1], [1]))
    (third,) = link.submit(Copies("in", [2], [2]), urgent=True)
    untouched = device[1].copy()
    assert not link.cancel(first) and link.cancel(second) and not link.cancel(second)
    timeline.reach(0)
    ended = [ticket for _ in range(2) if link.wait(10.0) for ticket, _ in link.poll()]
    while len(ended) < 2 and link.wait(10.0):
        ended += [ticket for ticket, _ in link.poll()]
    assert ended == [first, third] and (device[1] == untouched).all()
    link.close()


def test_thread_link_reports_a_failed_copy() -> None:
    device, host = pools()
    link = ThreadLink(device, host, Timeline())
    (ticket,) = link.submit(Copies("in", [0], [99]))
    error = drain(link, 1)[ticket]
    assert isinstance(error, LinkError) and error.__cause__ is not None
    (good,) = link.submit(Copies("in", [0], [1]))
    assert drain(link, 1) == {good: None}
    link.close()


def test_chunks_are_a_ticket_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_CHUNK_BYTES", 2 * PAGE)
    device, host = pools()
    link = ThreadLink(device, host, Timeline())
    tickets = link.submit(Copies("in", [0, 1, 2, 3, 4], [3, 4, 5, 6, 7]))
    assert len(tickets) == 3 and drain(link, 3) == dict.fromkeys(tickets)
    assert (device[:5] == host[3:8]).all()
    link.close()


def test_virtual_times_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_CHUNK_BYTES", 2 * PAGE)
    device, host = pools()
    link = CopyingLink(device, host, PAGE * 10.0)
    first, second = link.submit(Copies("in", [0, 1, 2], [0, 1, 2]))  # 0.2, then 0.1
    (urgent,) = link.submit(Copies("in", [5], [5]), urgent=True)
    (out,) = link.submit(Copies("out", [7], [7]))  # its own direction: 0.1
    assert link.queued_bytes("in") == 4 * PAGE
    times = []
    while link.wait(10.0):
        times += [(round(link.now_s, 9), ticket) for ticket, _ in link.poll()]
    assert times == [(0.1, out), (0.2, first), (0.3, urgent), (0.4, second)]
    assert (device[[0, 1, 2, 5]] == host[[0, 1, 2, 5]]).all()


def test_virtual_wait_runs_on_to_the_next_completion_at_most() -> None:
    link = VirtualLink(PAGE, PAGE * 1.0)
    ticket, *_ = link.submit(Copies("in", [0, 1], [0, 1]))
    assert not link.wait(1.5) and link.now_s == 1.5
    assert link.wait(10.0) and link.now_s == 2.0 and link.poll() == [(ticket, None)]
    assert not link.wait(1.0) and not link.cancel(ticket)


def test_virtual_link_cancels_only_what_has_not_started() -> None:
    link = VirtualLink(PAGE, PAGE * 1.0)
    ((first,), (second,), (third,)) = (link.submit(Copies("in", [n], [n])) for n in range(3))
    assert not link.cancel(first) and link.cancel(second) and not link.cancel(second)
    assert link.queued_bytes("in") == 2 * PAGE
    link.advance_to(2.0)
    assert link.has_news and link.poll() == [(first, None), (third, None)]
    assert link.queued_bytes("in") == 0 and not link.wait(1.0)


@pytest.mark.parametrize("seed", range(20))
def test_hostile_link_lands_every_byte_and_never_before_the_fence(seed: int) -> None:
    device, host = pools()
    timeline = Timeline()
    link = HostileLink(device, host, timeline, seed=seed)
    tickets = link.submit(Copies("in", [0, 1, 2], [4, 5, 6]), Fence("compute", 0))
    tickets += link.submit(Copies("out", [7], [0]))
    untouched = device[:3].copy()
    while link.step():
        pass
    assert (device[:3] == untouched).all() and (host[0] == device[7]).all()
    assert link.cancel(tickets[0])
    timeline.reach(0)
    ended = {}
    while link.wait(0.0):
        ended |= dict(link.poll())
    assert ended == dict.fromkeys(tickets[1:]) and link.num_open == 0
    assert (device[2] == host[6]).all() and (device[:2] == untouched[:2]).all()


def test_hostile_link_fails_when_told() -> None:
    device, host = pools()
    link = HostileLink(device, host, Timeline(), seed=1)
    source = host[0].copy()
    link.failures = 1
    link.submit(Copies("in", [0], [0]))
    assert link.wait(0.0)
    ((_, error),) = link.poll()
    assert isinstance(error, LinkError) and (host[0] == source).all()


def test_a_blocking_link_returns_when_its_copies_have_ended() -> None:
    """Each ticket is reported once, by a later poll."""
    device, host = pools()
    inner = ThreadLink(device, host, Timeline(), bandwidth=500.0 * PAGE)
    link = BlockingLink(inner)
    start_s = time.perf_counter()
    tickets = link.submit(Copies("in", [0, 1], [4, 5]))
    assert time.perf_counter() - start_s > 2 / 500.0 and link.queued_bytes("in") == 0
    assert (device[:2] == host[4:6]).all() and link.wait(0.0)
    tickets += link.submit(Copies("out", [6], [0]), urgent=True)
    assert (host[0] == device[6]).all() and not link.cancel(tickets[0])
    assert [ticket for ticket, error in link.poll() if error is None] == tickets
    assert link.poll() == [] and not link.wait(0.0)
    link.close()
