"""Expected work: the answer's usual length, and that of the calls to come."""

from __future__ import annotations

import numpy as np

from scalesim.sampling.params import SamplingParams
from scalesim.scheduler.expected_work import ExpectedWork
from scalesim.scheduler.sequence import Sequence


def call(beginning: int, max_tokens: int, said: int = 0) -> Sequence:
    tokens = np.full(40, beginning, np.int32)
    sequence = Sequence(0, "ada", tokens, 40, 40 + max_tokens, SamplingParams(), 0)
    sequence.output = np.zeros(said, np.int32)
    return sequence


def test_without_evidence_a_call_says_all_it_may() -> None:
    assert ExpectedWork().of(call(1, 100), 1.0) == 100.0


def test_a_kind_of_call_is_known_by_its_template_and_its_limit() -> None:
    work = ExpectedWork()
    for _ in range(3):
        work.ended(call(1, 100, said=10))
    assert work.of(call(1, 100), 1.0) == 10.0
    assert work.of(call(2, 100), 1.0) == work.of(call(1, 100, said=0), 1.0) * 10
    assert work.of(call(1, 50), 1.0) == 50.0


def test_calls_to_come_are_usual_ones() -> None:
    work = ExpectedWork()
    for _ in range(100):
        work.of(call(1, 20), 1.0)
    assert work.of(call(1, 20), 3.0) == 60.0
    long = work.of(call(1, 200), 2.0)
    assert 220.0 < long < 240.0


def test_what_answers_become_is_followed() -> None:
    work = ExpectedWork()
    for said in [80] * 10 + [20] * 100:
        work.ended(call(1, 100, said))
    assert abs(work.of(call(1, 100), 1.0) - 20.0) < 0.1
