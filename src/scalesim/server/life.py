"""The server's life: starting, ready, draining; or failed, when the engine could not start or has
died. Whoever is not ready answers 503, with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from scalesim.server.errors import ApiError

State = Literal["starting", "ready", "draining", "failed"]
_WHY = {
    "starting": "the model is still loading; try again soon",
    "draining": "the server is stopping; try again elsewhere, or later",
    "failed": "the engine has stopped; restart the server",
}
STALLED_S = 60.0


class Life:
    """Which state the server is in. ``steps`` counts what the engine has done, ``num_open`` the
    calls that wait for it: no step in a minute while calls wait is a stall."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.state: State = "starting"
        self._clock = clock
        self._steps, self._since_s = -1, 0.0

    def check(self) -> None:
        """Raise 503 unless the server is ready."""
        if self.state != "ready":
            raise ApiError(503, _WHY[self.state], code=self.state)

    def health(self, steps: int, num_open: int) -> str:
        """The state in one word: also ``stalled``."""
        if self.state == "ready" and num_open and steps == self._steps:
            return "stalled" if self._clock() - self._since_s > STALLED_S else "ready"
        self._steps, self._since_s = steps, self._clock()
        return self.state
