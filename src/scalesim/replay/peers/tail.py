"""Least recently used, except that a short end of each conversation may leave first.

After Tail-Optimised LRU (arXiv 2510.15152): with a budget for the time to the first token, the last
blocks of a conversation that can be computed again within the budget are useless as a cache. So
they leave before anything else, and what remains leaves in the order of its last use. State that
has several owners, or that is not on an agent's newest path, is never such an end.
"""

from __future__ import annotations

from scalesim.memory.eviction.policies import Policy
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import lineage

BUDGET_S = 0.02  # to compute again; the whole of a prefix of 500 tokens, 7 B, on an H100

TAIL_LRU = Policy("tail-lru", order="last_use", host=True, look_ahead=False)


class TailRanking(EvictionRanking):
    """An eviction ranking in which the ends of conversations leave first."""

    def next_use(self, segment: Segment) -> NextUse:
        time = float("inf") if self._is_end(segment) else None
        return NextUse(time, segment.seq, segment.last_use, segment.last_seq)

    def _is_end(self, segment: Segment) -> bool:
        """Whether everything from ``segment`` to the end of its owner's newest path can be computed
        within the budget."""
        owner = segment.owners.sole
        if not isinstance(owner, AgentState) or owner.newest_end is None:
            return False
        tokens = 0
        for above in lineage(owner.newest_end):
            tokens += above.num_blocks * self._tree.block_size
            if self.timing.prefill_s(tokens) > BUDGET_S:
                return False
            if above is segment:
                return True
        return False
