"""Whether predictions order agents better than their last use does: counted, before they are used.

Now and then an agent that just called is paired with another of which something is predicted.
Where last use and prediction disagree on who calls first, the next call of either settles it.
"""

from __future__ import annotations

from collections import deque

ENOUGH = 32  # duels before the first verdict
WIN = 0.7
_WEIGHT = 1.0 / 64.0
_MAX_OPEN = 256


class Duels:
    """``won`` is the share of duels that the prediction won, the past decaying."""

    def __init__(self) -> None:
        self.won = 0.5
        self.num_settled = 0
        self._open: dict[int, list[tuple[int, int]]] = {}  # by either agent: (last, predicted)
        self._order: deque[tuple[int, int]] = deque()

    @property
    def is_better(self) -> bool:
        """Whether the predictions have shown that they are worth following."""
        return self.num_settled >= ENOUGH and self.won >= WIN

    def open(self, last: int, predicted: int) -> None:
        """By last use agent ``last`` comes first, by prediction the other."""
        duel = (last, predicted)
        if duel in self._open.get(last, ()):
            return
        if len(self._order) >= _MAX_OPEN:
            self._close(self._order.popleft())
        self._order.append(duel)
        for agent in duel:
            self._open.setdefault(agent, []).append(duel)

    def called(self, agent: int) -> None:
        """Settle what waited for ``agent``."""
        for duel in list(self._open.get(agent, ())):
            won = duel[1] == agent
            self.num_settled += 1
            weight = max(_WEIGHT, 1.0 / (self.num_settled + 1))
            self.won += weight * (won - self.won)
            self._close(duel)
            self._order.remove(duel)

    def _close(self, duel: tuple[int, int]) -> None:
        for agent in duel:
            waiting = self._open[agent]
            waiting.remove(duel)
            if not waiting:
                del self._open[agent]
