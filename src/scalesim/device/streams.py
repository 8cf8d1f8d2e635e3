"""The seam to a device's queues of work: streams, events, graphs. Torch-free; no implementation.

``CudaLink`` and ``CudaRunner`` say through it what runs after what, and nothing else orders their
work. ``device.cuda`` puts it on CUDA; a test device runs it in the worst legal order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from scalesim.core import Fence

Work = Callable[[], object]
"""Issues tensor operations, and reads no value of theirs: it must not wait for the device."""


class Event(Protocol):
    """A point in a stream's order: reached when all that was given to the stream before it has
    run."""

    def query(self) -> bool: ...

    def synchronize(self) -> None:
        """Block the host until it is reached."""

    def elapsed_s(self, earlier: Event) -> float:
        """Seconds of device time since ``earlier``; both timed, and reached."""
        ...


class Stream(Protocol):
    """An in-order queue. Two streams are unordered but for ``wait``, and the host's own waits."""

    def submit(self, work: Work) -> None:
        """Run ``work`` behind all that was given before. Temporaries that it makes are its own."""

    def copy(self, dst: Any, src: Any) -> None:
        """Copy a tensor to another of the same size, one of them perhaps in pinned memory."""

    def record(self, *, timed: bool = False) -> Event: ...

    def wait(self, event: Event) -> None:
        """What is given from now on runs only after ``event``; the host does not wait."""


class Registrar(Protocol):
    """Makes host memory known to the driver. 0 is success, as in CUDA."""

    def register(self, address: int, num_bytes: int) -> int: ...

    def unregister(self, address: int) -> int: ...


class Device(Protocol):
    """``place`` is where its tensors live, as torch names it (``"cuda:0"``, ``"cpu"``)."""

    place: str

    def stream(self, name: str) -> Stream:
        """The stream of that name; the same one for the same name."""
        ...

    def capture(self, stream: Stream, work: Work) -> Work:
        """Record ``work`` without running it; what is returned replays it over the same memory, and
        is to be given to ``stream``."""
        ...

    def pinned(self, num_bytes: int) -> Any:
        """A uint8 tensor ``[num_bytes]`` of host memory that copies run to and from behind the
        host's back."""
        ...

    def pause(self) -> None:
        """Let a moment pass while the host has nothing to do but wait."""

    def free_bytes(self) -> tuple[int, int]:
        """(free, total) bytes of its memory, what torch keeps cached counted as free."""
        ...

    def registrar(self) -> Registrar:
        """Who pins host memory for its copies."""
        ...


class Fences:
    """Which event stands for which step of the compute queue: what ``core.Fence`` means on a
    device.

    The runner records each launched step and retires those that it collected; the link asks.
    """

    def __init__(self) -> None:
        self._events: dict[int, Event] = {}
        self._launched = -1

    def launched(self, step: int, event: Event) -> None:
        self._events[step] = event
        self._launched = step

    def collected(self, step: int) -> None:
        """The host has waited for ``step``: nothing needs to wait for it any more."""
        for seq in [seq for seq in self._events if seq <= step]:
            del self._events[seq]

    def is_launched(self, fence: Fence | None) -> bool:
        """Whether ``event`` can answer: a step that is yet to be launched has none."""
        return fence is None or fence.seq <= self._launched

    def event(self, fence: Fence | None) -> Event | None:
        """What to wait for before work that needs ``fence``; ``None`` if the host has seen it
        pass."""
        return None if fence is None else self._events.get(fence.seq)
