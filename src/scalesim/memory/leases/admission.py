"""Admission: a lease is given whole, or not at all.

Called by the manager. Looks up, reserves or leaves all as it was, then hands over: pages, loads, a
row of the block table, and the account of how the prompt was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scalesim.core import AgentId
from scalesim.memory.lease import AttachmentUse, Lease
from scalesim.memory.leases.attachments import Attachments
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.leases.lookup_accounts import LookupAccounts
from scalesim.memory.leases.partial_blocks import PartialBlocks
from scalesim.memory.leases.prefix_lookup import PrefixLookup, PrefixMatch
from scalesim.memory.leases.waiters import LoadWaiters
from scalesim.memory.owners import Owners
from scalesim.memory.residency import Residency
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment, lineage


@dataclass(eq=False, slots=True)
class Admission:
    """What turns a request into a lease."""

    residency: Residency
    table: BlockTable
    owners: Owners
    attachments: Attachments
    tails: PartialBlocks
    loads: LoadWaiters
    look_up: PrefixLookup
    accounts: LookupAccounts

    def acquire(
        self,
        agent: AgentId | None,
        tokens: bytes,
        num_blocks: int,
        attachments: Sequence[AttachmentUse],
        salt: bytes,
        max_loading_pages: int | None,
    ) -> Lease | None:
        """See ``MemoryManager.acquire``."""
        found = self.look_up.find(tokens, num_blocks, attachments, salt)
        if (
            found.waits
            and max_loading_pages is not None
            and self.loads.num_pages + found.num_pages > max_loading_pages
        ):
            self._tidy(found.beyond)
            return None
        state = None if agent is None else self.owners.agent(agent)
        end = self.look_up.cut(found.path, found.root)
        found.tail = self.tails.find(end, tokens, found.num_shared, agent, found.branch)
        chain = lineage(end)
        pages = self._reserve(found, chain)
        if pages is None:
            self._tidy(end)
            self._tidy(found.beyond)
            return None
        return self._hand_over(found, chain, state, end, pages)

    def _reserve(self, found: PrefixMatch, chain: list[Segment]) -> list[int] | None:
        """Pin ``chain`` and what was found beside it, and take the pages that are needed besides;
        ``None``, and nothing is pinned, if they cannot be had now."""
        ranking, tail = self.residency.ranking, found.tail
        pinned = [*chain, *found.attached]
        for segment in pinned:
            ranking.pin(segment)
        if tail is not None:
            ranking.pin(tail.segment)
        moves = tail is not None and tail.moves
        pages = self.residency.take(found.num_pages - moves)
        if pages is None and tail is not None:
            ranking.unpin(tail.segment)
            if not moves:  # the page that it lies in may be the one that is missing
                found.tail = None
                pages = self.residency.take(found.num_pages)
        if pages is None:
            for segment in pinned:
                ranking.unpin(segment)
        return pages

    def _hand_over(
        self,
        found: PrefixMatch,
        chain: list[Segment],
        agent: AgentState | None,
        end: Segment,
        pages: list[int],
    ) -> Lease:
        """A lease of what was found and pinned, with ``pages`` for all that was not."""
        unread_pages, pages = pages[: found.unread], pages[found.unread :]
        missing_pages, private = pages[: found.missing], pages[found.missing :]
        late = found.num_shared - found.missing - sum(segment.device.valid for segment in chain)
        lease = Lease(
            agent,
            end,
            found.num_shared,
            private,
            self.table.allocate(),
            num_cached=found.num_shared * self.residency.tree.block_size,
            num_host_blocks=found.missing + found.unread,
            num_waited_blocks=found.missing + late,
            branch=found.branch,
        )
        if found.tail is not None:
            self.tails.take(lease, found.tail)
        self.accounts.record(lease, found, chain)
        chain.reverse()  # from the root on
        self.loads.start(lease, chain, missing_pages)
        self._write_row(lease, chain)
        for use, segment in zip(found.uses, found.attached, strict=True):
            count = segment.num_missing
            self.loads.start_attachment(lease, segment, unread_pages[:count])
            self.attachments.hold(lease, use, segment)
            unread_pages = unread_pages[count:]
        self.loads.wait(lease)
        return lease

    def _write_row(self, lease: Lease, chain: list[Segment]) -> None:
        pages: list[int] = []
        for segment in chain:
            pages += segment.device
        assert len(pages) == lease.num_shared, (len(pages), lease.num_shared)
        self.table.write(lease.row, 0, pages + lease.private)

    def _tidy(self, end: Segment | None) -> None:
        """Undo the cut at ``end``, where nobody holds it."""
        if end is not None and end.parent is not None:
            self.residency.tidy(end)
