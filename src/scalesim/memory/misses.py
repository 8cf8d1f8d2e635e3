"""Misses: why an agent's state was not on the device when the agent called. The last miss of each
agent is always kept.

The engine notes which next use was expected when an agent calls; admission notes what was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from scalesim.core import AgentId
from scalesim.memory.lease import Lease
from scalesim.memory.prefetch.planner import BlockedBy
from scalesim.memory.timing import Timing
from scalesim.memory.tree.segment import Segment, lineage

Cause: TypeAlias = Literal[
    "no hint",
    "hint late",
    "link full",
    "pool small",
    "prompt changed",
    "adapter changed",
    "hint ignored",
]
_ADVICE: dict[str, str] = {
    "no hint": "nothing was known of this call; say expect(), or add a source",
    "hint late": "it was expected later than it came, or told too shortly before",
    "link full": "other loads were under way; fewer bytes an agent, or a faster link",
    "pool small": "nothing that is used later could leave; raise device_memory or host_memory",
    "prompt changed": "it shares only its beginning with the call before; move what changes back",
    "adapter changed": "KV belongs to the adapter that computed it",
    "hint ignored": "nothing was missing so far, but what was said of it does not count",
}


class Miss(NamedTuple):
    """``tick``: when, on the simulation's clock. ``token``: up to which token of the prompt the
    state was found anywhere. ``expected``: the next use that was known, ``None`` = unknown.
    ``load_tokens``, ``lost_tokens``: what had to be waited for, what must be computed again.
    ``unheard``: what was said of the agent and did not count, and who says nothing; without any
    miss, the cause is "hint ignored"."""

    cause: Cause
    tick: float
    token: int
    expected: float | None
    load_tokens: int
    lost_tokens: int
    unheard: tuple[str, ...] = ()

    @classmethod
    def without(cls, unheard: Sequence[str], now: float) -> Miss:
        """No miss, but ``unheard`` hints in vain, as of tick ``now``."""
        return cls("hint ignored", now, 0, None, 0, 0, tuple(unheard))

    def __str__(self) -> str:
        return "; ".join([self._what(), *self.unheard])

    def _what(self) -> str:
        where = f" at token {self.token}" if self.cause == "prompt changed" else ""
        if self.cause == "hint ignored":
            return f"tick {self.tick:g}: {self.cause}: {_ADVICE[self.cause]}"
        known = "unknown" if self.expected is None else f"tick {self.expected:g}"
        return (
            f"tick {self.tick:g}: {self.cause}{where} ({self.load_tokens} tokens loaded on demand, "
            f"{self.lost_tokens} computed again; expected: {known}): {_ADVICE[self.cause]}"
        )


class Misses:
    """The last miss of each agent that had one."""

    def __init__(self, timing: Timing, block_size: int) -> None:
        self.last: dict[AgentId, Miss] = {}
        self._expected: dict[AgentId, float | None] = {}
        self._timing, self._block_size = timing, block_size

    def calls(self, agent: AgentId, expected: float | None) -> None:
        """``agent`` called; this is what was known before."""
        self._expected[agent] = expected

    def forget(self, agent: AgentId) -> None:
        self.last.pop(agent, None)
        self._expected.pop(agent, None)

    def released(self, lease: Lease) -> None:
        """``lease`` leaves its shared path to its agent."""
        if lease.agent is not None:
            lease.agent.leave(lease.num_shared)

    def looked_up(
        self, lease: Lease, found: Segment, waiting: int, spared: int, blocked_by: BlockedBy
    ) -> None:
        """The prompt was found up to ``found``. Of its blocks, ``waiting`` are not on the device
        yet, and the last ``spared`` are computed again instead of loaded; ``blocked_by`` is what
        kept the planner from loads. Called before the agent's path is replaced by this one."""
        agent = lease.agent
        if agent is None:
            return
        expected = self._expected.pop(agent.id, None)
        if agent.newest is None:
            return
        before = agent.newest
        kept = before.parent is not None
        there = sum(segment.num_blocks for segment in lineage(before)) if kept else 0
        dropped = agent.num_left - there
        goes_on = kept and before in lineage(found)
        if goes_on and not waiting and not spared and dropped <= 0:
            return
        cause: Cause
        if waiting or spared:
            cause = self.why_late(expected, blocked_by)
        elif not kept or (goes_on and dropped > 0):
            cause = "pool small"
        elif _digest_of(before) != (lease.branch.mark[:-2] if lease.branch is not None else b""):
            cause = "adapter changed"
        else:
            cause = "prompt changed"
        lost = max(0, dropped) + (0 if goes_on else self._blocks_behind(before, found)) + spared
        token = lease.num_cached + spared * self._block_size
        size = self._block_size
        now = self._timing.now
        self.last[agent.id] = Miss(cause, now, token, expected, waiting * size, lost * size)

    def num_lost(self, lease: Lease, found: Segment, num_tokens: int) -> int:
        """Blocks of the prompt (``num_tokens``), known up to ``found``, that the agent's last
        request had left and that are gone, if the prompt still begins with them; of tokens that are
        gone nobody can say so."""
        agent = lease.agent
        if agent is None or agent.newest is None:
            return 0
        there = lineage(found)
        if agent.newest.parent is not None and agent.newest not in there:
            return 0
        num_left = min(agent.num_left, num_tokens // self._block_size)
        return max(0, num_left - sum(segment.num_blocks for segment in there))

    def why_late(self, expected: float | None, blocked_by: BlockedBy) -> Cause:
        if expected is None:
            return "no hint"
        if expected >= self._timing.now + 1.0 or blocked_by is None:
            return "hint late"
        return "link full" if blocked_by == "link" else "pool small"

    @staticmethod
    def _blocks_behind(before: Segment, end: Segment) -> int:
        """Blocks of the path to ``before`` that the path to ``end`` does not share."""
        shared = set(lineage(end))
        return sum(segment.num_blocks for segment in lineage(before) if segment not in shared)


def _digest_of(end: Segment) -> bytes:
    """What the KV of the path to ``end`` belongs to beside its tokens: an adapter's digest."""
    return next((segment.mark[:-2] for segment in lineage(end) if segment.mark), b"")
