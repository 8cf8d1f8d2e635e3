"""The disk link: a link that also copies between the host pool and the slots of the disk tier, on
two threads of its own.

It wraps the link between device and host, whose copies never wait for a disk. A disk that fails is
given up, not waited for: after an error of the system, the direction takes no copies (``rate`` is
0), for good or, on an object store, for a while, and memory goes on without. Each kind of trouble
is told once.

    host pages --writing thread--> slots        "down"
    slots --reading thread--> host pages        "up"
"""

from __future__ import annotations

import logging
import time

from scalesim.core import Bytes2D, Fence
from scalesim.memory.disk.slot_store import BadSlotError, SlotStore
from scalesim.memory.links.copy_threads import CopyThreads
from scalesim.memory.links.link import Copies, Direction, Link, LinkAround, LinkError

_ASSUMED_BYTES_PER_S = 5e8  # until measured: a disk on SATA
_FIRST_TICKET = 1 << 48  # the wrapped link numbers its own from below
_WAIT_S = 0.0005  # between two looks at the wrapped link, while both have copies
_SLOW_S = 5.0
_log = logging.getLogger(__name__)


class DiskThreads(CopyThreads):
    """Copies between ``host``, uint8 ``[num_pages, page_bytes]``, and slots of ``store``;
    ``bandwidth`` as in ``CopyThreads``."""

    def __init__(self, store: SlotStore, host: Bytes2D, bandwidth: float | None = None) -> None:
        self.store, self._host = store, host
        self._resumes_s: dict[Direction, float] = {}  # directions that were given up
        self._told: set[str] = set()
        self._began_s: dict[Direction, float] = {}
        rate = _ASSUMED_BYTES_PER_S
        super().__init__(host.shape[1], {"up": rate, "down": rate}, None, bandwidth, _FIRST_TICKET)

    def copy(self, copies: Copies) -> None:
        """Copy the pages of ``copies``. Called on a thread of the link."""
        direction = copies.direction
        if not self.rate(direction):
            raise LinkError("the disk was given up")
        self._began_s[direction] = time.perf_counter()
        try:
            if direction == "down":
                self.store.write(copies.disk_pages, self._host, copies.host_pages)
            else:
                self.store.read(copies.disk_pages, self._host, copies.host_pages)
        except BadSlotError as error:
            self._tell("bad", f"{error}; damaged state is computed again")
            raise
        except OSError as error:
            self._resumes_s[direction] = time.perf_counter() + self.store.retry_s
            what = "written to" if direction == "down" else "read"
            self._tell(direction, f"the disk cannot be {what} ({error}); going on without")
            raise
        finally:
            del self._began_s[direction]

    def rate(self, direction: Direction) -> float:
        resumes_s = self._resumes_s.get(direction)
        is_given_up = resumes_s is not None and time.perf_counter() < resumes_s
        return 0.0 if is_given_up else super().rate(direction)

    def look(self) -> None:
        """Tell of a copy that takes very long. To be called from time to time."""
        now_s = time.perf_counter()
        for direction, began_s in list(self._began_s.items()):
            if now_s - began_s > _SLOW_S:
                self._tell(
                    f"slow {direction}",
                    f"a copy {direction} takes more than {_SLOW_S:g} s; requests that need what is "
                    "on the disk wait, or compute it again",
                )

    def _tell(self, kind: str, what: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            _log.warning("disk %s: %s", self.store.where, what)


class DiskLink(LinkAround):
    """Copies ``"up"`` and ``"down"`` between ``host`` and ``store``, and gives the others to the
    inner ``link``. ``bandwidth``: the most bytes a second of the disk in each direction."""

    def __init__(
        self, link: Link, store: SlotStore, host: Bytes2D, bandwidth: float | None = None
    ) -> None:
        super().__init__(link)
        self._disk = DiskThreads(store, host, bandwidth)

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        return self._of(copies.direction).submit(copies, after, urgent=urgent)

    def poll(self) -> list[tuple[int, Exception | None]]:
        if self._disk.is_idle:
            return self.link.poll()
        self._disk.look()
        return [*self.link.poll(), *self._disk.poll()]

    def cancel(self, ticket: int) -> bool:
        return (self._disk if ticket >= _FIRST_TICKET else self.link).cancel(ticket)

    def wait(self, timeout_s: float) -> bool:
        end_s = time.perf_counter() + timeout_s
        while not self._disk.is_idle:
            left_s = end_s - time.perf_counter()
            if self.link.wait(0.0) or self._disk.wait(min(_WAIT_S, max(0.0, left_s))):
                return True
            if left_s <= 0.0:
                return False
        return self.link.wait(max(0.0, end_s - time.perf_counter()))

    def queued_bytes(self, direction: Direction) -> int:
        return self._of(direction).queued_bytes(direction)

    def rate(self, direction: Direction) -> float:
        return self._of(direction).rate(direction)

    def close(self) -> None:
        self.link.close()
        self._disk.close()
        self._disk.store.close()

    def _of(self, direction: Direction) -> Link:
        return self._disk if direction in ("up", "down") else self.link
