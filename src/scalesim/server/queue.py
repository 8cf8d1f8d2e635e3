"""The queue: how many requests are open, and how many bytes their bodies have."""

from __future__ import annotations

from scalesim.server.config import ServerLimits
from scalesim.server.errors import ApiError


class OpenRequests:
    """Counts open requests and the bytes of their bodies, and refuses what is above the limits with
    429, before anything was done for it. ``with open_requests:`` takes a place."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self.count = self.bytes = self.refused = 0

    def __enter__(self) -> None:
        """Take a place in the queue, until the request has been answered."""
        limit = self._limits.max_open_requests
        if self.count >= limit:
            self.refused += 1
            raise ApiError(429, f"{limit} requests are open; try again soon", code="queue_full")
        self.count += 1

    def __exit__(self, *error: object) -> None:
        self.count -= 1

    def add(self, num_bytes: int) -> None:
        """A body has grown by ``num_bytes``."""
        limit = self._limits.max_open_bytes
        if self.bytes + num_bytes > limit:
            self.refused += 1
            message = f"the bodies of open requests have {limit} bytes; try again soon"
            raise ApiError(429, message, code="queue_full")
        self.bytes += num_bytes

    def remove(self, num_bytes: int) -> None:
        """What was added of a body is gone with its request."""
        self.bytes -= num_bytes
