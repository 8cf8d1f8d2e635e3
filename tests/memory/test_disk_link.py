"""The disk link beside the link that it wraps: who copies what, and what a broken disk does."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scalesim.core import Bytes2D
from scalesim.memory.disk.disk_link import DiskLink
from scalesim.memory.disk.slot_files import SlotFiles
from scalesim.memory.links.link import Copies, LinkError, Timeline
from scalesim.memory.links.thread_link import ThreadLink

PAGE, PAGES = 512, 6


class Machine:
    """Two pools and a disk."""

    def __init__(self, folder: Path, bandwidth: float | None = None) -> None:
        rng = np.random.default_rng(0)
        self.device: Bytes2D = rng.integers(0, 256, (PAGES, PAGE), np.uint8)
        self.host: Bytes2D = rng.integers(0, 256, (PAGES, PAGE), np.uint8)
        inner = ThreadLink(self.device, self.host, Timeline())
        self.folder = folder
        self.link = DiskLink(inner, SlotFiles(folder, PAGE, PAGES), self.host, bandwidth)

    def do(self, copies: Copies) -> Exception | None:
        """Make ``copies``, and return their error."""
        tickets = set(self.link.submit(copies))
        error: Exception | None = None
        while tickets:
            assert self.link.wait(60.0)
            for ticket, failed in self.link.poll():
                tickets.remove(ticket)
                error = error or failed
        return error

    def down(self, *pages: int) -> Exception | None:
        return self.do(Copies("down", [], list(pages), disk_pages=list(pages)))

    def up(self, *pages: int) -> Exception | None:
        return self.do(Copies("up", [], list(pages), disk_pages=list(pages)))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.link.close()


def test_pages_go_down_and_up_and_to_the_device(machine: Machine) -> None:
    before = machine.host.copy()
    assert machine.down(0, 1, 4) is None
    machine.host[:] = 0
    assert machine.up(4, 0) is None
    assert machine.do(Copies("in", [3, 5], [0, 4])) is None
    assert (machine.device[[3, 5]] == before[[0, 4]]).all()
    assert not machine.host[[1, 2, 3, 5]].any()
    assert machine.link.queued_bytes("up") == machine.link.queued_bytes("down") == 0
    assert all(machine.link.rate(way) > 0.0 for way in ("in", "out", "up", "down"))


def test_a_copy_that_has_not_started_is_cancelled(tmp_path: Path) -> None:
    machine = Machine(tmp_path, bandwidth=1e-3)  # a page takes days
    first, second = (
        machine.link.submit(Copies("down", [], [page], disk_pages=[page]))[0] for page in (0, 1)
    )
    assert machine.link.cancel(second) and not machine.link.cancel(second)
    assert not machine.link.wait(0.01) and machine.link.poll() == []
    assert machine.link.queued_bytes("down") <= PAGE
    assert machine.do(Copies("out", [0], [0])) is None  # the other link does not wait for the disk
    assert first != second
    machine.link.close()


def test_damage_fails_its_copy_alone(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    assert machine.down(0, 1) is None
    with (machine.folder / "slots-00000").open("r+b") as file:
        file.write(b"\0" * PAGE)
    with caplog.at_level(logging.WARNING):
        assert isinstance(machine.up(0), LinkError) and isinstance(machine.up(0), LinkError)
    assert caplog.text.count("damaged state is computed again") == 1
    assert machine.up(1) is None and machine.link.rate("up") > 0.0


def test_a_full_disk_takes_no_more_and_can_be_read(
    machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert machine.down(0) is None
    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        assert isinstance(machine.down(1), LinkError) and isinstance(machine.down(1), LinkError)
    assert caplog.text.count("cannot be written to") == 1
    assert "No space left" in caplog.text
    assert machine.link.rate("down") == 0.0
    assert machine.up(0) is None


def test_a_disk_that_cannot_be_read_is_given_up(
    machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, data: object, offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    assert machine.down(0) is None
    monkeypatch.setattr(os, "preadv", broken)
    with caplog.at_level(logging.WARNING):
        assert isinstance(machine.up(0), LinkError)
    assert caplog.text.count("cannot be read") == 1
    assert machine.link.rate("up") == 0.0
    monkeypatch.undo()
    assert isinstance(machine.up(0), LinkError)


def test_a_slow_copy_is_told(
    machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine looks at the link while it waits."""
    now = [0.0]
    monkeypatch.setattr("scalesim.memory.disk.disk_link.time.perf_counter", lambda: now[0])
    started, go_on = Gate(), Gate()

    def slow(fd: int, data: object, offset: int) -> int:
        started.open()
        go_on.wait()
        return 0

    assert machine.down(0) is None
    monkeypatch.setattr(os, "preadv", slow)
    machine.link.submit(Copies("up", [], [0], disk_pages=[0]))
    started.wait()
    with caplog.at_level(logging.WARNING):
        assert machine.link.poll() == []
        assert not caplog.text
        now[0] = 10.0
        assert machine.link.poll() == []
        go_on.open()
    assert caplog.text.count("takes more than 5 s") == 1


class Gate:
    """Opened by one thread, awaited by another."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def open(self) -> None:
        os.write(self._write, b".")

    def wait(self) -> None:
        os.read(self._read, 1)
        os.close(self._read)
        os.close(self._write)
