"""Releases: what leases have computed goes into the tree, and what they held goes back.

Called by the manager. Where the tree has a block already, one of the two copies goes: here the
pages of a lease and of the tree are traded.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.memory.lease import Lease
from scalesim.memory.leases.attachments import Attachments
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.leases.orphans import Orphans
from scalesim.memory.leases.partial_blocks import PartialBlocks
from scalesim.memory.leases.waiters import LoadWaiters
from scalesim.memory.misses import Misses
from scalesim.memory.owners import Owners
from scalesim.memory.residency import Residency
from scalesim.memory.tree.prefix_tree import until
from scalesim.memory.tree.segment import TOKEN_BYTES, Segment, lineage


@dataclass(eq=False, slots=True)
class Releases:
    """What takes in what leases give."""

    residency: Residency
    table: BlockTable
    owners: Owners
    attachments: Attachments
    tails: PartialBlocks
    loads: LoadWaiters
    misses: Misses
    orphans: Orphans

    # -- into the tree ------------------------------------------------------------------------

    def commit(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        """See ``MemoryManager.commit``."""
        self.tails.give_back(lease)
        tree, branch = self.residency.tree, lease.branch
        stop = min(num_tokens // tree.block_size, lease.num_blocks)
        size = tree.block_bytes
        while (start := lease.num_shared) < stop:
            count = until(start, stop, branch)
            child = lease.end.children.get(tree.key(tokens, start, branch))
            if child is not None:
                if not self._join(lease, child, tokens, start + count):
                    return  # it is being loaded; ours stays private until the next commit
                continue
            fresh = tokens[start * size : (start + count) * size]
            mark = branch.mark if branch is not None and branch.block == start else b""
            if not mark and _may_extend(lease):
                lease.end.lengthen(fresh, count)
                self.residency.tiers.device.put(lease.end, lease.share(lease.end, count))
            else:
                self._append(lease, fresh, count, mark)

    def _append(self, lease: Lease, fresh: bytes, count: int, mark: bytes) -> None:
        """``fresh``, ``count`` blocks, is a segment of its own, where the lease ends from now
        on."""
        residency = self.residency
        child = residency.tree.insert(lease.end, fresh, mark)
        residency.tiers.device.put(child, lease.share(child, count))
        child.pin()
        if lease.agent is not None:
            child.own(lease.agent)

    def _join(self, lease: Lease, child: Segment, tokens: bytes, stop: int) -> bool:
        """The tree has these blocks already: use its pages where they are, give it ours where
        not."""
        if child.device.transfer is not None:
            return False
        residency = self.residency
        tree, ranking = residency.tree, residency.ranking
        count = tree.common_blocks(child, tokens, lease.num_shared, stop - lease.num_shared)
        if count < child.num_blocks:
            child = tree.split(child, count)
            (lower,) = child.children.values()
            ranking.refresh(lower)
        theirs = child.device.valid
        self.table.write(lease.row, lease.num_shared, child.device)
        mine = lease.share(child, count)
        residency.free(residency.tiers.device, mine[:theirs])
        residency.tiers.device.put(child, mine[theirs:])
        child.pin()
        ranking.refresh(child)
        return True

    # -- the end of a lease -------------------------------------------------------------------

    def release(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        """See ``MemoryManager.release``."""
        if not lease.is_ready:
            self.loads.abandon(lease)
        if lease.copies:  # never launched: the borrowed tokens are not in the private page
            num_tokens = min(num_tokens, lease.num_shared * self.residency.tree.block_size)
        self.commit(lease, tokens, num_tokens)
        self._leave_tail(lease, tokens, num_tokens)
        self._give_back(lease)
        if lease.agent is not None:
            self._leave_path(lease, num_tokens)
        chain = lineage(lease.end)
        self._let_go(lease, chain)
        self._tidy(lease, chain)
        if lease.agent is not None and lease.agent.is_gone:
            self.orphans.add(chain)
        else:
            self.orphans.drop_unheld()

    def _leave_tail(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        """What of the sound tokens fills no block stays as the agent's tail."""
        size = self.residency.tree.block_bytes
        last_tokens = tokens[lease.num_shared * size : num_tokens * TOKEN_BYTES]
        agent = lease.agent
        if agent is None or agent.is_gone:
            return
        if 0 < len(last_tokens) < size and not lease.end.is_root:
            self.tails.leave(lease, last_tokens)

    def _give_back(self, lease: Lease) -> None:
        """What was the lease's alone: its pages, what it borrowed, its rows."""
        residency = self.residency
        residency.free(residency.tiers.device, lease.take_private(len(lease.private)))
        if (tail := lease.give_back_tail()) is not None:
            self.residency.ranking.unpin(tail)
        self.table.free(lease.row)
        for attachment in lease.attachments:
            self.attachments.let_go(attachment.segment)

    def _leave_path(self, lease: Lease, num_tokens: int) -> None:
        """Its agent owns the path, where any of it is sound, and the agent is there still."""
        agent = lease.agent
        assert agent is not None
        if num_tokens and not lease.end.is_root and not agent.is_gone:
            self.owners.own(agent, lease.end)
            self.misses.released(lease)
        else:  # what it committed on the way is nobody's path
            self.owners.disown(agent, lease.end)

    def _let_go(self, lease: Lease, chain: list[Segment]) -> None:
        """What was pinned was used now, and is free to leave."""
        ranking = self.residency.ranking
        for segment in reversed(chain):
            ranking.touch(segment)
        for attachment in lease.attachments:
            ranking.touch(attachment.segment)
            ranking.unpin(attachment.segment)
        for segment in chain:
            ranking.unpin(segment)

    def _tidy(self, lease: Lease, chain: list[Segment]) -> None:
        """Now that nobody holds it: forget what could not be read, join what is one."""
        residency = self.residency
        if lease.failed is not None and lease.failed.error is not None:
            residency.lose_host(lease.failed)  # before a merge hides what it was
        for segment in chain[1:]:
            residency.tidy(segment)
        for attachment in lease.attachments:
            residency.settle_attachment(attachment.segment)


def _may_extend(lease: Lease) -> bool:
    """Whether the lease's end is its agent's alone, so that what is computed now belongs to it."""
    end = lease.end
    return (
        not end.is_root
        and end.pins == 1
        and not end.children
        and not end.tails
        and end.is_ready
        and end.uses == 0
        and list(end.owners) == ([] if lease.agent is None else [lease.agent])
    )
