"""The GPU's link on hostile streams: bytes arrive once, tickets end once, fences are kept."""

from __future__ import annotations

import random

import pytest
import torch

from scalesim.core import Fence
from scalesim.device.streams import Fences
from scalesim.memory.links import link as links
from scalesim.memory.links.cuda_link import CudaLink
from scalesim.memory.links.link import Copies, LinkError
from scalesim.memory.pools.pinned import PinnedPages
from tests.device.hostile_device import HostileDevice, RaceError
from tests.device.world import hostile

PAGE, NUM = 4096, 64


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_CHUNK_BYTES", 4 * PAGE)


def make(device: HostileDevice) -> tuple[CudaLink, torch.Tensor, torch.Tensor, Fences]:
    host = PinnedPages(NUM, PAGE, device, max_registration_bytes=16 * PAGE)
    pages = torch.empty((NUM, PAGE), dtype=torch.uint8)
    for index in range(NUM):
        pages[index], host.pages[index] = index, 100 + index
    fences = Fences()
    device.watch("device", pages, PAGE)
    device.watch("host", host.pages, PAGE)
    return CudaLink(device, pages, host, fences, lambda: device.now_s), pages, host.pages, fences


def finish(link: CudaLink) -> dict[int, Exception | None]:
    ended: dict[int, Exception | None] = {}
    while link.queued_bytes("in") or link.queued_bytes("out"):
        assert link.wait(10.0)
        for ticket, error in link.poll():
            assert ticket not in ended
            ended[ticket] = error
    return ended


@pytest.mark.parametrize("seed", range(12))
def test_every_page_arrives_and_every_ticket_ends_once(seed: int) -> None:
    rng = random.Random(seed)
    device = hostile(seed=seed, order="lazy" if seed % 3 == 0 else "random")
    link, pages, host, _ = make(device)
    expected = {"in": pages.clone(), "out": host.clone()}
    tickets: list[int] = []
    free = rng.sample(range(NUM), NUM)
    for _ in range(5):
        way = rng.choice(("in", "out"))
        taken, free = free[:10], free[10:]
        sides = (sorted(taken), rng.sample(taken, 10))
        tickets += link.submit(Copies(way, *sides), urgent=rng.random() < 0.5)  # type: ignore[arg-type]
        for on_device, on_host in zip(*sides, strict=True):
            target, source = (on_device, on_host) if way == "in" else (on_host, on_device)
            expected[way][target] = (host if way == "in" else pages)[source]
    assert finish(link) == dict.fromkeys(tickets)
    assert torch.equal(pages, expected["in"]) and torch.equal(host, expected["out"])
    assert link.rate("in") > 0 and link.poll() == [] and not link.wait(0.0)


def test_nothing_is_reported_before_the_host_has_seen_it() -> None:
    device = hostile(order="lazy")
    link, pages, _, _ = make(device)
    (ticket,) = link.submit(Copies("in", [1, 2], [3, 4]))
    assert link.poll() == [] and link.queued_bytes("in") == 2 * PAGE
    assert int(pages[1, 0]) == 1
    assert link.wait(10.0) and link.poll() == [(ticket, None)]
    device.touch("device", [1, 2], is_write=False)  # the host may read them now


def test_a_copy_waits_on_the_device_for_its_step() -> None:
    device = hostile(order="lazy")
    link, pages, _, fences = make(device)
    compute = device.stream("compute")
    compute.submit(lambda: device.touch("device", [5], is_write=True))
    fences.launched(7, compute.record())
    link.submit(Copies("in", [5], [0]), Fence("compute", 7))
    finish(link)
    assert int(pages[5, 0]) == 100
    compute.submit(lambda: device.touch("device", [6], is_write=False))
    link.submit(Copies("in", [6], [0]))  # as if nobody used it
    with pytest.raises(RaceError, match=r"device 6 is (read|written)"):
        finish(link)
        compute.record().synchronize()


def test_a_copy_for_a_step_yet_to_be_launched_is_held() -> None:
    device = hostile(order="eager")
    link, pages, _, fences = make(device)
    (ticket,) = link.submit(Copies("in", [5], [0]), Fence("compute", 3))
    assert link.poll() == [] and int(pages[5, 0]) == 5
    assert not link.wait(1.0)  # nothing is under way: it does not spin until the timeout
    fences.launched(3, device.stream("compute").record())
    assert link.wait(1.0) and link.poll() == [(ticket, None)]


def test_cancel_takes_back_only_what_has_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    from scalesim.memory.links import dma

    monkeypatch.setattr(dma, "MIN_DEPTH_BYTES", 4 * PAGE)
    device = hostile(order="lazy")
    link, _, host, _ = make(device)
    first, second = link.submit(Copies("out", range(8), range(8)))
    assert not link.cancel(first) and link.cancel(second) and not link.cancel(second)
    assert finish(link) == {first: None} and int(host[4, 0]) == 104


def test_what_the_driver_refuses_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    device = hostile(order="eager")
    link, *_ = make(device)
    copy = device.stream("in").copy

    def refuse(dst: torch.Tensor, src: torch.Tensor) -> None:
        raise RuntimeError("CUDA error: invalid argument")

    monkeypatch.setattr(device.stream("in"), "copy", refuse)
    (bad,) = link.submit(Copies("in", [1], [1]))
    ((ticket, error),) = link.poll()
    assert ticket == bad and isinstance(error, LinkError) and error.__cause__ is not None
    monkeypatch.setattr(device.stream("in"), "copy", copy)
    (good,) = link.submit(Copies("in", [1], [1]))
    assert finish(link) == {good: None}
