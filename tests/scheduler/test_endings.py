"""How a sequence ends: what its last token says, and what is said of one that stopped midway."""

from __future__ import annotations

import numpy as np
import pytest

from scalesim.errors import InternalError, RequestError
from scalesim.sampling.params import SamplingParams
from scalesim.scheduler import failures
from scalesim.scheduler.finish import finish_reason
from scalesim.scheduler.restart import has_finished
from scalesim.scheduler.sequence import Sequence

PROMPT = 3


class Watches:
    """An observer that stops at 7 and cannot look at 8."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def push(self, token: int) -> bool:
        self.seen.append(token)
        if token == 8:
            raise ValueError("eight")
        if token == 9:
            raise RequestError("nine")
        return token == 7


def sequence(*output: int, limit: int = PROMPT + 4) -> Sequence:
    return Sequence(
        id=1,
        agent="a",
        tokens=np.array([0] * PROMPT + list(output), np.int32),
        prompt_len=PROMPT,
        limit=limit,
        params=SamplingParams(),
        key=0,
        stop_ids=frozenset({5}),
        observer=Watches(),
    )


@pytest.mark.parametrize(
    ("token", "known", "reason"),
    [
        (1, 4, None),
        (1, 7, "length"),
        (5, 4, "stop"),
        (5, 7, "stop"),
        (7, 4, "stop"),
        (7, 7, "stop"),
    ],
)
def test_the_last_token_says_whether_and_why(token: int, known: int, reason: str | None) -> None:
    assert finish_reason(sequence(), token, known) == reason


def test_a_token_is_shown_once() -> None:
    one = sequence(1, 2)
    for token, known in ((1, PROMPT + 1), (1, PROMPT + 1), (2, PROMPT + 2)):
        finish_reason(one, token, known)
    assert isinstance(one.observer, Watches) and one.observer.seen == [1, 2]


def test_what_stopped_midway_goes_on_or_ends_as_it_would_have() -> None:
    assert not has_finished(sequence()) and not has_finished(sequence(1))
    stopped, whole = sequence(1, 7), sequence(1, 1, 1, 1)
    assert has_finished(stopped) and stopped.finish_reason == "stop"
    assert has_finished(whole) and whole.finish_reason == "length"
    ending = sequence(1)
    ending.finish_reason = "cancelled"
    assert has_finished(ending) and ending.finish_reason == "cancelled"


@pytest.mark.parametrize(("token", "kind"), [(8, InternalError), (9, RequestError)])
def test_who_looks_at_tokens_may_fail(token: int, kind: type[Exception]) -> None:
    one = sequence(token)
    assert has_finished(one) and one.finish_reason == "error"
    assert type(one.error) is kind
    assert kind is RequestError or isinstance(one.error.__cause__, ValueError)


def test_errors_name_the_request_the_numbers_and_the_knob() -> None:
    lost = str(failures.pages_were_lost(sequence(), 9, 4))
    assert "request 1 needs 9 pages; 4" in lost
    assert "'a'" in str(failures.not_trusted(sequence()))
    assert "token 3" in str(failures.not_finite(sequence(), 3))
    long = str(failures.too_long(90, 64))
    assert "90 tokens" in long and "64" in long and "max_tokens" in long
