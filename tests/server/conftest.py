from __future__ import annotations

from collections.abc import Iterator

import pytest

from scalesim.engine.engine import Engine
from tests.engine.world import tiny_engine
from tests.server.world import Running, serving


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with tiny_engine() as made:
        yield made


@pytest.fixture(scope="session")
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine) as server:
        yield server
