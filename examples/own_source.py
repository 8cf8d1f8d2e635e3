"""A distance source of one's own: a roster knows who is on watch at which tick, so the engine does
too.

    python examples/own_source.py
"""

from __future__ import annotations

from small_model import open_engine

from scalesim.core import AgentId
from scalesim.distance import Estimates, Source

NAMES = tuple(f"guard {number}" for number in range(6))


class Roster(Source):
    """Guard ``i`` of ``n`` is on watch at the ticks ``i``, ``i + n``, and so on."""

    name = "roster"

    def __init__(self, guards: tuple[str, ...]) -> None:
        super().__init__()
        self._guards = guards
        self._seen = -1.0  # the tick of the last watch that was called

    def called(self, agent: AgentId, now: float) -> None:
        self._seen = now

    def changes(self, now: float) -> Estimates:
        """The next watch of each guard; the one of this tick until it was called."""
        first = int(now) + (self._seen == now)
        count = len(self._guards)
        waits = [(index - first) % count for index in range(count)]
        return Estimates(self._guards, [first + wait for wait in waits])


def main() -> None:
    with open_engine(None, device_memory="400kB") as engine:
        guards = [engine.agent(name) for name in NAMES]
        engine.add_source(Roster(NAMES))
        for tick in range(3 * len(NAMES)):
            guard = guards[tick % len(guards)]
            messages = [{"role": "user", "content": f"You are {guard.id}. " * 12}]
            engine.run([guard.request(messages, max_tokens=8)])
            engine.tick()
        score = engine.source_scores()["roster"]
        print(
            f"{score.on_time} watches came when the roster said, {score.early + score.late} did not"
        )


if __name__ == "__main__":
    main()
