"""Misses: why an agent's state was not on the device when the agent called. The last miss of each
agent is kept.

The engine records which next use was expected when an agent calls; admission records what was
found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from scalesim.core import AgentId
from scalesim.memory.lease import WEIGHTS, AttachmentSpec, Lease
from scalesim.memory.prefetch.planner import BlockedBy
from scalesim.memory.timing import Timing
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import lineage

Cause: TypeAlias = Literal[
    "no hint",
    "hint late",
    "link full",
    "pool small",
    "disk busy",
    "prompt changed",
    "adapter changed",
    "model changed",
    "hint ignored",
]
Digests: TypeAlias = Mapping[str, bytes]
_ADVICE: dict[str, str] = {
    "no hint": "nothing was known of this call; say expect(), or add a source",
    "hint late": "it was expected later than it came, or told too shortly before",
    "link full": "other loads were under way; fewer bytes an agent, or a faster link",
    "pool small": "nothing that is used later could leave; raise device_memory or host_memory",
    "disk busy": "other reads were under way; more host_memory, or a faster disk",
    "prompt changed": "it shares only its beginning with the call before; move what changes back",
    "adapter changed": "KV belongs to the content of the adapter that computed it",
    "model changed": "KV belongs to the weights of the model that computed it",
    "hint ignored": "nothing was missing so far, but what was said of it does not count",
}


class Miss(NamedTuple):
    """Why state was missing at one call.

    ``tick``: when, on the simulation's clock. ``token``: up to which token of the prompt state was
    found on any tier. ``expected``: the next use that was known, ``None`` = unknown.
    ``load_tokens``: tokens whose KV the call had to wait for. ``lost_tokens``: tokens to be
    computed again. ``unheard``: hints about the agent that did not count, and sources that say
    nothing; if nothing was missing, ``cause`` is "hint ignored". ``waits``: the pages that the call
    had to wait for, by kind of state: "KV", "adapter", "weights"; or "values", where the agent read
    one that no pool had whole.
    """

    cause: Cause
    tick: float
    token: int
    expected: float | None
    load_tokens: int
    lost_tokens: int
    unheard: tuple[str, ...] = ()
    waits: tuple[tuple[str, int], ...] = ()

    @classmethod
    def without(cls, unheard: Sequence[str], now: float) -> Miss:
        """A record of hints that did not count, as of tick ``now``, for an agent without a miss."""
        return cls("hint ignored", now, 0, None, 0, 0, tuple(unheard))

    def __str__(self) -> str:
        return "; ".join([self._what(), *self.unheard])

    def _what(self) -> str:
        where = f" at token {self.token}" if self.cause == "prompt changed" else ""
        if self.cause == "hint ignored":
            return f"tick {self.tick:g}: {self.cause}: {_ADVICE[self.cause]}"
        known = "unknown" if self.expected is None else f"tick {self.expected:g}"
        waits = ", ".join(f"{pages} pages of {kind}" for kind, pages in self.waits)
        return (
            f"tick {self.tick:g}: {self.cause}{where} ({self.load_tokens} tokens loaded on demand, "
            f"{self.lost_tokens} computed again; waited for: {waits or 'nothing'}; expected: "
            f"{known}): {_ADVICE[self.cause]}"
        )


class Misses:
    """The last miss of each agent that had one."""

    def __init__(self, timing: Timing) -> None:
        self.last: dict[AgentId, Miss] = {}
        self._expected: dict[AgentId, float | None] = {}
        self._computed_with: dict[AgentId, Digests] = {}  # the path that the last call left
        self._timing = timing

    def record_call(self, agent: AgentId, expected: float | None) -> None:
        """Record that ``agent`` called; ``expected`` is the next use that was known before."""
        self._expected[agent] = expected

    def forget(self, agent: AgentId) -> None:
        self.last.pop(agent, None)
        self._expected.pop(agent, None)
        self._computed_with.pop(agent, None)

    def record_release(self, lease: Lease) -> None:
        """Record the length of the path that ``lease`` leaves to its agent, and what it was
        computed with."""
        if lease.agent is None or lease.agent.is_forgotten:
            return
        lease.agent.record_release(lease.num_shared)
        self._computed_with[lease.agent.id] = digests_of(each.spec for each in lease.attachments)

    def record_lookup(
        self,
        lease: Lease,
        found: Segment,
        waiting: int,
        spared: int,
        blocked_by: BlockedBy,
        attached: Sequence[tuple[AttachmentSpec, int]],
    ) -> None:
        """Record a lookup that found the prompt cached up to ``found``. Of its blocks, ``waiting``
        are not on the device yet, and the last ``spared`` are computed again instead of loaded.
        ``blocked_by`` is what kept the planner from loads. ``attached``: each attachment, with the
        number of its pages that are not on the device yet. To be called before the agent's newest
        path changes."""
        agent = lease.agent
        if agent is None:
            return
        expected = self._expected.pop(agent.id, None)
        waits = [("KV", waiting), *((spec.kind, pages) for spec, pages in attached)]
        waits = [(kind, pages) for kind, pages in waits if pages]
        now, size = self._timing.now, lease.block_size
        before = agent.newest_end
        if before is None:
            if waits:
                cause = self.why_late(expected, blocked_by)
                self.last[agent.id] = Miss(cause, now, 0, expected, 0, 0, waits=tuple(waits))
            return
        kept = before.parent is not None
        there = sum(segment.num_blocks for segment in lineage(before)) if kept else 0
        dropped = agent.last_path_blocks - there
        goes_on = kept and before in lineage(found)
        if goes_on and not waits and not spared and dropped <= 0:
            return
        changed = self._change(agent.id, digests_of(spec for spec, _ in attached))
        if changed is not None and not goes_on:
            cause = changed
        elif waits or spared:
            cause = self.why_late(expected, blocked_by)
        elif not kept or (goes_on and dropped > 0):
            cause = "pool small"
        else:
            cause = "prompt changed"
        left = max(0, dropped) + (0 if goes_on else self._blocks_behind(before, found))
        lost_tokens = left * before.block_size + spared * size
        token = lease.num_cached + spared * size
        self.last[agent.id] = Miss(
            cause, now, token, expected, waiting * size, lost_tokens, waits=tuple(waits)
        )

    def record_read(self, agent: AgentState, num_pages: int, blocked_by: BlockedBy) -> None:
        """Record that a value of ``agent`` was read of which no pool has all ``num_pages``."""
        cause = self.why_late(agent.next_use, blocked_by)
        self.last[agent.id] = Miss(
            cause, self._timing.now, 0, agent.next_use, 0, 0, waits=(("values", num_pages),)
        )

    def _change(self, agent: AgentId, digests: Digests) -> Cause | None:
        """What of that with which the last path of ``agent`` was computed is another one now."""
        before = self._computed_with.get(agent, digests)
        if before.get(WEIGHTS) != digests.get(WEIGHTS):
            return "model changed"
        return "adapter changed" if before != digests else None

    def num_lost(self, lease: Lease, found: Segment, num_tokens: int) -> int:
        """The number of blocks that the agent's last request left and that are no longer cached, if
        the prompt (``num_tokens`` tokens, cached up to ``found``) still begins with them. Of tokens
        that were dropped, that cannot be known for certain, but they are not another model's."""
        agent, size = lease.agent, lease.block_size
        if agent is None or agent.newest_end is None or agent.newest_end.block_size != size:
            return 0
        there = lineage(found)
        if agent.newest_end.parent is not None and agent.newest_end not in there:
            return 0
        num_left = min(agent.last_path_blocks, num_tokens // size)
        return max(0, num_left - sum(segment.num_blocks for segment in there))

    def why_late(self, expected: float | None, blocked_by: BlockedBy) -> Cause:
        """Why state that was expected at ``expected`` was not loaded in time."""
        if expected is None:
            return "no hint"
        if expected >= self._timing.now + 1.0 or blocked_by is None:
            return "hint late"
        causes: dict[str, Cause] = {"link": "link full", "pool": "pool small", "disk": "disk busy"}
        return causes[blocked_by]

    @staticmethod
    def _blocks_behind(before: Segment, end: Segment) -> int:
        """Blocks of the path to ``before`` that are not on the path to ``end``."""
        shared = set(lineage(end))
        return sum(segment.num_blocks for segment in lineage(before) if segment not in shared)


def digests_of(specs: Iterable[AttachmentSpec]) -> Digests:
    """The digests of attachments, by kind."""
    return {spec.kind: spec.digest for spec in specs}
