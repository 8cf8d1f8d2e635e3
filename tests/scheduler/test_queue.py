"""The queue: who is served next, by priority, age, residence and patience."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from scalesim.config import SchedulerConfig
from scalesim.core import AgentId
from scalesim.sampling.params import SamplingParams
from scalesim.scheduler.queue import RequestQueue
from scalesim.scheduler.sequence import Sequence

CONFIG = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=16, max_skips=2, lookahead_window=3)


def request(id: int, priority: float = 0.0, admission: int = 0, work: float = 0.0) -> Sequence:
    sequence = Sequence(
        id=id,
        agent=id,
        tokens=np.zeros(1, np.int32),
        prompt_len=1,
        limit=2,
        params=SamplingParams(),
        key=0,
        priority=priority,
        work=work,
    )
    sequence.admission = admission
    return sequence


def nowhere(agents: Iterable[AgentId | None]) -> None:
    return None


def all_but_1(agents: Iterable[AgentId | None]) -> int | None:
    return next((index for index, agent in enumerate(agents) if agent != 1), None)


def queued(*sequences: Sequence) -> RequestQueue:
    queue = RequestQueue(CONFIG)
    for sequence in sequences:
        queue.line.add(sequence)
    return queue


def test_lower_priorities_first_then_the_oldest() -> None:
    queue = queued(request(1, 5.0), request(2), request(3))
    served = []
    while len(queue):
        served.append(queue.next(nowhere))
        queue.admitted(served[-1])
    assert [one.id for one in served] == [2, 3, 1]


def test_whoever_is_overtaken_too_often_goes_first() -> None:
    late = request(1, 5.0)
    queue = queued(late, request(2), request(3), request(4))
    for id in (2, 3):
        assert queue.next(nowhere).id == id
        queue.admitted(queue.next(nowhere))
    assert late.skipped == CONFIG.max_skips and queue.next(nowhere) is late
    assert [one.id for one in queue.line] == [1, 4]


def test_one_on_the_device_overtakes_its_equals_but_not_for_ever() -> None:
    queue = queued(request(1), request(2), request(3), request(4))
    served = []
    while len(queue):
        served.append(queue.next(all_but_1))
        queue.admitted(served[-1])
    assert [one.id for one in served] == [2, 3, 1, 4]  # ``max_skips`` is 2


def test_preempted_ones_go_before_their_equals_and_can_be_overtaken_by_urgent_ones() -> None:
    back, urgent = request(1, 1.0, admission=1), request(3, 0.0)
    queue = queued(request(2, 1.0), urgent)
    queue.requeue(back)
    assert queue.next(nowhere) is urgent
    queue.admitted(urgent)
    assert back.skipped == 1 and queue.next(nowhere) is back and len(queue) == 2
    queue.admitted(back)
    assert [one.id for one in queue.line] == [2] and not queue.preempted


def test_discarded_ones_leave_wherever_they_wait() -> None:
    waiting, back = request(1), request(2, admission=1)
    queue = queued(waiting)
    queue.requeue(back)
    for sequence in (waiting, back, request(3)):
        queue.discard(sequence)
    assert not len(queue) and queue.line.first(5) == []
    queue.requeue(back)
    queue.clear()
    assert not len(queue)


def test_the_upcoming_are_as_many_as_may_run_in_the_order_of_service() -> None:
    queue = queued(*map(request, range(1, 8)), request(8, work=9))
    queue.requeue(request(9, admission=1))
    assert [waiting.id for waiting in queue.upcoming()] == [9, 8, 1, 2, 3]
    assert len(queue.upcoming()) == 1 + CONFIG.max_num_seqs


def test_the_longest_work_goes_first_among_equal_priorities() -> None:
    queue = queued(request(1, work=5), request(2, work=9), request(3, -1.0), request(4, work=9))
    assert [waiting.id for waiting in queue.line] == [3, 2, 4, 1]


def test_the_oldest_is_told_by_its_number_in_whatever_order_they_came() -> None:
    queue = queued(request(3, work=9), request(1), request(4, work=7), request(2, work=8))
    served = []
    while len(queue):
        served.append(queue.next(nowhere))
        queue.admitted(served[-1])
    assert [one.id for one in served] == [3, 2, 1, 4]  # ``max_skips`` is 2


def test_of_the_longest_the_resident_go_first() -> None:
    queue = queued(request(1, work=9), request(2, work=5), request(3, work=7))
    assert queue.next(nowhere).id == 1
    assert queue.next(all_but_1).id == 3


@pytest.mark.parametrize("seed", range(20))
def test_nobody_waits_for_ever(seed: int) -> None:
    """Whoever came as the n-th in line is served after ``n * (max_skips + 1)`` admissions at most,
    whatever comes later, however urgent, long or resident."""
    rng = np.random.default_rng(seed)
    queue, came, served, newest = RequestQueue(CONFIG), {}, 0, 0

    def add() -> None:
        nonlocal newest
        newest += 1
        came[newest] = served, len(came) + 1
        queue.line.add(
            request(newest, float(rng.integers(-2, 2)), work=float(rng.integers(0, 100)))
        )

    def somebody(agents: Iterable[AgentId | None]) -> int | None:
        index = int(rng.integers(-1, len(list(agents))))
        return None if index < 0 else index

    for _ in range(400):
        for _ in range(int(rng.integers(0, 3)) if len(queue) < 12 else 0):
            add()
        if not len(queue):
            continue
        sequence = queue.next(somebody)
        queue.admitted(sequence)
        served += 1
        since, place = came.pop(sequence.id)
        assert served - since <= place * (CONFIG.max_skips + 1)
    assert served > 200
    assert sorted(waiting.id for waiting in queue.line) == sorted(came)
