"""The bugs of the whole engine, planted; those of memory, adapters and waits have tests of their
own. ``python -m tests.trust`` prints all of them in one table."""

from __future__ import annotations

import pytest

from tests.trust import bugs

OF_ENGINE = [bug for bug in bugs.bugs() if bug.machine is bugs.ENGINE]


def test_there_are_enough_of_them() -> None:
    names = [bug.name for bug in bugs.bugs()]
    assert len(names) == len(set(names)) >= 25
    assert bugs._SEEN.keys() <= set(names)  # no row for a bug that is not planted


@pytest.mark.parametrize("bug", OF_ENGINE, ids=lambda bug: bug.name)
def test_a_bug_of_the_engine_is_seen(bug: bugs.Bug) -> None:
    assert bugs.catch(bug) is not None


@pytest.mark.parametrize("patch", bugs.SPEED_ONLY, ids=lambda patch: patch.__name__)
def test_what_costs_speed_only_is_not_taken_for_a_bug(patch: bugs.Patch) -> None:
    assert bugs.catch(bugs.sound(patch)) is None
