"""Load or rebuild: what is sooner there, by measured rates alone."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from scalesim.memory.eviction.load_or_recompute import LoadOrRecompute
from scalesim.memory.links.link import Copies
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.memory.timing import Timing

PAGE, BLOCK = 1000, 16


def num_tokens(token_s: float) -> int:
    """Of a prefill that is no pause."""
    return min(512, max(1, int(0.6 / token_s)))


def prefill(timing: Timing, count: int, seconds: float) -> None:
    """A step of ``count`` tokens that took ``seconds``, after a pause."""
    timing.launched(0, count)
    begin_s = 100.0 * next(numbers)
    timing.begin_iteration(begin_s)
    timing.begin_iteration(begin_s + seconds)


numbers = itertools.count(1)


def costs(
    rate: float,
    token_s: float | None,
    *,
    queued: int = 0,
    weighs: bool = True,
    timing: Timing | None = None,
) -> LoadOrRecompute:
    """On a link of ``rate`` with ``queued`` pages before anything new, after prefills of
    ``token_s`` a token."""
    timing = timing or Timing()
    link = VirtualLink(PAGE, rate)
    if queued:
        link.submit(Copies("in", range(queued), range(queued)))
        link.submit(Copies("out", range(queued), range(queued)))
    for _ in range(3):
        if token_s is not None:
            prefill(timing, num_tokens(token_s), num_tokens(token_s) * token_s)
    return LoadOrRecompute(link, timing, PAGE, weighs=weighs)


def test_until_a_prefill_was_seen_everything_is_loaded() -> None:
    unknown = costs(1.0, None, queued=50)
    assert math.isinf(unknown.rebuild_s(1, BLOCK))
    assert unknown.num_worth_loading(100, BLOCK) == 100 and unknown.is_worth_saving(100, BLOCK)


def test_a_policy_that_does_not_weigh_loads_and_saves_whatever_it_takes() -> None:
    blind = costs(1.0, 1e-9, queued=50, weighs=False)
    assert blind.num_worth_loading(100, BLOCK) == 100 and blind.is_worth_saving(100, BLOCK)


def test_what_arrives_in_time_is_loaded_and_the_rest_is_computed() -> None:
    slow = costs(1000.0, 1e-3)  # a page takes 1 s to load, 16 ms to compute
    assert slow.num_worth_loading(10, BLOCK) == 0
    assert slow.num_worth_loading(10, BLOCK, needed_s=4.5) == 4
    assert slow.num_worth_loading(10, BLOCK, needed_s=10.0) == 10
    assert slow.num_worth_loading(10, BLOCK, needed_s=math.inf) == 10
    assert not slow.is_worth_saving(1, BLOCK)
    fast = costs(1e6, 1e-3)  # 1 ms and 16 ms
    assert fast.num_worth_loading(10, BLOCK) == 10 and fast.is_worth_saving(10, BLOCK)


def test_a_queue_on_the_link_makes_computing_the_sooner() -> None:
    assert costs(1e6, 1e-3, queued=100).num_worth_loading(10, BLOCK) == 10  # 110 ms against 160
    assert costs(1e6, 1e-3, queued=200).num_worth_loading(10, BLOCK) == 0  # 210 ms
    assert not costs(1e6, 1e-3, queued=200).is_worth_saving(10, BLOCK)


def test_a_token_takes_what_it_takes_in_full_steps() -> None:
    """A few tokens ride along with a decode step: they say nothing of a long prefill."""
    timing = Timing()
    made = costs(1.0, 1e-3, timing=timing)
    for _ in range(3):
        prefill(timing, 2, 0.25)
    assert made.rebuild_s(1, BLOCK) < 1.1 * BLOCK * 1e-3


@given(
    rate=st.floats(1.0, 1e9),
    token_s=st.floats(1e-7, 0.5),
    queued=st.integers(0, 50),
    blocks=st.integers(1, 200),
    needed_s=st.floats(0.0, 100.0),
)
def test_no_other_count_would_be_there_sooner(
    rate: float, token_s: float, queued: int, blocks: int, needed_s: float
) -> None:
    made = costs(rate, token_s, queued=queued)

    def ready_s(count: int) -> float:
        loaded_s = (queued + count) * PAGE / rate if count else 0.0
        return max(needed_s, loaded_s) + made.rebuild_s(blocks - count, BLOCK)

    best = min(ready_s(count) for count in range(blocks + 1))
    turn_s = num_tokens(token_s) * token_s
    assert (
        ready_s(made.num_worth_loading(blocks, BLOCK, needed_s))
        <= best * (1 + 1e-9) + PAGE / rate + turn_s
    )


def test_a_load_within_a_turn_of_the_loop_is_not_weighed() -> None:
    """Whether it has ended is only seen at the next turn anyway."""
    timing = Timing()
    made = costs(
        1e5, 1e-6, queued=1, timing=timing
    )  # 20 ms for a page and the queue; 16 µs to compute
    assert made.num_worth_loading(1, BLOCK) == 0 and not made.is_worth_saving(1, BLOCK)
    for iteration in range(20):
        timing.begin_iteration(iteration / 10)
    assert made.num_worth_loading(1, BLOCK) == 1 and made.is_worth_saving(1, BLOCK)
