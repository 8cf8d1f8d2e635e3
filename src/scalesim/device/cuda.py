"""CUDA behind the protocol of ``streams``. Kept thin, since this file can be tested only on a GPU.

Used by ``engine.build`` and the GPU benchmarks.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import torch

from scalesim.device.row_copies import Rows, copy_rows, runtime_memcpy
from scalesim.device.streams import Event, Stream, Work
from scalesim.errors import ConfigError

_PAUSE_S = 20e-6


class CudaEvent:
    """An ``Event`` of CUDA, recorded when it is made."""

    def __init__(self, stream: torch.cuda.Stream, timed: bool) -> None:
        self._event = torch.cuda.Event(enable_timing=timed)
        self._event.record(stream)

    @property
    def raw(self) -> torch.cuda.Event:
        return self._event

    def query(self) -> bool:
        return bool(self._event.query())

    def synchronize(self) -> None:
        self._event.synchronize()

    def elapsed_s(self, earlier: Event) -> float:
        assert isinstance(earlier, CudaEvent)
        return float(earlier.raw.elapsed_time(self._event)) * 1e-3


class CudaStream:
    """A ``Stream`` of CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.raw = torch.cuda.Stream(device)
        self._device = device

    def submit(self, work: Work) -> None:
        with torch.cuda.stream(self.raw), torch.inference_mode():
            work()

    def copy(self, dst: Any, src: Any) -> None:
        with torch.cuda.stream(self.raw), torch.inference_mode():
            dst.copy_(src, non_blocking=True)

    def copy_rows(self, dst: Any, src: Any, rows: Rows) -> None:
        memcpy = runtime_memcpy(torch.version.cuda)
        if memcpy is None:
            for row, source, count in rows:
                self.copy(dst[row : row + count], src[source : source + count])
        else:
            with torch.cuda.device(self._device):  # of the calling thread
                copy_rows(memcpy, dst, src, rows, self.raw.cuda_stream)

    def zeros(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        with torch.cuda.stream(self.raw):
            return torch.zeros(shape, dtype=dtype, device=self._device)

    def record(self, *, timed: bool = False) -> CudaEvent:
        return CudaEvent(self.raw, timed)

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.raw.wait_event(event.raw)


_PORTABLE = 1  # cudaHostRegisterPortable: pinned for all GPUs of the process


class CudaRegistrar:
    """A ``Registrar`` that uses the CUDA runtime that torch loaded."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def register(self, address: int, num_bytes: int) -> int:
        return self._call("cudaHostRegister", address, num_bytes, _PORTABLE)

    def unregister(self, address: int) -> int:
        return self._call("cudaHostUnregister", address)

    def _call(self, name: str, *arguments: int) -> int:
        """Call the runtime, on any thread. The runtime keeps the error of a call that it refuses
        for the next check of a launch, which would blame that launch: so one is made here."""
        with torch.cuda.device(self._device):
            error = int(getattr(torch.cuda.cudart(), name)(*arguments))
            if error:
                with suppress(RuntimeError):
                    torch.zeros(1, device=self._device)
            return error


def sees_gpu() -> bool:
    """Whether torch can use a GPU."""
    return torch.cuda.is_available()


class CudaDevice:
    """One GPU. Raises ``ConfigError`` if there is no GPU of that index."""

    def __init__(self, index: int = 0) -> None:
        if not torch.cuda.is_available():
            built = torch.version.cuda
            reason = "torch sees no GPU" if built else "this torch is built without CUDA"
            raise ConfigError(f"device='cuda': {reason}; use device='cpu', or install torch's CUDA")
        if not 0 <= index < torch.cuda.device_count():
            raise ConfigError(
                f"device='cuda:{index}': there are {torch.cuda.device_count()} GPUs, from 0"
            )
        self.place = f"cuda:{index}"
        self._device = torch.device("cuda", index)
        torch.cuda.set_device(self._device)
        self._streams: dict[str, CudaStream] = {}
        self._first_graphs: dict[CudaStream, torch.cuda.CUDAGraph] = {}

    @classmethod
    def named(cls, name: str) -> CudaDevice:
        """``"cuda"`` or ``"cuda:N"``."""
        return cls(torch.device(name).index or 0)

    def stream(self, name: str) -> CudaStream:
        if name not in self._streams:
            self._streams[name] = CudaStream(self._device)
        return self._streams[name]

    def settle(self) -> None:
        torch.cuda.default_stream(self._device).synchronize()

    def capture(self, stream: Stream, work: Work) -> Work:
        """See ``Device.capture``. The graphs captured on one stream share the memory pool of the
        first, which stays, as torch takes no pool whose graphs have all gone. Not by
        ``torch.cuda.graph``, which waits for the whole device first: some graphs are captured while
        steps and copies run."""
        assert isinstance(stream, CudaStream)
        graph, first = torch.cuda.CUDAGraph(), self._first_graphs.get(stream)
        with (
            torch.inference_mode(),
            torch.cuda.device(self._device),  # of the calling thread, which may be a new one
            torch.cuda.stream(stream.raw),
        ):
            # other threads (a copying one, the caller's) may use CUDA meanwhile
            graph.capture_begin(None if first is None else first.pool(), "thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        self._first_graphs.setdefault(stream, graph)
        return graph.replay

    def pinned(self, num_bytes: int) -> torch.Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True)

    def pause(self) -> None:
        time.sleep(_PAUSE_S)

    def registrar(self) -> CudaRegistrar:
        return CudaRegistrar(self._device)

    def free_bytes(self) -> tuple[int, int]:
        """(free, total) bytes of GPU memory. Memory that torch caches counts as free."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        return int(free), int(total)
