"""Partial blocks: the last tokens of an agent's text, which do not fill a block. Each agent has at
most one under each path.

A partial block is found at admission, taken over or copied by the lease, and kept again at release.
It is on the device or not at all: it is never saved to the host.
"""

from __future__ import annotations

from typing import NamedTuple

from scalesim.core import AgentId
from scalesim.memory.lease import Lease
from scalesim.memory.residency import Residency
from scalesim.memory.tree.segment import TOKEN_BYTES, Branch, Segment

_MAX_TRIED = 8


class FoundPartialBlock(NamedTuple):
    """A partial block of which ``num_tokens`` match a prompt. ``moves``: the lease takes the page
    over; otherwise the lease copies the page before writing to it."""

    segment: Segment
    num_tokens: int
    moves: bool


class PartialBlocks:
    """The partial blocks of one prefix tree."""

    def __init__(self, residency: Residency) -> None:
        self._residency, self._tree = residency, residency.tree
        self._device = residency.tiers.device
        self._ranking = residency.ranking

    def find(
        self,
        end: Segment,
        tokens: bytes,
        num_blocks: int,
        agent: AgentId | None,
        branch: Branch | None,
    ) -> FoundPartialBlock | None:
        """The partial block under ``end`` that matches ``tokens`` behind their first ``num_blocks``
        blocks: the agent's own, or else the best of a few others. The last token is not matched,
        since a request computes at least one."""
        if not end.partials:
            return None
        last_tokens = tokens[num_blocks * end.block_bytes : len(tokens) - TOKEN_BYTES]
        mark = branch.mark if branch is not None and branch.block == num_blocks else b""
        own = None if agent is None else end.partials.get(agent)
        candidates = [own] if own is not None else list(end.partials.values())[:_MAX_TRIED]
        candidates = [partial for partial in candidates if partial.mark == mark]
        if not candidates:
            return None
        best = max(candidates, key=lambda partial: common_tokens(partial.tokens, last_tokens))
        count = common_tokens(best.tokens, last_tokens)
        return FoundPartialBlock(best, count, best is own and best.pins == 0) if count else None

    def take(self, lease: Lease, found: FoundPartialBlock) -> None:
        """Let ``lease`` begin with ``found``, which is pinned: take its page over, or copy it."""
        partial = found.segment
        if not found.moves:
            lease.copy_partial(partial, found.num_tokens)
            self._residency.counters.copied_pages += 1
            return
        partial.unpin()  # not by the ranking, which forgets the segment below
        (page,) = self._device.cut(partial, 0)
        self._ranking.forget(partial)
        self._tree.remove(partial)
        lease.take_over(page, found.num_tokens)

    def unpin_copied(self, lease: Lease) -> None:
        """Unpin the partial block that ``lease`` copies, if the copy was launched: from then on the
        fence guards the page, and a lease that grows to the whole pool needs it."""
        if lease.copy_source is not None and not lease.copies:
            self._ranking.unpin(lease.copy_source)
            lease.take_copy_source()

    def keep(self, lease: Lease, last_tokens: bytes) -> None:
        """Make ``last_tokens``, which are in the first private page of ``lease``, the partial block
        of the agent. The agent's older one is dropped; if a lease pins the older one, that stays
        instead."""
        agent = lease.agent
        assert agent is not None
        older = lease.end.partials.get(agent.id)
        if older is not None:
            if older.pins:
                return
            self._residency.drops.drop(older)
        branch = lease.branch
        mark = branch.mark if branch is not None and branch.block == lease.num_shared else b""
        partial = self._tree.insert_partial(lease.end, last_tokens, agent.id, mark)
        self._device.put(partial, lease.take_private(1))
        partial.set_reused(True)  # while its owner is there
        partial.own(agent)
        self._ranking.touch(partial)
        self._ranking.refresh(partial)


def common_tokens(first: bytes, second: bytes) -> int:
    """The number of leading int32 tokens that two byte strings share."""
    limit = min(len(first), len(second)) // TOKEN_BYTES
    if first[: limit * TOKEN_BYTES] == second[: limit * TOKEN_BYTES]:
        return limit
    count = 0
    while first[count * 4 : count * 4 + 4] == second[count * 4 : count * 4 + 4]:
        count += 1
    return count
