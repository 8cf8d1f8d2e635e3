"""Belady's bound against every possible choice of victims."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from scalesim.replay.bound import Access, belady_loads, page_ids, roofline


def least_loads(pages: list[int], capacity: int) -> int:
    """By trying every victim; a page that was never there costs nothing."""

    @cache
    def least(index: int, held: frozenset[int]) -> int:
        if index == len(pages):
            return 0
        page = pages[index]
        cost = int(page not in held and page in pages[:index])
        after = held | {page}
        if len(after) <= capacity:
            return cost + least(index + 1, after)
        return cost + min(least(index + 1, after - {victim}) for victim in after - {page})

    return least(0, frozenset())


@given(st.lists(st.integers(0, 4), max_size=9), st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_no_choice_of_victims_loads_less(pages: list[int], capacity: int) -> None:
    accesses = [Access((page,), 1) for page in pages]
    assert sum(belady_loads(accesses, capacity)) == least_loads(pages, capacity)


def test_a_cycle_larger_than_the_pool_keeps_all_but_one() -> None:
    """The known result for cycles: of N pages in a pool of C, N - C + ... are loaded, not N."""
    accesses = [Access((page,), 1) for _ in range(20) for page in range(10)]
    loads = sum(belady_loads(accesses, 5))
    assert 100 <= loads <= 19 * 6  # LRU would load all 190


def test_what_a_request_computes_is_not_loaded() -> None:
    accesses = [Access((1, 2, 3), 0), Access((1, 2, 9), 2), Access((1, 2, 3), 2)]
    assert belady_loads(accesses, 100) == [0, 0, 0]
    assert belady_loads([Access((1,), 0), Access((2,), 0), Access((1,), 1)], 1) == [0, 0, 1]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), max_size=12), st.integers(2, 4))
@settings(max_examples=80, deadline=None)
def test_holding_pages_longer_never_saves_a_load(
    runs: list[tuple[int, int]], capacity: int
) -> None:
    """And without overlap it is the same bound. No more is held than fits."""
    alone = [Access((page,), 1) for page, _ in runs]
    overlapping = [Access((page,), 1, index + 1 + more) for index, (page, more) in enumerate(runs)]
    at_least = sum(belady_loads(alone, capacity))
    assert sum(belady_loads(alone, capacity, held_to_end=True)) == at_least
    assert sum(belady_loads(overlapping, capacity)) == at_least
    assert sum(belady_loads(overlapping, capacity, held_to_end=True)) >= at_least


def test_what_runs_beside_takes_room_from_what_waits() -> None:
    """Pages 1 and 2 fit; with 3 running beside them all along, one of them must be loaded again."""
    order = [Access((3,), 0, 5), Access((1,), 1, 2), Access((2,), 1, 3), Access((1,), 1, 4)]
    assert sum(belady_loads(order, 2)) == 0
    assert sum(belady_loads(order, 2, held_to_end=True)) == 1


def test_ids_are_of_everything_up_to_a_page() -> None:
    known: dict[int, int] = {}
    first = page_ids(b"aaaabbbbcc", 4, known)
    assert first == (0, 1) and page_ids(b"aaaabbbb", 4, known) == first
    assert page_ids(b"bbbbaaaa", 4, known) == (2, 3)  # other places, other content


def test_the_roof_is_the_lower_of_the_two() -> None:
    assert roofline(100, 10.0, 50.0, 10.0) == 10.0
    assert roofline(100, 10.0, 200.0, 10.0) == 5.0
