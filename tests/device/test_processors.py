"""Which processors a process may use, by files like the kernel's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from scalesim.device.processors import HostProcessors, processors

GROUP = "kubepods/pod7/main"


def root_with(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def siblings(*cores: str, name: str = "core_cpus_list") -> dict[str, str]:
    """Topology files of ``cores``, each the list of the processors that share it."""
    files = {}
    for core in cores:
        for processor in core.replace("-", ",").split(","):
            files[f"sys/devices/system/cpu/cpu{processor}/topology/{name}"] = core
    return files


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_hyperthreads_share_a_core(tmp_path: Path, name: str) -> None:
    root = root_with(tmp_path, siblings("0,4", "1,5", "2,6", "3,7", name=name))
    assert processors(root, range(8)) == HostProcessors(8, 4, None)


def test_only_the_cores_of_the_affinity_count(tmp_path: Path) -> None:
    root = root_with(tmp_path, siblings("0-1", "2-3", "4-5"))
    assert processors(root, {0, 1, 2}) == HostProcessors(3, 2, None)


def test_processors_without_a_topology_count_as_cores(tmp_path: Path) -> None:
    assert processors(tmp_path, {0, 3, 17}) == HostProcessors(3, 3, None)


def test_this_process_may_use_a_processor() -> None:
    found = processors()
    assert 1 <= found.num_threads <= found.cores <= found.logical


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        (
            {
                "proc/self/cgroup": f"0::/{GROUP}",
                f"sys/fs/cgroup/{GROUP}/cpu.max": "max 100000",
                "sys/fs/cgroup/kubepods/pod7/cpu.max": "300000 100000",
                "sys/fs/cgroup/kubepods/cpu.max": "800000 100000",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": f"5:memory:/\n4:cpu,cpuacct:/{GROUP}",
                f"sys/fs/cgroup/cpu/{GROUP}/cpu.cfs_quota_us": "150000",
                f"sys/fs/cgroup/cpu/{GROUP}/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            1.5,
        ),
        ({"proc/self/cgroup": "0::/../..", "sys/fs/cgroup/cpu.max": "nonsense"}, None),
    ],
    ids=["version 2", "no limit", "an ancestor's", "version 1", "odd files"],
)
def test_the_lowest_quota_of_the_control_groups(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert processors(root_with(tmp_path, files), range(4)).quota == quota


@pytest.mark.parametrize(
    ("quota", "num_threads"), [(None, 4), (8.0, 4), (2.5, 2), (1.0, 1), (0.5, 1)]
)
def test_a_thread_a_core_and_no_more_than_the_quota_feeds(
    quota: float | None, num_threads: int
) -> None:
    assert HostProcessors(8, 4, quota).num_threads == num_threads
