"""The example of forked worlds runs, and its control is exact."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.docs.pages import ROOT


def test_one_village_two_elections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = subprocess.run(
        [sys.executable, "examples/two_elections.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "the control votes like the village: True" in done.stdout
