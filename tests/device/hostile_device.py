"""The hostile device: streams and events without a GPU, run in the worst order that they allow.

For tests of code that orders its work through ``device.streams``. Work runs when the host waits for
it, or at moments chosen by a seed; bytes are read then, never when a copy is submitted. Vector
clocks, for each stream and for the host, tell whether two accesses to the same memory are ordered:
an unordered pair raises ``RaceError``, even if the bytes came out right. Torch-free: a tensor is
any object with ``data_ptr``, ``nbytes``, ``copy_`` and ``fill_``.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal, TypeVar

from scalesim.device.streams import Event, Stream, Work
from scalesim.testing.races import RaceError, Races, VectorClock, join

__all__ = ["HostileDevice", "HostileEvent", "HostileStream", "RaceError"]

SCRIBBLE = 0xA5
HOST = "host"
Order = Literal["eager", "lazy", "random"]
Act = TypeVar("Act", bound=Callable[..., Any])


def in_turn(act: Act) -> Act:
    """One thread at a time acts on the device: a model is warmed up on the thread that adds it,
    while the engine's thread runs steps."""

    @wraps(act)
    def alone(self: Any, *given: Any, **named: Any) -> Any:
        with self.turn:
            return act(self, *given, **named)

    return alone  # type: ignore[return-value]


class HostileEvent:
    def __init__(self, device: HostileDevice, stream: HostileStream, clock: VectorClock) -> None:
        self._device, self._stream, self.clock = device, stream, clock
        self.turn = device.turn
        self.reached = False
        self.at_s = 0.0

    @in_turn
    def query(self) -> bool:
        self._device.fidget()
        if self.reached:
            self._device.host_saw(self)
        return self.reached

    @in_turn
    def synchronize(self) -> None:
        self._device.fidget()
        self.run_up_to()
        self._device.host_saw(self)

    def elapsed_s(self, earlier: Event) -> float:
        assert isinstance(earlier, HostileEvent) and self.reached and earlier.reached
        return self.at_s - earlier.at_s

    def run_up_to(self) -> None:
        self._stream.run_until(self)


@dataclass(eq=False, slots=True)
class _Op:
    """One piece of work, a wait for an event, or the reaching of one."""

    work: Work | None = None
    event: HostileEvent | None = None
    clock: VectorClock = field(default_factory=dict)
    is_wait: bool = False


class HostileStream:
    def __init__(self, device: HostileDevice, name: str) -> None:
        self.name, self.clock = name, {name: 0}
        self._device, self.turn = device, device.turn
        self._queue: deque[_Op] = deque()

    @in_turn
    def submit(self, work: Work) -> None:
        self._give(_Op(work, clock=self._tick()))

    @in_turn
    def copy(self, dst: Any, src: Any) -> None:
        """Submit a copy. The destination is scribbled over first, as a copy that has begun may
        leave it."""
        assert dst.nbytes == src.nbytes, (dst.nbytes, src.nbytes)
        if not dst.nbytes:
            return
        device, clock = self._device, self._tick()

        def begin() -> None:
            device.access(dst, is_write=True)
            dst.fill_(SCRIBBLE)

        def end() -> None:
            device.access(src, is_write=False)
            dst.copy_(src)

        self._give(_Op(begin, clock=clock))
        self._give(_Op(end, clock=clock))

    def copy_rows(self, dst: Any, src: Any, rows: Sequence[tuple[int, int, int]]) -> None:
        for row, source, count in rows:
            self.copy(dst[row : row + count], src[source : source + count])

    @in_turn
    def zeros(self, *shape: int, dtype: Any) -> Any:
        """Scribble until the stream has run up to here."""
        assert self._device.empty is not None, "give HostileDevice(empty=...): it makes no tensors"
        made = self._device.empty(shape, dtype)
        made.fill_(SCRIBBLE)
        self.submit(lambda: made.fill_(0))
        return made

    @in_turn
    def record(self, *, timed: bool = False) -> HostileEvent:
        event = HostileEvent(self._device, self, dict(self.clock))
        self._give(_Op(event=event))
        return event

    @in_turn
    def wait(self, event: Event) -> None:
        assert isinstance(event, HostileEvent)
        join(self.clock, event.clock)
        self._give(_Op(event=event, is_wait=True))

    def _tick(self) -> VectorClock:
        join(self.clock, self._device.host_clock)
        self.clock[self.name] += 1
        return dict(self.clock)

    def _give(self, op: _Op) -> None:
        self._queue.append(op)
        self._device.fidget()

    @property
    def is_idle(self) -> bool:
        """Whether no work is left to run."""
        return not self._queue

    @property
    def can_run(self) -> bool:
        if self.is_idle:
            return False
        head = self._queue[0]
        return not head.is_wait or (head.event is not None and head.event.reached)

    def run_one(self) -> None:
        op = self._queue.popleft()
        if op.work is not None:
            self._device.run(self.name, op.clock, op.work)
        elif op.event is not None and not op.is_wait:
            op.event.reached = True
            op.event.at_s = self._device.now_s

    def run_until(self, event: HostileEvent) -> None:
        """Run the work that ``event`` needs, and no other."""
        while not event.reached:
            head = self._queue[0]
            if head.is_wait and head.event is not None:
                head.event.run_up_to()
            self.run_one()


