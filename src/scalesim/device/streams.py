"""The device protocol: streams, events and graphs. No torch, no implementation.

``CudaLink`` and ``CudaRunner`` order their work only through this protocol. ``device.cuda``
implements it with CUDA; a test device runs the work in the worst order that is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from scalesim.core import Fence

Work = Callable[[], object]
"""Issues tensor operations, and reads no value of theirs: it must not wait for the device."""


class Event(Protocol):
    """A point in the order of a stream, reached when all work given to the stream before it has
    run."""

    def query(self) -> bool: ...

    def synchronize(self) -> None:
        """Block the host until the event is reached."""

    def elapsed_s(self, earlier: Event) -> float:
        """Seconds of device time since ``earlier``. Both events are timed, and reached."""
        ...


class Stream(Protocol):
    """A queue that runs its work in order. Work of two streams is ordered only by ``wait``, and by
    the host's own waiting."""

    def submit(self, work: Work) -> None:
        """Run ``work`` behind all work given before. Temporary tensors that it makes belong to the
        stream."""

    def copy(self, dst: Any, src: Any) -> None:
        """Copy tensor ``src`` to ``dst``, of the same size; one of them may be in pinned host
        memory."""

    def copy_rows(self, dst: Any, src: Any, rows: Sequence[tuple[int, int, int]]) -> None:
        """For each (row of ``dst``, row of ``src``, count), in order: copy so many rows. Both
        tensors are C-contiguous, and their rows have the same size."""

    def zeros(self, *shape: int, dtype: Any) -> Any:
        """A tensor of zeros, written behind all work given before. Its memory belongs to the
        stream, whose own later work alone may take it again."""
        ...

    def record(self, *, timed: bool = False) -> Event: ...

    def wait(self, event: Event) -> None:
        """Let work that is given from now on run only after ``event``. The host does not wait."""


class Registrar(Protocol):
    """Registers host memory with the driver. 0 means success, as in CUDA."""

    def register(self, address: int, num_bytes: int) -> int: ...

    def unregister(self, address: int) -> int: ...


class Device(Protocol):
    """One device. ``place`` is where its tensors are, as torch names it (``"cuda:0"``,
    ``"cpu"``)."""

    place: str

    def stream(self, name: str) -> Stream:
        """The stream of that name: always the same one."""
        ...

    def settle(self) -> None:
        """Block the host until all work that was given to no stream of ``stream`` has run: what
        weights and tables were made with. Other streams are not ordered behind that work."""

    def capture(self, stream: Stream, work: Work) -> Work:
        """Record ``work`` as a graph, without running it; nothing else is given to ``stream``
        meanwhile. The returned function replays it over the same memory. All graphs recorded on one
        stream are replayed on one stream, this or another, since they may share memory."""
        ...

    def pinned(self, num_bytes: int) -> Any:
        """A uint8 tensor ``[num_bytes]`` in host memory that copies may use asynchronously."""
        ...

    def pause(self) -> None:
        """Pass a moment in which the host can only wait."""

    def free_bytes(self) -> tuple[int, int]:
        """(free, total) bytes of device memory. Memory that torch caches counts as free."""
        ...

    def registrar(self) -> Registrar:
        """What registers host memory for copies of this device."""
        ...


class Fences:
    """The events of the compute queue's steps: what a ``core.Fence`` means on a device.

    The runner records each step that it launches, and removes steps that it has collected; the link
    looks them up.
    """

    def __init__(self) -> None:
        self._events: dict[int, Event] = {}
        self._launched = -1

    def launched(self, step: int, event: Event) -> None:
        """Record that ``event`` is reached at the end of ``step``."""
        self._events[step] = event
        self._launched = step

    def collected(self, step: int) -> None:
        """Forget the events up to ``step``, whose end the host has seen."""
        for seq in [seq for seq in self._events if seq <= step]:
            del self._events[seq]

    def is_launched(self, fence: Fence | None) -> bool:
        """Whether the step of ``fence`` was launched, so that ``event`` can tell its event."""
        return fence is None or fence.seq <= self._launched

    def event(self, fence: Fence | None) -> Event | None:
        """The event to wait for before work that needs ``fence``; ``None`` if the host has seen
        that step end."""
        return None if fence is None else self._events.get(fence.seq)
