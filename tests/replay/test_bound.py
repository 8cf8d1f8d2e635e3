"""Belady's bound against every possible choice of what to hold."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from scalesim.replay.bound import Access, belady_loads, page_ids


def least_loads(accesses: list[Access], capacity: int, start: int, cached: frozenset[int]) -> int:
    """By trying everything: what to hold at the start, and after each access. Pages of answers may
    be taken up whenever their request has ended, and read before that for nothing."""
    seen: list[set[int]] = []
    for access in accesses:
        seen.append((seen[-1] if seen else set()) | set(access.pages))

    def before(index: int) -> set[int]:
        return seen[index - 1] if index else set()

    def again(index: int) -> set[int]:
        return set(accesses[index].read) & before(index)

    def answer(index: int) -> set[int]:
        return set(accesses[index].pages) - set(accesses[index].begun)

    def end(index: int) -> int:
        return max(accesses[index].until, index + 1)

    def pinned(index: int) -> set[int]:
        """The prompts of those that run beside access ``index``."""
        running = (
            accesses[other].begun
            for other in range(start, index + 1)
            if other == index or (end(other) > index and not accesses[other].preempted)
        )
        return set().union(*running)

    def offered(index: int) -> set[int]:
        return set().union(*(answer(other) for other in range(start, index) if end(other) == index))

    def fresh(index: int) -> set[int]:
        """What requests say that still run."""
        return set().union(*(answer(other) for other in range(start, index) if end(other) > index))

    def choices(pages: set[int], must: set[int]) -> Iterator[frozenset[int]]:
        free = sorted(pages - must)
        room = max(0, min(len(free), capacity - len(must)))
        yield from (frozenset(must | set(kept)) for kept in combinations(free, room))

    @cache
    def least(index: int, held: frozenset[int]) -> int:
        if index == len(accesses):
            return 0
        there = set(held) | offered(index)
        needed = again(index)
        cost = len(needed - there - fresh(index))
        pages = there | set(accesses[index].begun)
        return cost + min(least(index + 1, kept) for kept in choices(pages, pinned(index)))

    return min(least(start, kept) for kept in choices(set(cached), set()))


@st.composite
def orders(draw: st.DrawFn) -> tuple[list[Access], int, int, frozenset[int]]:
    accesses = []
    for index in range(draw(st.integers(1, 6))):
        pages = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
        accesses.append(
            Access(
                tuple(pages),
                draw(st.integers(0, len(pages))),
                index + 1 + draw(st.integers(0, 2)),
                draw(st.booleans()),
            )
        )
    start = min(len(accesses), draw(st.integers(0, 2)))
    before = {page for access in accesses[:start] for page in access.pages}
    cached = frozenset(page for page in sorted(before) if draw(st.booleans()))
    # running requests keep their prompts: no more run at once than the pool holds
    return accesses, draw(st.integers(6, 7) | st.integers(1, 5)), start, cached


@given(orders())
@settings(max_examples=150, deadline=None)
def test_no_choice_of_what_to_hold_loads_less(
    case: tuple[list[Access], int, int, frozenset[int]],
) -> None:
    accesses, capacity, start, cached = case
    found = sum(belady_loads(accesses, capacity, start, cached))
    assert found == least_loads(accesses, capacity, start, cached)


def test_a_cycle_larger_than_the_pool_keeps_all_but_one() -> None:
    """The known result for cycles: of N pages in a pool of C, N - C + ... are loaded, not N."""
    accesses = [Access((page,), 1) for _ in range(20) for page in range(10)]
    loads = sum(belady_loads(accesses, 5))
    assert 100 <= loads <= 19 * 6  # LRU would load all 190


def test_what_a_request_computes_is_not_loaded() -> None:
    accesses = [Access((1, 2, 3), 0), Access((1, 2, 9), 2), Access((1, 2, 3), 2)]
    assert belady_loads(accesses, 100) == [0, 0, 0]
    assert belady_loads([Access((1,), 0), Access((2,), 0), Access((1,), 1)], 1) == [0, 0, 1]
    three = [Access((1,), 0), Access((2,), 0), Access((3,), 0), Access((2, 1), 2)]
    assert belady_loads(three, 1) == [0, 0, 0, 2]


def test_a_prompt_takes_room_while_its_request_runs_and_an_answer_does_not() -> None:
    """Page 1 fits beside one of the running requests' pages."""
    beside = [Access((1,), 0), Access((2, 3, 4), 0, 2), Access((1,), 1)]
    assert belady_loads(beside, 2) == [0, 0, 0]  # 3 and 4 are said
    beside = [Access((1,), 0), Access((2, 3, 4), 2, 2), Access((1,), 1)]
    assert belady_loads(beside, 3) == [0, 0, 1]  # 2 to 4 are the prompt


def test_a_window_begins_with_what_was_there() -> None:
    accesses = [Access((page,), 1) for page in (1, 2, 3, 4, 1, 2, 3, 4)]
    assert belady_loads(accesses, 2, 4, (1, 2)) == [0, 0, 1, 1]
    assert belady_loads(accesses, 2, 4, (3, 4)) == [1, 1, 0, 1]


def test_what_runs_beside_takes_room_from_what_waits() -> None:
    """Pages 1, 2 and 9 fit; with 3 read beside them all along, one must be loaded again."""
    order = [
        Access((3,), 0),
        Access((3,), 1, 6),
        Access((1,), 0),
        Access((2,), 0),
        Access((9,), 0),
        Access((1, 2), 2),
    ]
    assert sum(belady_loads(order, 3)) == 1
    assert sum(belady_loads([*order[:1], Access((3,), 1), *order[2:]], 3)) == 0


def test_ids_are_of_everything_up_to_a_page() -> None:
    known: dict[int, int] = {}
    first = page_ids(b"aaaabbbbcc", 4, known)
    assert first == (0, 1) and page_ids(b"aaaabbbb", 4, known) == first
    assert page_ids(b"bbbbaaaa", 4, known) == (2, 3)  # other places, other content
