"""Programs that are killed with SIGKILL at random moments; ``python -m tests.long kills`` has 200
kills."""

from __future__ import annotations

import sys

import pytest

from tests.snapshot.kills import run


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_programs_that_are_killed_go_on() -> None:
    assert run(0)["kills"] > 3
