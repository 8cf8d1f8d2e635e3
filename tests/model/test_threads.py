"""The number of threads that an engine on a CPU computes with."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from scalesim.device.processors import HostProcessors
from scalesim.model.runner.threads import choose_threads

TWO_CORES = HostProcessors(logical=4, cores=2, quota=None)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("found", "num_threads", "words"),
    [
        (TWO_CORES, 2, "2 threads instead of torch's 4: this process may run on 4 processors "),
        (HostProcessors(4, 4, 1.5), 1, "quota is 1.5; threads= or OMP_NUM_THREADS sets another"),
        (HostProcessors(8, 8, None), 4, None),
        (HostProcessors(8, 4, 4.0), 4, None),
    ],
    ids=["hyperthreads", "a quota", "torch's own are fewer", "as many"],
)
def test_no_more_than_can_run(
    found: HostProcessors, num_threads: int, words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "scalesim"):
        choose_threads(None, found, {})
        choose_threads(None, found, {})
    assert torch.get_num_threads() == num_threads
    assert len(caplog.messages) == (words is not None)
    assert all((words or "") in line for line in caplog.messages)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_environment_says_stays(name: str) -> None:
    choose_threads(None, TWO_CORES, {name: "4"})
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("asked", [1, 3])
def test_what_is_asked_for_counts_most(asked: int) -> None:
    choose_threads(asked, TWO_CORES, {"OMP_NUM_THREADS": "4"})
    assert torch.get_num_threads() == asked
