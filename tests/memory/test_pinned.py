"""The pinned pool: registered in whole pieces, and let go of again; what is refused says why."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.errors import ConfigError
from scalesim.memory.pools.pinned import (
    PinnedPages,
    available_host_bytes,
    check_host_bytes,
    registrations,
    seam_pages,
)

PAGE = mmap.PAGESIZE


class Driver:
    """Keeps the books of what is registered; refuses the call number ``fails``."""

    def __init__(self, fails: int = -1) -> None:
        self.ranges: dict[int, int] = {}
        self.calls, self.fails = 0, fails

    def register(self, address: int, num_bytes: int) -> int:
        self.calls += 1
        if self.calls == self.fails:
            return 2
        assert address % PAGE == 0
        for start, size in self.ranges.items():
            assert address >= start + size or address + num_bytes <= start
        self.ranges[address] = num_bytes
        return 0

    def unregister(self, address: int) -> int:
        del self.ranges[address]
        return 0


@given(st.integers(1, 300), st.integers(1, 40).map(lambda n: 64 * n), st.integers(1, 200))
def test_registrations_tile_the_pool(
    num_pages: int, page_bytes: int, max_system_pages: int
) -> None:
    most = max_system_pages * PAGE
    each = seam_pages(page_bytes, most)
    parts = registrations(num_pages, page_bytes, each)
    assert sum(part.num_bytes for part in parts) == num_pages * page_bytes
    end = 0
    for part in parts:
        assert part.start == end and part.start % PAGE == 0 and part.start % page_bytes == 0
        end += part.num_bytes
    if each * page_bytes > most:  # one step of the two page sizes is more than the limit
        assert all(n * page_bytes % PAGE for n in range(1, each))


def test_pages_are_registered_until_closed() -> None:
    driver = Driver()
    pinned = PinnedPages(10, PAGE, driver, max_registration_bytes=4 * PAGE)
    assert pinned.pages.shape == (10, PAGE) and pinned.seam_pages == 4
    assert sorted(driver.ranges.values()) == [2 * PAGE, 4 * PAGE, 4 * PAGE]
    assert min(driver.ranges) == pinned.pages.data_ptr()
    pinned.pages[9] = 7
    pinned.close()
    pinned.close()
    assert driver.ranges == {}


def test_an_empty_pool_registers_nothing() -> None:
    driver = Driver()
    assert PinnedPages(0, PAGE, driver).pages.shape == (0, PAGE) and driver.calls == 0


def test_a_refusal_leaves_nothing_registered_and_names_the_knob() -> None:
    driver = Driver(fails=3)
    with pytest.raises(ConfigError, match=rf"pinned {8 * PAGE} of {10 * PAGE} .*host_memory"):
        PinnedPages(10, PAGE, driver, max_registration_bytes=4 * PAGE)
    assert driver.ranges == {}


def write_limit(group: Path, limit: str, used: int) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")


def test_available_memory_is_what_the_control_groups_leave(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert available_host_bytes(proc, cgroups) == 8000 * 1024
    write_limit(cgroups, "max", 1024)
    assert available_host_bytes(proc, cgroups) == 8000 * 1024
    write_limit(cgroups, str(1 << 20), 1024)
    assert available_host_bytes(proc, cgroups) == (1 << 20) - 1024
    (cgroups / "memory.stat").write_text("anon 24\nactive_file 400\ninactive_file 600\n")
    assert available_host_bytes(proc, cgroups) == (1 << 20) - 24, "the file cache is given back"
    (cgroups / "memory.stat").unlink()
    membership = proc / "self" / "cgroup"
    write_limit(cgroups / "jobs" / "one", str(1 << 18), 0)
    for path, limit in {
        "/": (1 << 20) - 1024, "/jobs": (1 << 20) - 1024, "/jobs/one/step": 1 << 18,
        "/not/seen/here": (1 << 20) - 1024, "/../jobs/one": (1 << 20) - 1024,
    }.items():  # fmt: skip
        membership.write_text(f"1:cpu:/elsewhere\n0::{path}\n")
        assert available_host_bytes(proc, cgroups) == limit, path
    write_limit(cgroups / "jobs", str(1 << 10), 1 << 11)
    membership.write_text("0::/jobs/one\n")
    assert available_host_bytes(proc, cgroups) == 0


def test_more_than_there_is_cannot_be_pinned() -> None:
    check_host_bytes(100, 100)
    with pytest.raises(ConfigError, match=r"host_memory is 101 bytes.*100 are available"):
        check_host_bytes(101, 100)
