"""Memory's books are made to lie while an engine runs: in production the pages in question leave
circulation, their requests end with a typed error, everybody else says what is right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from scalesim.engine.engine import Engine
from scalesim.engine.loop import EngineLoop
from scalesim.errors import EngineClosedError, InternalError
from scalesim.memory.audit.auditor import Auditor
from scalesim.memory.audit.counts import AccountError, check_accounts, find_suspects
from scalesim.memory.audit.integrity import IntegrityError, check_integrity
from scalesim.memory.lease import Lease
from scalesim.memory.manager import MemoryManager
from scalesim.memory.page_log import LoggedLink
from scalesim.requests.call import Call
from tests.inside import part
from tests.trust.workload import PAGES, Workload

Lie = Callable[[MemoryManager, list[Lease]], None]


def a_page_nobody_has(memory: MemoryManager, leases: list[Lease]) -> None:
    assert memory.device.allocate(1) is not None


def a_host_page_nobody_has(memory: MemoryManager, leases: list[Lease]) -> None:
    assert memory.host.allocate(1) is not None


def a_page_two_have(memory: MemoryManager, leases: list[Lease]) -> None:
    leases[0].private.append(leases[1].private[0])


def begin(workload: Workload) -> list[Call]:
    """Three agents who speak, with pages of their own; they stay in the middle of it."""
    engine = workload.engine
    calls = [
        engine.submit(engine.agent(name).request([index] * 7, max_tokens=13, temperature=0.0,
                                                 ignore_eos=True))
        for index, name in enumerate("abc")
    ]  # fmt: skip
    for _ in range(3):
        engine.step()
    return calls


def end(engine: Engine, calls: list[Call]) -> list[tuple[int, ...] | None]:
    """What each said; ``None`` for an ``InternalError``."""
    for _ in range(500):
        if all(call.done for call in calls):
            break
        engine.step()
    return [None if isinstance(call.error, InternalError) else call.result().token_ids
            for call in calls]  # fmt: skip


def what_is_right() -> list[tuple[int, ...] | None]:
    with Workload() as workload:
        return end(workload.engine, begin(workload))


@pytest.fixture
def workload() -> Iterator[Workload]:
    with Workload() as workload:
        yield workload


@pytest.mark.parametrize(
    ("lie", "num_hit", "num_lost"),
    [(a_page_nobody_has, 0, 1), (a_host_page_nobody_has, 0, 1), (a_page_two_have, 2, 1)],
)
def test_a_violation_quarantines(
    lie: Lie, num_hit: int, num_lost: int, workload: Workload, caplog: pytest.LogCaptureFixture
) -> None:
    engine, memory = workload.engine, workload.engine.parts.memory
    calls = begin(workload)
    assert len(engine.parts.scheduler.leases()) == 3
    lie(memory, engine.parts.scheduler.leases())
    with caplog.at_level(logging.ERROR, "scalesim.memory.audit.auditor"):
        said = end(engine, calls)
    right = what_is_right()
    assert said.count(None) == num_hit and None not in right
    assert all(mine in (None, theirs) for mine, theirs in zip(said, right, strict=True))
    assert engine.stats.restarts == 1 and engine.stats.lost_pages == num_lost
    assert "usable" in caplog.text and "taken: device" in caplog.text
    check_integrity(memory, engine.parts.scheduler.leases())
    assert end(engine, begin(workload)) == right  # with a page less, and nothing odd
    assert engine.stats.restarts == 1
    workload.settle()


def test_a_violation_ends_a_test() -> None:
    with Workload(integrity="raise") as workload:
        calls = begin(workload)
        a_page_nobody_has(workload.engine.parts.memory, [])
        with pytest.raises(AccountError, match=r"device: \d+ free \+ \d+ in the tree"):
            end(workload.engine, calls)
        assert all(call.done for call in calls)
        with pytest.raises(EngineClosedError, match="the engine died: AccountError"):
            calls[0].result()


def test_what_the_counts_cannot_see_is_seen_when_idle(workload: Workload) -> None:
    engine = workload.engine
    calls = begin(workload)
    right = end(engine, calls)
    segment = next(iter(engine.parts.memory.tree))
    segment.pins += 1
    assert engine.stats.restarts == 0
    calls = begin(workload)
    end(engine, calls)
    while engine.step():
        pass
    guard = part(engine, EngineLoop).auditor
    for _ in range(50):  # a sweep is not due more often than its share of the time
        if engine.stats.restarts:
            break
        end(engine, begin(workload))
        engine.step()
    assert engine.stats.restarts == 1 and guard.num_sweeps >= 1
    assert "freed" in guard.last_report
    assert end(engine, begin(workload)) == right


def test_sweeps_take_their_share_of_the_time_and_no_more(workload: Workload) -> None:
    memory, clock = workload.engine.parts.memory, [0.0]

    def time_s() -> float:
        clock[0] += 0.5  # each look at the clock: a sweep takes half a second
        return clock[0]

    guard = Auditor(memory, list, "quarantine", time_s)
    for step in range(400):
        memory.timing.last_launched = step
        guard.when_idle()
    assert guard.num_sweeps == pytest.approx(0.01 * clock[0] / 0.5, abs=2)
    off = Auditor(memory, list, "off")
    off.when_idle()
    off.after_step()
    assert off.num_sweeps == 0
    memory.timing.last_launched = -1


def test_copies_that_never_end_cost_their_pages_only(workload: Workload) -> None:
    """A copy may still be written when everything begins anew: its pages are not used again."""
    engine, memory = workload.engine, workload.engine.parts.memory
    workload.play()
    while not memory.residency.transfers:
        engine.submit(engine.agent("new").request([9] * 30, max_tokens=20, ignore_eos=True))
        engine.step()
    link = part(memory, LoggedLink)
    link.cancel = lambda ticket: False  # type: ignore[method-assign]
    link.link.wait = lambda timeout_s: False  # type: ignore[method-assign]
    open_pages, *_ = link.cancel_all(0.0)
    memory.reset()
    assert open_pages and memory.tiers.device.lost == open_pages
    taken = memory.device.allocate(PAGES - len(open_pages))
    assert taken is not None and open_pages.isdisjoint(taken)
    memory.device.free(taken)


def test_suspects_are_found_without_trusting_a_count(workload: Workload) -> None:
    memory = workload.engine.parts.memory
    begin(workload)
    leases = workload.engine.parts.scheduler.leases()
    assert find_suspects(memory, leases).pages["device"] == set()
    check_accounts(memory, leases)
    page = leases[0].private.pop()
    leases[1].private.append(leases[2].private[0])  # the counts agree, and are wrong
    check_accounts(memory, leases)
    with pytest.raises(IntegrityError):
        check_integrity(memory, leases)
    suspects = find_suspects(memory, leases)
    assert (
        suspects.pages["device"] == {page, leases[1].private[-1]} and suspects.leases == leases[1:]
    )
    leases[0].private.append(page)
    leases[1].private.pop()
