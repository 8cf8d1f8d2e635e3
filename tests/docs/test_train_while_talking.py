"""The example of training while others talk runs: one learns, the others say what they said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.docs.pages import ROOT


def test_one_learns_while_the_others_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = subprocess.run(
        [sys.executable, "examples/train_while_talking.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "learned: True" in done.stdout, done.stdout
    assert "the others never changed: True" in done.stdout, done.stdout
