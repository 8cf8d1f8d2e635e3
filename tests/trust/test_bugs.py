"""The machines are tested too: each planted bug must be seen. ``python -m tests.trust`` prints all
of them in one table."""

from __future__ import annotations

import pytest

from tests.trust import bugs


@pytest.mark.parametrize(
    "machine",
    [
        bugs.MEMORY,
        bugs.ADAPTERS,
        bugs.DISK,
        bugs.STATE,
        bugs.MODELS,
        bugs.LIVES,
        bugs.POWER,
        bugs.STORE,
        bugs.READS,
        bugs.SLOTS,
        bugs.WORLDS,
    ],
    ids=lambda machine: machine.name,
)
def test_no_bug_is_found_where_none_was_planted(machine: bugs.Machine) -> None:
    """A few looks: the campaigns have many (``tests.long``)."""
    assert bugs.catch(machine, most=12) is None


@pytest.mark.parametrize("bug", bugs.BUGS, ids=lambda bug: bug.broken)
def test_a_planted_bug_is_found(bug: bugs.Bug) -> None:
    assert bugs.catch(bug.machine, bug.build, shrunk=False) is not None


@pytest.mark.parametrize("bug", bugs.SPEED_ONLY, ids=lambda bug: bug.broken)
def test_what_costs_speed_only_is_not_taken_for_a_bug(bug: bugs.Bug) -> None:
    assert bugs.catch(bug.machine, bug.build) is None
