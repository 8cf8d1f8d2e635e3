"""The queue: how many requests are open, and how many bytes their bodies have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from scalesim.server.config import ServerLimits
from scalesim.server.errors import ApiError

FOR_ALL = 7 / 8
"""Of places and bytes, the share that whoever comes first may take."""


class OpenRequests:
    """Counts open requests and the bytes of their bodies, and refuses what is above the limits with
    429, before anything was done for it. ``with open_requests:`` takes a place.

    Where there are several keys (``num_keys``), no key can shut out the others: the last eighth is
    kept for keys that have less than an equal share.
    """

    def __init__(self, limits: ServerLimits, num_keys: int = 1) -> None:
        self._limits, self._num_keys = limits, max(1, num_keys)
        self.count = self.bytes = self.refused = 0
        self._count_of: Counter[bytes] = Counter()  # by tenant
        self._bytes_of: Counter[bytes] = Counter()

    def __enter__(self) -> None:
        """Take a place in the queue, until the request has been answered."""
        limit = self._limits.max_open_requests
        if self.count >= limit:
            raise self._refusal(f"{limit} requests are open")
        self.count += 1

    def __exit__(self, *error: object) -> None:
        self.count -= 1

    @contextmanager
    def of(self, tenant: bytes) -> Iterator[None]:
        """As ``with``, for a request of one of several keys."""
        limit = self._limits.max_open_requests
        if self._is_greedy(self.count + 1, self._count_of[tenant] + 1, limit):
            raise self._refusal(f"{self._count_of[tenant]} requests of this key are open")
        with self:
            self._count_of[tenant] += 1
            try:
                yield
            finally:
                _take_from(self._count_of, tenant, 1)

    def add(self, num_bytes: int, tenant: bytes | None = None) -> None:
        """A body has grown by ``num_bytes``."""
        limit, now = self._limits.max_open_bytes, self.bytes + num_bytes
        if now > limit:
            raise self._refusal(f"the bodies of open requests have {limit} bytes")
        if tenant is not None:
            mine = self._bytes_of[tenant] + num_bytes
            if self._is_greedy(now, mine, limit):
                raise self._refusal(f"the bodies of this key's open requests have {mine} bytes")
            self._bytes_of[tenant] = mine
        self.bytes = now

    def remove(self, num_bytes: int, tenant: bytes | None = None) -> None:
        """What was added of a body is gone with its request."""
        self.bytes -= num_bytes
        if tenant is not None:
            _take_from(self._bytes_of, tenant, num_bytes)

    def _is_greedy(self, all_together: int, mine: int, limit: int) -> bool:
        return all_together > FOR_ALL * limit and mine > limit / self._num_keys

    def _refusal(self, why: str) -> ApiError:
        self.refused += 1
        return ApiError(429, f"{why}; try again soon", code="queue_full")


def _take_from(counts: Counter[bytes], tenant: bytes, count: int) -> None:
    counts[tenant] -= count
    if not counts[tenant]:
        del counts[tenant]
