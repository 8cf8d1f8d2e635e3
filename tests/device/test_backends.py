"""Which device an engine runs on, and what is said where it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scalesim.config import EngineConfig, SchedulerConfig
from scalesim.device import cuda
from scalesim.device.cuda import CudaDevice
from scalesim.engine.backends import CpuBackend, CudaBackend, step_bytes
from scalesim.engine.build import (
    backend_for,
    num_device_pages,
    num_host_pages,
    resolve_device,
    with_settings,
)
from scalesim.engine.engine import Engine
from scalesim.errors import ConfigError
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.pools import pinned
from tests.device.hostile_device import HostileDevice
from tests.engine.world import tiny_engine, tiny_model

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
DEADLINE = policy_named("deadline")


class SmallDevice(HostileDevice):
    """A GPU with so many bytes free."""

    free = 10 << 30

    def free_bytes(self) -> tuple[int, int]:
        return self.free, 80 << 30


def backend(free: int, **settings: Any) -> CudaBackend:
    device = SmallDevice()
    device.free = free
    return CudaBackend(device, tiny_model(), with_settings(None, settings))


@without_gpu
def test_a_gpu_that_is_not_there_is_named() -> None:
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=r"device='cuda': .*; use device='cpu'"):
            Engine("anything", device=name)


def test_auto_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "sees_gpu", lambda: True)
    assert resolve_device("auto") == "cuda:0"
    monkeypatch.setattr(cuda, "sees_gpu", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with tiny_engine() as engine:
        assert engine.device == "cpu"


def test_a_number_that_no_gpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="device='cuda:2': there are 2 GPUs, from 0"):
        CudaDevice.named("cuda:2")


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "", "CPU"])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="device="):
        EngineConfig(device=name)


def test_a_pool_larger_than_the_gpus_memory_names_the_sizes_and_the_knob() -> None:
    gpu = backend(free=10 << 30)
    gpu.check(5 << 30, 0)
    with pytest.raises(ConfigError, match=rf"device_memory is {20 << 30} bytes; cpu has \d+ left"):
        gpu.check(20 << 30, 0)


def test_no_memory_for_a_step_names_the_knobs() -> None:
    with pytest.raises(ConfigError, match=r"lower max_num_batched_tokens, max_num_seqs or"):
        backend(free=1 << 29).default_device_bytes()


def test_more_pinned_memory_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "available_host_bytes", lambda: 1000)
    gpu = backend(free=10 << 30)
    gpu.check(1 << 20, 1000)
    with pytest.raises(ConfigError, match="lower it"):
        gpu.check(1 << 20, 1001)
    assert gpu.default_host_bytes() == 700


def test_a_gpus_link_is_not_slowed() -> None:
    config = EngineConfig(link_bandwidth="2GB")
    with pytest.raises(ConfigError, match="link_bandwidth=2GB slows the copies of device='cpu'"):
        backend_for(tiny_model(), config, SmallDevice())


def test_a_gpu_computes_without_the_cpus_threads() -> None:
    with pytest.raises(ConfigError, match="threads=4 is for device='cpu'"):
        backend_for(tiny_model(), EngineConfig(threads=4), SmallDevice())


def test_auto_sizes() -> None:
    config = EngineConfig()
    assert num_device_pages(config, DEADLINE, 1000, CpuBackend()) == 10**6
    assert num_host_pages(config, DEADLINE, 1000, CpuBackend()) == 4 * 10**6
    gpu = backend(free=10 << 30)
    pages = num_device_pages(config, DEADLINE, 1 << 20, gpu)
    assert 8 << 10 < pages < int(0.95 * (10 << 10))  # the rest is for steps and libraries
    config = EngineConfig(device_memory="2MB", host_memory="3MB")
    assert num_device_pages(config, DEADLINE, 1000, gpu) == 2000
    assert num_host_pages(config, DEADLINE, 1000, gpu) == 3000
    assert num_host_pages(config, policy_named("lru-recompute"), 1000, gpu) == 0


def test_memory_of_steps_grows_with_what_a_step_may_hold() -> None:
    def size(**settings: Any) -> int:
        config = EngineConfig(scheduler=SchedulerConfig(**settings))
        model = tiny_model()
        return step_bytes(model.config, model.model.dtype.itemsize, config)

    assert size(max_num_batched_tokens=4096) > size(max_num_batched_tokens=1024)
    assert size(max_num_seqs=128) > size(max_num_seqs=64)
