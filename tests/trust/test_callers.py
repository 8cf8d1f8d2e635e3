"""Every bad caller of the sweep, with one step in flight. ``python -m tests.long callers`` has
two as well."""

from __future__ import annotations

import pytest

from tests.trust import callers
from tests.trust.workload import Text, oracle


@pytest.fixture(scope="module")
def texts() -> dict[str, list[Text]]:
    return oracle()


@pytest.mark.parametrize(("name", "checked"), callers.CASES)
def test_a_bad_caller_costs_itself(name: str, checked: bool, texts: dict[str, list[Text]]) -> None:
    refused, ended = callers.run(name, checked, texts)
    if checked:
        assert ended == 0
        assert refused > 0 or name == "expect for ever"  # advice, which is not taken
    else:
        assert ended > 0  # the sweep is not void: it reached the engine's thread
