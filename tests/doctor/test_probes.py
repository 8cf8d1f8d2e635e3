"""Each probe on whole and on broken parts: odd files and GPUs, wrong kernels, a failing link."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalesim_kernels import select

from scalesim.doctor import Section, Settings, device, disk, host, kernels, link, model, versions
from scalesim.memory.links.link import LinkError, Timeline
from scalesim.memory.links.thread_link import ThreadLink
from scalesim.memory.links.virtual_link import VirtualLink
from tests.engine.world import SHAPE
from tests.memory.copying_link import CopyingLink
from tests.model_folders import write_config, write_dummy_model

PAGE = 4096


def levels(section: Section) -> list[str]:
    return [finding.level for finding in section.findings]


# -- host ----------------------------------------------------------------------------------------

GROUP = "system.slice/run"
FILES = (
    "proc/meminfo",
    "proc/self/cgroup",
    "sys/fs/cgroup/memory.max",
    f"sys/fs/cgroup/{GROUP}/memory.max",
    f"sys/fs/cgroup/{GROUP}/memory.current",
    f"sys/fs/cgroup/{GROUP}/cpu.max",
    "sys/fs/cgroup/memory/memory.limit_in_bytes",
    "sys/kernel/mm/transparent_hugepage/enabled",
)
WORDS = st.sampled_from(
    ["max", "100000", "0::/system.slice/run", "0::/../..", "4:memory:/", "MemTotal: 8 kB",
     "MemAvailable:", "MemAvailable: -3 kB", "always [never]", "9" * 30, "²", ":::", "\x00"]
)  # fmt: skip
TEXTS = st.one_of(st.none(), st.text(max_size=20), st.lists(WORDS, max_size=4).map("\n".join))


def tree(root: Path, texts: dict[str, str | None]) -> Path:
    for name, text in texts.items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    return root


@given(st.fixed_dictionaries(dict.fromkeys(FILES, TEXTS)))
@settings(max_examples=200)
def test_no_system_is_too_odd(texts: dict[str, str | None]) -> None:
    with TemporaryDirectory() as folder:
        section = Section("host")
        host.memory(section, tree(Path(folder), texts))
        host.cores(section, Path(folder))
        host.taken(section, Settings(), False)
    for name, fact in section.facts.items():
        if name.endswith("_bytes"):
            assert fact is None or (isinstance(fact, int) and fact >= 0), (name, fact)


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40), st.booleans())
def test_the_lowest_limit_of_the_groups_counts(
    free: int, outer: int, inner: int, version_2: bool
) -> None:
    files = {"proc/meminfo": f"MemTotal: {2**40} kB\nMemAvailable: {free} kB\n"}
    if version_2:
        base, limit, used = "sys/fs/cgroup", "memory.max", "memory.current"
        files["proc/self/cgroup"] = f"0::/{GROUP}\n"
    else:
        base, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        files["proc/self/cgroup"] = f"3:cpu:/\n4:memory,pids:/{GROUP}\n"
    files |= {f"{base}/{limit}": f"{outer}\n", f"{base}/{used}": "1000\n"}
    files |= {f"{base}/{GROUP}/{limit}": f"{inner}\n", f"{base}/{GROUP}/{used}": "500\n"}
    with TemporaryDirectory() as folder:
        section = Section("host")
        host.memory(section, tree(Path(folder), dict(files)))
        host.taken(section, Settings(), False)
    assert section.facts["container_limit_bytes"] == min(outer, inner)
    room = min(1024 * free, min((inner, 500), (outer, 1000))[0] - (500 if inner <= outer else 1000))
    assert host.room_bytes(section) == max(0, room)
    assert ("warning" in levels(section)) == (room < 5 * 10**9)


@pytest.mark.parametrize(("asked", "is_too_many"), [("2", True), ("1", False), ("", False)])
def test_more_threads_are_asked_for_than_the_container_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, is_too_many: bool
) -> None:
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    files = {"proc/self/cgroup": f"0::/{GROUP}", f"sys/fs/cgroup/{GROUP}/cpu.max": "50000 100000"}
    section = Section("host")
    host.cores(section, tree(tmp_path, dict(files)))
    assert section.facts["container_cores"] == 0.5
    assert section.facts["auto_threads"] == 1
    knobs = [finding.knob for finding in section.findings]
    assert knobs == ["unset OMP_NUM_THREADS: an engine takes 1 by itself"] * is_too_many


def test_pinned_memory_and_the_limit_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    section = Section("host")
    host.memory(section, Path("/"))
    section.facts["locked_limit_bytes"] = 65536
    host.taken(section, Settings(), on_gpu=True)
    assert section.facts["auto_is_pinned"] is True
    assert any("ulimit -l" in finding.knob for finding in section.findings)


# -- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("numpy>=1.26", False),
        ("numpy>=99", True),
        ("no-such-distribution>=1", True),
        ("no-such-distribution>=1; extra == 'report'", False),
        ("no-such-distribution; python_version < '3'", False),
    ],
)
def test_requirements(line: str, bad: bool) -> None:
    section = Section("versions")
    versions.check(section, [line])
    assert levels(section) == ["error"] * bad


@given(st.text())
def test_the_drivers_version(text: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "version"
        path.write_text(text, encoding="utf-8", errors="replace")
        versions.driver_version(path)
        known = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56"
        path.write_text(known)
        assert versions.driver_version(path) == "550.54.15"
    assert versions.driver_version(path) is None


# -- device --------------------------------------------------------------------------------------


class OddGpu:
    """What ``torch.cuda`` says of a GPU: a capability, or a driver that raises."""

    def __init__(self, capability: tuple[int, int] | None) -> None:
        self.capability, self.name = capability, "A GPU"

    def properties(self, index: int) -> OddGpu:
        if self.capability is None:
            raise RuntimeError("CUDA error: unknown error\nCompile with ...")
        return self

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_properties", self.properties)
        patch.setattr(torch.cuda, "get_device_capability", lambda index: self.capability)
        patch.setattr(torch.cuda, "mem_get_info", lambda index: (7, 8))


def test_a_gpu_that_auto_takes_is_said_to_be_unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    OddGpu((9, 0)).install(monkeypatch)
    section = device.probe(Settings())
    assert section.facts["taken"] == "cuda:0"
    assert (section.facts["gpu_0"], section.facts["gpu_0_free_bytes"]) == ("A GPU", 7)
    assert levels(section) == ["warning"]
    assert "not been run on a GPU yet" in section.findings[0].text
    assert "device='cpu'" in section.findings[0].knob
    assert levels(device.probe(Settings("cpu"))) == []


def test_a_gpu_that_does_not_answer_and_an_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    OddGpu(None).install(monkeypatch)
    section = device.probe(Settings("cpu"))
    assert levels(section) == ["error"] and "unknown error" in section.findings[0].text
    OddGpu((7, 5)).install(monkeypatch)
    section = device.probe(Settings("cpu"))
    assert levels(section) == ["warning"] and "7.5" in section.findings[0].text


def test_a_driver_without_a_gpu_for_torch() -> None:
    section = Section("device", {"asked": "auto"})
    device.judge(section, "cpu", has_driver=True)
    assert levels(section) == ["warning"]
    section = Section("device", {"asked": "auto"})
    device.judge(section, "cpu", has_driver=False)
    assert levels(section) == []


# -- kernels -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, on garbage in masked lanes
def test_each_op_is_named_and_right() -> None:
    section = kernels.probe(Settings("cpu"))
    assert section.facts["paged_decode"] == "cpu_paged.InPlaceAttention.paged_decode"
    assert levels(section) == []
    assert section.facts["cases"] == kernels.CASES * len(kernels.PROBLEMS)


@pytest.mark.parametrize(("by_all", "found"), [(2e-5, []), (2e-3, ["warning"])])
def test_threads_that_wait_for_processors(by_all: float, found: list[str]) -> None:
    section = Section("kernels")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        kernels.team(section, lambda threads: 3e-5 if threads == 1 else by_all)
    finally:
        torch.set_num_threads(before)
    assert levels(section) == found
    assert kernels.operation_s(1) > 0


@pytest.mark.parametrize("how", ["raises", "wrong"])
def test_a_kernel_that_raises_or_lies_is_an_error(how: str) -> None:
    good = select("cpu")

    def broken(gate_up: torch.Tensor) -> torch.Tensor:
        if how == "raises":
            raise RuntimeError("PTX was compiled with an unsupported toolchain")
        return good.silu_mul(gate_up) * 1.01

    section = Section("kernels")
    for op in ("rms_norm", "silu_mul"):
        kernels.judge(section, replace(good, silu_mul=broken), op, "cpu", torch.float32)
    assert levels(section) == ["error"]
    assert section.findings[0].text.startswith("silu_mul is wrong on cpu")


# -- link ----------------------------------------------------------------------------------------


@pytest.fixture
def small_pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(link, "POOL_BYTES", {"cpu": 8 << 20})
    yield


@pytest.mark.usefixtures("small_pools")
def test_rates_of_the_real_link() -> None:
    section = link.probe(Settings("cpu"))
    assert section.facts["kind"] == "ThreadLink"
    rates = {name: fact for name, fact in section.facts.items() if name.endswith("_per_s")}
    assert len(rates) == 5 and all(isinstance(rate, int) and rate > 0 for rate in rates.values())


def test_what_is_measured_is_what_was_moved() -> None:
    """On a link of a known rate in virtual time every page must have moved, each way."""
    pools = np.ones((8, PAGE), np.uint8), np.full((8, PAGE), 2, np.uint8)
    virtual = CopyingLink(*pools, 1e9)
    link.carry(virtual, {"in": range(8)})
    assert virtual.now_s == pytest.approx(8 * PAGE / 1e9) and (pools[0] == 2).all()
    pools[0][:] = 3
    link.carry(virtual, {"out": range(0, 8, 2)})
    assert virtual.now_s == pytest.approx(12 * PAGE / 1e9)
    assert (pools[1][::2] == 3).all() and (pools[1][1::2] == 2).all()


def test_a_copy_that_fails_ends_the_measurement() -> None:
    pools = np.ones((8, PAGE), np.uint8), np.ones((4, PAGE), np.uint8)  # the host has too few
    broken = ThreadLink(*pools, Timeline())
    try:
        with pytest.raises(LinkError):
            link.carry(broken, {"in": range(8)})
    finally:
        broken.close()


def test_a_link_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(VirtualLink):
        def wait(self, timeout_s: float) -> bool:
            return False

    monkeypatch.setattr(link, "LONGEST_S", 0.0)
    with pytest.raises(TimeoutError, match="1 copies"):
        link.carry(Dead(PAGE, 1.0), {"in": range(8)})


def test_a_slow_bus_and_small_pages() -> None:
    rates = {
        "host_to_device_chunks_bytes_per_s": 4_000_000_000,
        "host_to_device_pages_bytes_per_s": 1_000_000_000,
    }
    section = Section("link", dict(rates))
    link.judge(section, "cuda")
    assert levels(section) == ["warning", "note"]


# -- model ---------------------------------------------------------------------------------------


def look(folder: Path) -> Section:
    return model.probe(Settings("cpu", str(folder)))


def test_a_whole_model(tmp_path: Path) -> None:
    section = look(write_dummy_model(tmp_path / "model", SHAPE))
    assert section.facts["path"] == "native" and section.facts["weights"] == "complete"
    assert section.facts["page_bytes"] == link.page_bytes_of(
        Settings("cpu", str(tmp_path / "model")), "cpu"
    )
    assert levels(section) == ["warning"]  # no tokenizer


def test_a_model_that_transformers_would_run(tmp_path: Path) -> None:
    write_config(tmp_path, SHAPE)
    raw = json.loads((tmp_path / "config.json").read_text())
    other = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"}
    (tmp_path / "config.json").write_text(json.dumps(raw | other))
    section = look(tmp_path)
    assert section.facts["path"] == "transformers"
    assert levels(section) == ["error", "note", "warning"]  # no weights, and no tokenizer
    assert "GPTNeoXForCausalLM" in section.findings[1].text


def broken_folders() -> dict[str, Any]:
    def config(change: dict[str, Any]) -> Any:
        def write(folder: Path) -> None:
            write_config(folder, SHAPE)
            raw = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(raw | change))

        return write

    return {
        "missing": lambda folder: None,
        "empty": lambda folder: folder.mkdir(),
        "no JSON": lambda folder: tree(folder, {"config.json": "{"}),
        "a list": lambda folder: tree(folder, {"config.json": "[]"}),
        "unknown": config({"architectures": ["MambaForCausalLM"]}),
        "remote code": config({"auto_map": {"AutoModel": "evil.py"}}),
        "no weights": config({}),
        "odd heads": config({"num_attention_heads": 3, "num_key_value_heads": 2}),
        "text for a number": config({"vocab_size": "many"}),
        "too large": config({"vocab_size": 10**12}),
        "no tokenizer inside": lambda folder: tree(
            write_dummy_model(folder, SHAPE), {"tokenizer.json": "{}"}
        ),
        "a template of nonsense": lambda folder: tree(
            write_dummy_model(folder, SHAPE), {"chat_template.jinja": "{% for %}"}
        ),
    }


@pytest.mark.parametrize("how", broken_folders())
def test_what_is_wrong_with_a_folder_is_named(how: str, tmp_path: Path) -> None:
    broken_folders()[how](tmp_path / "model")
    assert "error" in levels(look(tmp_path / "model"))
    assert link.page_bytes_of(Settings("cpu", str(tmp_path / "model")), "cpu") > 0


# -- disk ----------------------------------------------------------------------------------------


def test_rates_of_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "TRIAL_BYTES", 8 << 20)
    section = disk.probe(Settings("cpu", disk=str(tmp_path)))
    rates = {name: fact for name, fact in section.facts.items() if name.endswith("_per_s")}
    assert list(rates) == ["write_bytes_per_s", "read_bytes_per_s", "read_pages_bytes_per_s"]
    assert all(isinstance(rate, int) and rate > 0 for rate in rates.values())
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "TRIAL_BYTES", 1 << 60)
    section = disk.probe(Settings("cpu", disk=str(tmp_path)))
    assert [finding.level for finding in section.findings] == ["warning"]
    assert not list(tmp_path.iterdir())


def test_a_slow_disk_through_the_page_cache() -> None:
    section = Section("disk", {"read_bytes_per_s": 500_000_000, "past the page cache": False})
    disk.judge(section)
    assert [finding.level for finding in section.findings] == ["note", "note"]
    section = Section("disk", {"read_bytes_per_s": 5_000_000_000, "past the page cache": True})
    disk.judge(section)
    assert not section.findings
