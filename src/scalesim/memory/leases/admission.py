"""Admission: a request is given its whole lease, or nothing.

Admission looks the prompt up, pins what is cached and reserves pages for what is not. If the pages
cannot be had, it undoes both. Otherwise it starts the loads, writes a row of the block table, and
records how the prompt was found. Growth takes pages in the same way: all of them, or none.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from scalesim.core import AgentId
from scalesim.memory.lease import AttachmentSpec, Lease
from scalesim.memory.leases.attachments import Attachments
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.leases.lookup_accounts import LookupAccounts
from scalesim.memory.leases.partial_blocks import PartialBlocks
from scalesim.memory.leases.prefix_lookup import PrefixLookup
from scalesim.memory.leases.prefix_match import PrefixMatch
from scalesim.memory.leases.waiters import LoadWaiters
from scalesim.memory.owners import Owners
from scalesim.memory.residency import Residency
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import any_comes_in_parts, lineage


@dataclass(eq=False, slots=True)
class Admission:
    """Makes leases of requests, and adds pages to them as their texts get longer."""

    residency: Residency
    table: BlockTable
    owners: Owners
    attachments: Attachments
    partial_blocks: PartialBlocks
    waiters: LoadWaiters
    lookup: PrefixLookup
    accounts: LookupAccounts

    def acquire(
        self, agent: AgentId | None, tokens: bytes, num_blocks: int,
        attachments: Sequence[AttachmentSpec], salt: bytes, max_loading_pages: int | None,
        backlog: int, *, recall: bool = True,
    ) -> Lease | None:  # fmt: skip
        """See ``MemoryManager.acquire``. What is on the disk and finds no room on the host is
        computed again."""
        found = self.lookup.find(tokens, num_blocks, attachments, salt, backlog, recall=recall)
        is_too_much = (
            found.must_wait
            and max_loading_pages is not None
            and self.waiters.num_pages + found.num_new_pages > max_loading_pages
        )
        if is_too_much or any_comes_in_parts(found.attached):
            self._merge_back(found.cached_end)
            return None
        state = None if agent is None else self.owners.agent(agent)
        end = self.lookup.cut(found.path, found.root)
        found.partial = self.partial_blocks.find(end, tokens, found.num_shared, agent, found.branch)
        chain = lineage(end)
        pages = self._pin_and_take(found, chain)
        if pages is None:
            self._merge_back(end)
            self._merge_back(found.cached_end)
            if not found.lacks_host_room:
                return None
            return self.acquire(
                agent, tokens, num_blocks, attachments, salt, max_loading_pages, backlog,
                recall=False,
            )  # fmt: skip
        return self._make_lease(found, chain, state, end, pages)

    def grow(self, lease: Lease, num_blocks: int) -> bool:
        """See ``MemoryManager.grow``."""
        self.partial_blocks.unpin_copied(lease)
        pages = self.residency.take(num_blocks - lease.num_blocks)
        if pages is None:
            return False
        self.table.write(lease.row, lease.num_blocks, pages)
        lease.grow(pages)
        return True

    def _pin_and_take(self, found: PrefixMatch, chain: list[Segment]) -> list[int] | None:
        """Pin ``chain``, the attachments and the partial block, and take the device pages that the
        request needs besides. Returns ``None``, with nothing pinned, if the pages cannot be had
        now."""
        ranking, partial = self.residency.ranking, found.partial
        pinned = [*chain, *found.attached]
        for segment in pinned:
            ranking.pin(segment)
        if partial is not None:
            ranking.pin(partial.segment)
        held = pinned if partial is None else [*pinned, partial.segment]
        take = functools.partial(self.residency.take, runs=found.attachment_runs, held=held)
        moves = partial is not None and partial.moves
        pages = take(found.num_new_pages - moves)
        if pages is None and partial is not None:
            ranking.unpin(partial.segment)
            if not moves:  # the page of the partial block may be the one that is missing
                found.partial = None
                pages = take(found.num_new_pages)
        if pages is not None and found.num_to_recall:
            found.lacks_host_room = not self.residency.disk.can_recall(found.num_to_recall)
            if found.lacks_host_room:
                self.residency.drops.free(self.residency.tiers.device, pages)
                pages = None
                if found.partial is not None:
                    ranking.unpin(found.partial.segment)
        if pages is None:
            for segment in pinned:
                ranking.unpin(segment)
        return pages

    def _make_lease(
        self,
        found: PrefixMatch,
        chain: list[Segment],
        agent: AgentState | None,
        end: Segment,
        pages: list[int],
    ) -> Lease:
        """Make the lease of pinned segments and of ``pages``, which are for loads and for what is
        to be computed, and start its loads."""
        first_load = found.num_attachment_pages
        first_private = first_load + found.num_to_load
        attachment_pages = pages[:first_load]
        load_pages, private = pages[first_load:first_private], pages[first_private:]
        num_ready = sum(segment.device.valid for segment in chain)
        lease = Lease(
            agent,
            end,
            found.num_shared,
            private,
            self.table.allocate(),
            num_cached=found.num_shared * end.block_size,
            num_host_blocks=found.num_to_load + found.num_attachment_pages,
            num_waited_blocks=found.num_shared - num_ready,
            branch=found.branch,
        )
        if found.partial is not None:
            self.partial_blocks.take(lease, found.partial)
        self.accounts.record(lease, found, chain)
        chain.reverse()  # from the root on
        self.waiters.start(lease, chain, load_pages)
        self._write_row(lease, chain)
        for spec, segment in zip(found.specs, found.attached, strict=True):
            count = segment.num_missing
            self.waiters.start_attachment(lease, segment, attachment_pages[:count])
            self.attachments.attach(lease, spec, segment)
            attachment_pages = attachment_pages[count:]
        self.waiters.wait(lease)
        return lease

    def _write_row(self, lease: Lease, chain: list[Segment]) -> None:
        pages = [page for segment in chain for page in segment.device]
        assert len(pages) == lease.num_shared, (len(pages), lease.num_shared)
        self.table.write(lease.row, 0, pages + lease.private)

    def _merge_back(self, end: Segment | None) -> None:
        """Undo the split at ``end``, if no other lease needs it."""
        if end is not None and end.parent is not None:
            self.residency.drops.try_merge(end)
