"""The storm of calls, a small one; ``python -m tests.engine.storm`` is the large one."""

from __future__ import annotations

import pytest

from tests.engine.storm import Storm, check


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_a_storm_leaves_nothing_behind(steps_in_flight: int) -> None:
    ended = check(Storm(600, seed=steps_in_flight, steps_in_flight=steps_in_flight))
    assert set(ended) == {"replied", "left", "cancelled", "timed out"}
    assert ended["replied"] > 200