@dataclass(frozen=True, slots=True)
class _Region:
    name: str
    start: int
    num_bytes: int
    grain: int


class HostileDevice:
    """A device whose ``order`` of work is adversarial.

    ``order``: ``"lazy"`` runs only work that the host waits for. ``"random"`` also runs some work
    of some streams whenever the host does anything, chosen by ``seed``: the stream ``favoured``
    first, the stream ``starved`` only when the host waits. ``"eager"`` runs all work at once, as a
    device that is never behind. Each piece of work takes ``second`` seconds of the device's own
    time.
    """

    def __init__(
        self,
        *,
        order: Order = "random",
        seed: int = 0,
        favoured: str = "",
        starved: str = "",
        pinned: Callable[[int], Any] | None = None,
        empty: Callable[[tuple[int, ...], Any], Any] | None = None,
        second: float = 1e-4,
    ) -> None:
        """``pinned`` makes a flat uint8 tensor of a number of bytes, for callers that ask for
        pinned memory; ``empty``, a tensor of a shape and dtype, for callers that ask for zeros."""
        self.place, self.turn = "cpu", threading.RLock()
        self.now_s = 0.0
        self.host_clock: VectorClock = {}
        self.num_ops = 0
        self._order, self._second = order, second
        self._favoured, self._starved = favoured, starved
        self._random = random.Random(seed)
        self._streams: dict[str, HostileStream] = {}
        self._regions: list[_Region] = []
        self._races = Races()
        self.race: RaceError | None = None  # the first, whoever has caught it
        self._running: tuple[str, VectorClock] | None = None
        self._pinned, self.empty = pinned, empty

    # -- the seam -----------------------------------------------------------------------------

    @in_turn
    def stream(self, name: str) -> HostileStream:
        if name not in self._streams:
            self._streams[name] = HostileStream(self, name)
        return self._streams[name]

    def settle(self) -> None:
        """The stream ``"default"`` stands for work that is given to no stream."""
        self.stream("default").record().synchronize()

    def capture(self, stream: Stream, work: Work) -> Work:
        """A graph without a GPU: the same operations on the same buffers."""
        return work

    def pinned(self, num_bytes: int) -> Any:
        assert self._pinned is not None, "give HostileDevice(pinned=...): it makes no tensors"
        return self._pinned(num_bytes)

    @in_turn
    def pause(self) -> None:
        """Let time pass: run one more piece of work, if any may run."""
        self._run_some(1)

    def free_bytes(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def registrar(self) -> HostileDevice:
        return self

    def register(self, address: int, num_bytes: int) -> int:
        return 0

    def unregister(self, address: int) -> int:
        return 0

    # -- running ------------------------------------------------------------------------------

    def fidget(self) -> None:
        """Let the device run some work, after an action of the host."""
        if self._running is not None:
            return
        if self._order == "eager":
            self.run_all()
        elif self._order == "random":
            self._run_some(self._random.choice((0, 0, 1, 2, 5)), self._starved)

    @in_turn
    def run_all(self) -> None:
        while self._run_some(64):
            pass

    def host_saw(self, event: HostileEvent) -> None:
        join(self.host_clock, event.clock)

    def run(self, stream: str, clock: VectorClock, work: Work) -> None:
        self._running, self.num_ops = (stream, clock), self.num_ops + 1
        try:
            work()
        finally:
            self._running = None
        self.now_s += self._second

    def _run_some(self, count: int, starved: str = "") -> int:
        done = 0
        while done < count:
            able = [stream for stream in self._streams.values() if stream.can_run]
            able = [stream for stream in able if stream.name != starved]
            first = [stream for stream in able if stream.name == self._favoured]
            if not able:
                break
            self._random.choice(first or able).run_one()
            done += 1
        return done

    # -- races --------------------------------------------------------------------------------

    def watch(self, name: str, tensor: Any, grain_bytes: int) -> None:
        """Watch accesses to the tensor's memory, in pieces of ``grain_bytes``."""
        region = _Region(name, tensor.data_ptr(), tensor.nbytes, grain_bytes)
        self._regions.append(region)

    @in_turn
    def access(self, tensor: Any, is_write: bool) -> None:
        """Note that the running work reads or writes a contiguous ``tensor``."""
        start = tensor.data_ptr()
        for region in self._regions:
            first, end = start - region.start, start + tensor.nbytes - region.start
            if first < region.num_bytes and end > 0:
                pieces = range(first // region.grain, -(-end // region.grain))
                self.touch(region.name, pieces, is_write)

    def _host_acts(self) -> VectorClock:
        """Advance the host's clock: work submitted before is not ordered after what follows."""
        self.host_clock[HOST] = self.host_clock.get(HOST, 0) + 1
        return self.host_clock

    @in_turn
    def touch(self, name: str, pieces: Iterable[int], is_write: bool) -> None:
        """Note that the running work (the host, if none runs) reads or writes pieces of a
        region."""
        who, clock = self._running or (HOST, self._host_acts())
        label = f"{who}'s work number {clock.get(who, 0)}"
        for piece in pieces:
            try:
                self._races.touch(name, piece, who, clock, label, is_write=is_write)
            except RaceError as error:
                self.race = self.race or error
                raise
