"""Every bad caller of the sweep, in one run for all, with one step in flight.

``python -m tests.long callers`` has a run for each, and two steps as well.
"""

from __future__ import annotations

import pytest

from tests.trust import callers
from tests.trust.workload import Text, oracle


@pytest.fixture(scope="module")
def texts() -> dict[str, list[Text]]:
    return oracle()


def test_bad_callers_cost_themselves(texts: dict[str, list[Text]]) -> None:
    names = [*callers.THROUGH, *callers.BEFORE]
    refused, ended = callers.run(names, True, texts)
    assert not ended
    assert set(names) - set(refused) == {"expect for ever"}  # advice, which is not taken


def test_what_no_check_finds_ends_alone(texts: dict[str, list[Text]]) -> None:
    """And the sweep is not void: it reaches the engine's thread."""
    refused, ended = callers.run([*callers.THROUGH], False, texts)
    assert not refused and set(ended) == set(callers.THROUGH)
