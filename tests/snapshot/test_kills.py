"""Programs that are killed with SIGKILL at random moments; ``python -m tests.long kills`` has 200
kills."""

from __future__ import annotations

import sys

import pytest

from tests.snapshot.kills import run


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("seed", range(2))
def test_a_program_that_is_killed_goes_on(seed: int) -> None:
    assert run(seed)["kills"] > 0
