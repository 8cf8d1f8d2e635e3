"""Loads as early as possible: what ``deadline`` would do without a start window.

A load starts as soon as the device has room for it or holds something that is needed later, which
is when a turn ends. Measurements of prefetches at the start of a pause found that nearly all of the
gain comes from not being late (vLLM issue 57103); being early costs only residency.
"""

from __future__ import annotations

from scalesim.memory.eviction.policies import Policy
from scalesim.memory.prefetch.planner import Forecast
from scalesim.memory.prefetch.prefetcher import Prefetcher, runs_of

EARLY = Policy("early", order="next_use", host=True, look_ahead=True)


class EarlyLoads(Prefetcher):
    """A prefetcher without a start window."""

    def load(self, forecast: Forecast) -> None:
        residency = self.residency
        while (agent := self.due.peek()) is not None:
            wanted = self.blocks_on_host_only(agent)
            count = sum(blocks for _, blocks in wanted)
            if count:
                next_use, runs = agent.known_next_use(), runs_of(wanted)
                pages = residency.take(count, ahead_of=next_use, runs=runs)
                if not self.start(agent, wanted, pages):
                    self.blocked_by = "pool"
                    return
            self.due.discard(agent)
