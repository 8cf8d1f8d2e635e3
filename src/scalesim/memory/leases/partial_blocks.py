"""Tails: partial blocks, one an agent, under the paths that they go on from.

Found for a request, taken by its lease, and left behind at its release. Called by admission and
releases. A tail is on the device or nowhere.
"""

from __future__ import annotations

from typing import NamedTuple

from scalesim.core import AgentId
from scalesim.memory.lease import Lease
from scalesim.memory.residency import Residency
from scalesim.memory.tree.segment import TOKEN_BYTES, Branch, Segment

_MAX_TRIED = 8


class FoundPartialBlock(NamedTuple):
    """``num_tokens`` of ``segment`` can be used. ``moves``: its page becomes the lease's own; else
    it is copied before it is written to."""

    segment: Segment
    num_tokens: int
    moves: bool


class PartialBlocks:
    """The partial blocks of one tree."""

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
        """A partial block under ``end`` that begins as ``tokens`` go on behind their first
        ``num_blocks`` blocks, their last token left out: the agent's own, else the best of a few
        others'."""
        if not end.tails:
            return None
        last_tokens = tokens[num_blocks * self._tree.block_bytes : len(tokens) - TOKEN_BYTES]
        mark = branch.mark if branch is not None and branch.block == num_blocks else b""
        own = None if agent is None else end.tails.get(agent)
        candidates = [own] if own is not None else list(end.tails.values())[:_MAX_TRIED]
        candidates = [tail for tail in candidates if tail.mark == mark]
        if not candidates:
            return None
        best = max(candidates, key=lambda tail: common_tokens(tail.tokens, last_tokens))
        count = common_tokens(best.tokens, last_tokens)
        return FoundPartialBlock(best, count, best is own and best.pins == 0) if count else None

    def take(self, lease: Lease, found: FoundPartialBlock) -> None:
        """``lease`` begins with what was found, which is pinned: with a copy of it, or with its
        page."""
        tail = found.segment
        if not found.moves:
            lease.borrow(tail, found.num_tokens)
            self._residency.counters.copied_pages += 1
            return
        tail.unpin()
        (page,) = self._device.cut(tail, 0)
        self._ranking.forget(tail)
        self._tree.remove(tail)
        lease.begin_with(page, found.num_tokens)

    def give_back(self, lease: Lease) -> None:
        """Let a borrowed tail go once its copy is launched: the fence then guards its page, and a
        lease that grows to the whole pool needs it."""
        if lease.borrowed is not None and not lease.copies:
            self._ranking.unpin(lease.borrowed)
            lease.give_back_tail()

    def leave(self, lease: Lease, last_tokens: bytes) -> None:
        """``last_tokens`` of the agent, in the lease's first private page, are its tail from now
        on, unless somebody still reads the one before."""
        agent = lease.agent
        assert agent is not None
        old = lease.end.tails.get(agent.id)
        if old is not None:
            if old.pins:
                return
            self._residency.drop(old)
        branch = lease.branch
        mark = branch.mark if branch is not None and branch.block == lease.num_shared else b""
        tail = self._tree.insert_tail(lease.end, last_tokens, agent.id, mark)
        self._device.put(tail, lease.take_private(1))
        tail.expect(True)  # as long as its owner is
        tail.own(agent)
        self._ranking.touch(tail)
        self._ranking.refresh(tail)


def common_tokens(first: bytes, second: bytes) -> int:
    """How many leading int32 tokens two byte strings share."""
    limit = min(len(first), len(second)) // TOKEN_BYTES
    if first[: limit * TOKEN_BYTES] == second[: limit * TOKEN_BYTES]:
        return limit
    count = 0
    while first[count * 4 : count * 4 + 4] == second[count * 4 : count * 4 + 4]:
        count += 1
    return count
