from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _threads(one_thread: None) -> None:
    """The models here are so small that a second thread costs more than it computes."""
