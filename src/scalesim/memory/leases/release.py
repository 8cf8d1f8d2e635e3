"""Releases: full blocks that a lease computed go into the prefix tree, and at the end its pages are
freed.

Where the tree has an equal block already, one of the two copies is freed: here pages are exchanged
between a lease and the tree.
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
from scalesim.memory.tree.branches import child_key, num_unbranched
from scalesim.memory.tree.segment import TOKEN_BYTES, Segment
from scalesim.memory.tree.walk import lineage


@dataclass(eq=False, slots=True)
class Releases:
    """Commits and releases leases."""

    residency: Residency
    table: BlockTable
    owners: Owners
    attachments: Attachments
    partial_blocks: PartialBlocks
    waiters: LoadWaiters
    misses: Misses
    orphans: Orphans

    # -- into the tree ------------------------------------------------------------------------

    def commit(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        """See ``MemoryManager.commit``."""
        self.partial_blocks.unpin_copied(lease)
        branch, size = lease.branch, lease.end.block_bytes
        stop = min(num_tokens // lease.block_size, lease.num_blocks)
        while (start := lease.num_shared) < stop:
            count = num_unbranched(start, stop, branch)
            child = lease.end.children.get(child_key(lease.end, tokens, start, branch))
            if child is not None:
                if not self._join(lease, child, tokens, start + count):
                    return  # being loaded: these blocks stay private until the next commit
                continue
            fresh = tokens[start * size : (start + count) * size]
            mark = branch.mark if branch is not None and branch.block == start else b""
            if not mark and _may_extend(lease):
                lease.end.lengthen(fresh, count)
                self.residency.tiers.device.put(lease.end, lease.share(lease.end, count))
            else:
                self._append(lease, fresh, count, mark)

    def _append(self, lease: Lease, fresh: bytes, count: int, mark: bytes) -> None:
        """Insert ``count`` blocks, ``fresh``, as a new segment at the end of the lease's path."""
        residency = self.residency
        child = residency.tree.insert(lease.end, fresh, mark)
        residency.tiers.device.put(child, lease.share(child, count))
        child.pin()  # not by the ranking: a new segment is in no order yet
        if lease.agent is not None:
            child.own(lease.agent)

    def _join(self, lease: Lease, child: Segment, tokens: bytes, stop: int) -> bool:
        """Share the blocks of ``child``, which equal the lease's next blocks: use its device pages
        where it has them, and give it the lease's pages where it has none. Returns False, and
        changes nothing, while ``child`` is being loaded."""
        if child.device.transfer is not None:
            return False
        residency = self.residency
        tree, ranking = residency.tree, residency.ranking
        count = tree.common_blocks(child, tokens, lease.num_shared, stop - lease.num_shared)
        if count < child.num_blocks:
            child = tree.split(child, count)
            (lower,) = child.children.values()
            ranking.refresh(lower)
        num_theirs = child.device.valid
        self.table.write(lease.row, lease.num_shared, child.device)
        ours = lease.share(child, count)
        residency.drops.free(residency.tiers.device, ours[:num_theirs])
        residency.tiers.device.put(child, ours[num_theirs:])
        child.pin()
        ranking.refresh(child)  # also where it was pinned: its pages changed
        return True

    # -- the end of a lease -------------------------------------------------------------------

    def release(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        """See ``MemoryManager.release``."""
        if not lease.is_ready:
            self.waiters.abort(lease)
        if lease.copies:  # never launched, so the private page lacks the copied tokens
            num_tokens = min(num_tokens, lease.num_shared * lease.block_size)
        self.commit(lease, tokens, num_tokens)
        self._keep_partial_block(lease, tokens, num_tokens)
        self._free_private(lease)
        if lease.agent is not None:
            self._own_path(lease, num_tokens)
        chain = lineage(lease.end)
        self._unpin(lease, chain)
        self._merge_back(lease, chain)
        if lease.agent is not None and lease.agent.is_forgotten:
            self.orphans.add(chain)
        else:
            self.orphans.drop_unpinned()

    def _keep_partial_block(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        """Keep the sound tokens that do not fill a block as the agent's partial block."""
        size, agent = lease.end.block_bytes, lease.agent
        last_tokens = tokens[lease.num_shared * size : num_tokens * TOKEN_BYTES]
        has_owner = agent is not None and not agent.is_forgotten
        if has_owner and 0 < len(last_tokens) < size and not lease.end.is_root:
            self.partial_blocks.keep(lease, last_tokens)

    def _free_private(self, lease: Lease) -> None:
        """Free what only this lease used: private pages, the pin of a copied partial block, and
        rows of the block table."""
        residency = self.residency
        residency.drops.free(residency.tiers.device, lease.take_private(len(lease.private)))
        if (copied := lease.take_copy_source()) is not None:
            self.residency.ranking.unpin(copied)
        self.table.free(lease.row)
        for attachment in lease.attachments:
            self.attachments.release(attachment.segment)

    def _own_path(self, lease: Lease, num_tokens: int) -> None:
        """Let the agent own the path if any of it is sound and the agent was not forgotten;
        otherwise nobody owns what the lease committed."""
        agent = lease.agent
        assert agent is not None
        if num_tokens and not lease.end.is_root and not agent.is_forgotten:
            self.owners.own(agent, lease.end)
            self.misses.record_release(lease)
        else:  # committed blocks that are on no path have no owner
            self.owners.disown(agent, lease.end)

    def _unpin(self, lease: Lease, chain: list[Segment]) -> None:
        """Record the use of all segments of the lease, and unpin them."""
        ranking = self.residency.ranking
        for segment in reversed(chain):
            ranking.touch(segment)
        for attachment in lease.attachments:
            ranking.touch(attachment.segment)
            ranking.unpin(attachment.segment)
        for segment in chain:
            ranking.unpin(segment)

    def _merge_back(self, lease: Lease, chain: list[Segment]) -> None:
        """Drop what could not be read, and merge segments that were split for this lease."""
        residency = self.residency
        if lease.failed is not None and lease.failed.error is not None:
            residency.drops.drop_failed_load(lease.failed)  # while its segments are not merged yet
        for segment in chain[1:]:
            residency.drops.try_merge(segment)
        for attachment in lease.attachments:
            residency.drops.drop_if_removed(attachment.segment)


def _may_extend(lease: Lease) -> bool:
    """Whether the blocks that are committed next can be appended to the lease's last segment:
    nobody but the lease's agent uses that segment."""
    end = lease.end
    return (
        not end.is_root
        and end.pins == 1
        and not end.children
        and not end.partials
        and end.is_ready
        and end.num_hits == 0
        and list(end.owners) == ([] if lease.agent is None else [lease.agent])
    )
