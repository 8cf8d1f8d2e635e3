"""Every run of the tests is the same run: examples, seeds and threads are fixed.

``pytest --hypothesis-profile=explore`` looks for new examples instead.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from inspect import signature

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.snapshot.dying import emptied

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", settings.get_profile("ci"), derandomize=False)
settings.load_profile("ci")

# The products here are too small for a second thread. And a product's bits may follow from the
# number of threads: what one test remembers for others was computed with the number that all have.
torch.set_num_threads(1)


# A client of a server here waits five seconds for a reply, unless it is told otherwise. A starved
# machine may take longer; only a reply that never comes is wrong.
with suppress(ImportError):  # the tests of servers alone need it
    import httpx2

    signature(httpx2.Client).parameters["timeout"].default.read = 60.0


def pytest_runtest_setup(item: pytest.Item) -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (what a library draws from behind our back)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _as_it_was_found() -> Iterator[None]:
    """What belongs to the process is left as it was found: a log level that one test leaves behind
    silences another, on the same worker, on some days. Threads are put back, and fsspec's store in
    memory is emptied, whoever filled it: a test, or an example of the documentation."""
    log, threads = logging.getLogger("scalesim"), torch.get_num_threads()
    level = log.level
    with emptied():
        yield
    torch.set_num_threads(threads)
    assert log.level == level
