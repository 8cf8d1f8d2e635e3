"""The parameters of a workload: number of agents, lengths of texts, quality of hints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HintMode = Literal["exact", "interrupted", "probability", "stale", "inverted", "random", "none"]


@dataclass(frozen=True, slots=True)
class Knobs:
    """The parameters of a workload.

    Tokens of a call: ``shared`` by all agents, ``private`` to an agent, ``new`` in each call, and
    ``output``; ``spread`` is the lognormal sigma of the last two. ``burst``: successive calls each
    time an agent acts. ``growth``: share of new text that stays in the agent's prompt, up to
    ``max_context``. ``active``: mean share of agents that act in a tick, for workloads that leave
    it open; ``sigma``: lognormal spread of the agents' rates. ``shuffled``: a new order in each
    tick. ``opening``: all agents generate one token first.

    ``hints``: the kind of hints about the next call. ``interrupts``: share of calls that come
    before their time (hints ``interrupted``). ``stale``: ticks by which a hint is late (hints
    ``stale``). ``wrong``: share of hints replaced by another draw. ``whole_ticks``: hints do not
    tell the order within a tick.
    """

    agents: int = 200
    ticks: int = 48
    seed: int = 0
    shared: int = 256
    private: int = 640
    new: int = 256
    output: int = 128
    spread: float = 0.0
    burst: int = 1
    growth: float = 0.0
    max_context: int = 8192
    active: float = 0.1
    sigma: float = 0.0
    shuffled: bool = False
    opening: bool = True
    hints: HintMode = "exact"
    interrupts: float = 0.03
    stale: int = 2
    wrong: float = 0.0
    whole_ticks: bool = False

    def pages(self, block_size: int) -> int:
        """The mean state of all agents between their calls, in blocks."""
        own = self.private
        if self.growth:
            own += max(0, self.max_context - self.shared - self.private) // 2
        return self.shared // block_size + self.agents * (own // block_size)

    @property
    def max_len(self) -> int:
        """Tokens of the longest call, prompt and output together."""
        fixed = self.shared + self.private
        said = int((self.new + self.output) * (1 if self.spread == 0 else 4))
        if self.growth == 0:
            return fixed + said
        return max(self.max_context, fixed) + said
