"""Compilation of kernels for a GPU that is not present.

``with compiled(target) as found`` replaces Triton's driver by one that names ``target`` and
launches nothing; ``found`` lists every kernel that calls inside compile. So the examined kernels
are those that serving would launch, with the same launchers, tiles and specializations, ScaleSim's
or a user's. Not thread-safe, and not for a process that runs kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from .launch import check, interpreted


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU architecture and the shared memory that one program may have."""

    name: str
    gpu: GPUTarget
    shared_bytes: int


# Shared memory: CUDA C++ programming guide, table of compute capabilities (8.0: 163 KB, 9.0: 227 KB
# a block); AMD CDNA 3 ISA, LDS: 64 KiB a workgroup.
TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", GPUTarget("cuda", 80, 32), 163 << 10),
        Target("sm_90", GPUTarget("cuda", 90, 32), 227 << 10),
        Target("gfx942", GPUTarget("hip", "gfx942", 64), 64 << 10),
    )
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """One compiled kernel. ``files`` by extension: ``ptx`` and ``cubin``, or ``amdgcn``."""

    name: str
    hash: str
    shared_bytes: int
    files: dict[str, Path]


class NoDriver(DriverBase):  # type: ignore[misc]
    """Answers what Triton asks before a launch, and launches nothing."""

    numbers = itertools.count()

    def __init__(self, target: Target) -> None:
        self._target = target
        self._device = f"{target.name} {next(self.numbers)}"  # Triton caches kernels by device
        self.num_launches = 0
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (None, None, 0, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": target.shared_bytes},
        )

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        def count(*_args: Any) -> None:
            self.num_launches += 1

        return count

    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("nothing is launched")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing is launched")

    def get_active_torch_device(self) -> Any:
        raise NotImplementedError("nothing is launched")

    def get_current_target(self) -> GPUTarget:
        return self._target.gpu

    def get_current_device(self) -> str:
        return self._device

    def get_current_stream(self, device: Any) -> int:
        return 0


@contextmanager
def compiled(target: Target) -> Iterator[list[Compiled]]:
    """A list that grows with each kernel that is compiled inside (or found in the cache on disk).

    Nothing that was compiled before counts as compiled. Inside, calls raise what Triton raises for
    a kernel that does not compile, or that needs more shared memory than the target has. Raises
    ``ValueError`` in the interpreter.
    """
    check(not interpreted(), "TRITON_INTERPRET is set: nothing is compiled in the interpreter")
    found: list[Compiled] = []

    def listen(
        *, src: Any, metadata: dict[str, Any], metadata_group: dict[str, str], **_: Any
    ) -> None:
        files = {Path(name).suffix[1:]: Path(path) for name, path in metadata_group.items()}
        found.append(Compiled(src.name, metadata["hash"], metadata["shared"], files))

    driver, knobs = triton.runtime.driver, triton.knobs
    before = driver._active
    with knobs.compilation.scope():
        knobs.compilation.listener = listen
        driver.set_active(NoDriver(target))
        try:
            yield found
        finally:
            driver._active = before
