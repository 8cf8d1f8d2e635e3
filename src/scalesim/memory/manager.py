"""The memory manager: leases. What a request may use of the pools, from its look-up to its release.

Called by the scheduler and the engine, on the engine's thread. A lease pins the path of shared
segments that the request's tokens begin with, and owns the private pages behind it; its row of the
block table lists both:

    row     | shared: pinned segments of the tree | private: this lease alone |
    block   0                          num_shared                      num_blocks
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from scalesim.core import AgentId
from scalesim.memory.adapters import Adapters, AdapterUse
from scalesim.memory.agents import lineage
from scalesim.memory.block_table import BlockTable
from scalesim.memory.counters import Counters
from scalesim.memory.flight import FlightRecorder, RecordedPool, WatchedLink
from scalesim.memory.lease import Lease
from scalesim.memory.levels import LevelsAhead
from scalesim.memory.links import Link
from scalesim.memory.look_ahead import LookAhead, PlannerConfig
from scalesim.memory.misses import Misses
from scalesim.memory.owners import Owners
from scalesim.memory.policies import Policy
from scalesim.memory.pool import MakePool, PagePool, Pool
from scalesim.memory.prefix_tree import PrefixTree, until
from scalesim.memory.residency import Residency
from scalesim.memory.segment import TOKEN_BYTES, Branch, Segment, Transfer

_MAX_TAILS_TRIED = 8
_PATIENCE_S = 1.0  # with a copy that does not end, when everything begins anew
NULL_PAGE = 0
"""Never allocated: where padded rows point and write."""


class MemoryManager:
    """One fixed device pool and one fixed host pool, shared by all agents.

    Device page 0 is the null page. ``num_rows`` is the size of the block table, row 0 being the
    dummy. ``record``: keep the last page events in ``flight``, to be read when something is wrong
    (those of the pools where ``make_pool`` is the default).
    """

    def __init__(
        self,
        *,
        block_size: int,
        page_bytes: int,
        device_pages: int,
        host_pages: int,
        num_rows: int,
        policy: Policy,
        link: Link,
        planner: PlannerConfig | None = None,
        make_pool: MakePool = PagePool,
        record: bool = True,
    ) -> None:
        self._make_pool = make_pool
        self.block_size, self.page_bytes, self.policy = block_size, page_bytes, policy
        self.flight = FlightRecorder() if record else None
        self._link = WatchedLink(link, self.flight)
        self._device_pages, self._host_pages = device_pages, host_pages if policy.host else 0
        self.device_lost: frozenset[int] = frozenset()  # out of circulation: see ``reset``
        self.host_lost: frozenset[int] = frozenset()
        self._num_rows, self._planner = num_rows, planner or PlannerConfig()
        self.counters = Counters()
        self._build()

    def _build(self) -> None:
        """Everything but the counters, as it is when nothing was ever computed."""
        policy, block_size = self.policy, self.block_size
        self.device = self._pool(self._device_pages, NULL_PAGE + 1, "device", self.device_lost)
        self.host = self._pool(self._host_pages, 0, "host", self.host_lost)
        self.tree = PrefixTree(block_size)
        self.table = BlockTable(self._num_rows)
        self.residency = Residency(
            self.tree,
            policy,
            self.device,
            self.host,
            self._link,
            self.page_bytes,
            self.counters,
        )
        ahead = LevelsAhead if policy.num_levels else LookAhead
        self.look_ahead: LookAhead = ahead(self.residency, self._planner)
        self.standing = self.residency.standing
        self.owners = Owners(self.standing, self.look_ahead)
        self.residency.on_eviction = self.owners.evicted
        self.residency.on_adapter_moved = self.owners.adapter_moved
        self.adapters = Adapters(self.residency, self.owners, self.table)
        self.misses = Misses(self.look_ahead, block_size)
        self.loading_pages = 0  # held by leases that wait for loads

    def _pool(self, num_pages: int, first: int, tier: str, lost: frozenset[int]) -> Pool:
        """A pool of which all pages but ``lost`` are free."""
        if self.flight is not None and self._make_pool is PagePool:
            pool: Pool = RecordedPool(num_pages, first=first, tier=tier, flight=self.flight)
        else:
            pool = self._make_pool(num_pages, first=first)
        if lost:
            pages = pool.allocate(pool.num_free) or []
            pool.free([page for page in pages if page not in lost])
        return pool

    def reset(self, device_lost: Iterable[int] = (), host_lost: Iterable[int] = ()) -> None:
        """Begin anew, whatever state this is in: all leases, segments and adapters are forgotten,
        as if they had never been; what agents said of their next use stays. Nothing of the old
        state is trusted, so nothing of it is mended.

        No step is in flight. Pages given as lost, and those that a copy may still touch, leave
        circulation for good.
        """
        on_device, on_host = self._link.abandon(timeout_s=_PATIENCE_S)
        self.device_lost |= on_device.union(device_lost)
        self.host_lost |= on_host.union(host_lost)
        standing, ahead, owners, misses = self.standing, self.look_ahead, self.owners, self.misses
        last_launched, costs = self.residency.last_launched, self.residency.costs
        self._build()
        self.standing.now, self.residency.last_launched = standing.now, last_launched
        self.look_ahead.pace, self.misses.last = ahead.pace, misses.last
        self.look_ahead.starts_in, self.look_ahead.drains_in = ahead.starts_in, ahead.drains_in
        self.look_ahead.begin_at_once = ahead.begin_at_once
        self.look_ahead.reads.rate = ahead.reads.rate
        self.residency.costs.keep_rates(costs)
        for id, agent in owners.agents.items():
            self.owners.set_next_use(id, agent.next_use)

    # -- a request's life ---------------------------------------------------------------------

    def acquire(
        self,
        agent: AgentId | None,
        domain: Hashable,
        tokens: bytes,
        num_blocks: int,
        *,
        adapter: AdapterUse | None = None,
        max_loading_pages: int | None = None,
    ) -> Lease | None:
        """Find what is held of ``tokens`` (int32 as bytes), pin it, and reserve ``num_blocks`` in
        all.

        All or nothing: ``None`` if the pages cannot be had now. Look-up and pin are one act. Loads
        of what is on the host start at once; the lease is ready when they are over. At least the
        last token is left to compute. With ``max_loading_pages``, a lease that would have to load
        is refused when all waiting leases would then hold more.

        An ``adapter`` is reserved, pinned and loaded with the rest. Raises ``AdapterError`` for one
        that was not added.
        """
        residency, size = self.residency, self.block_size
        root = self.tree.root(domain)
        num_tokens = len(tokens) // TOKEN_BYTES
        branch = None if adapter is None else adapter.branch(size)
        path = self._usable(self.tree.match(root, tokens, (num_tokens - 1) // size, branch))
        found = None
        if self._is_sooner_rebuilt(path):
            found = self._cut(path, root)
            path = _on_device(found)
        path = self._apart(path)
        num_shared = sum(count for _, count in path)
        missing = sum(max(0, count - len(segment.device)) for segment, count in path)
        waits = missing > 0 or any(segment.load for segment, _ in path)
        weights, unread = None, 0
        if adapter is not None:
            weights = self.adapters.segment(adapter.digest)
            unread = weights.num_blocks - len(weights.device)
            waits = waits or unread > 0 or weights.load is not None
        held = num_blocks - num_shared + missing + unread
        if (
            waits
            and max_loading_pages is not None
            and self.loading_pages + held > max_loading_pages
        ):
            self._tidy(found)
            return None
        state = None if agent is None else self.owners.agent(agent)
        tail = self._find_tail(path, root, agent, tokens, num_shared, num_tokens, branch)
        end = self._cut(path, root)
        found = found or end
        chain = lineage(end)
        to_pin = chain if weights is None else [*chain, weights]
        for segment in to_pin:
            self._pin(segment)
        if tail is not None:
            self._pin(tail[0])
        stolen = tail is not None and tail[0].tail_of == agent and tail[0].pins == 1
        pages = residency.take(held - stolen)
        if pages is None and tail is not None:
            self._unpin(tail[0])
            if not stolen:  # the page that it lies in may be the one that is missing
                tail = None
                pages = residency.take(held)
        if pages is None:
            for segment in to_pin:
                self._unpin(segment)
            self._tidy(end)
            self._tidy(found)
            return None
        unread_pages, pages = pages[:unread], pages[unread:]
        lease = Lease(state, end, num_shared, pages[missing:], self.table.allocate(), 0)
        if tail is not None:
            self._take_tail(lease, *tail, stolen)
        lease.num_cached += num_shared * size
        on_time = weights is None or weights.ready == weights.num_blocks
        self._account(lease, chain, found, missing, num_tokens, on_time)
        chain.reverse()  # from the root on
        self._load(lease, chain, pages[:missing])
        self._write_row(lease, chain)
        if weights is not None:
            lease.branch = branch
            self._hold_adapter(lease, weights, unread_pages)
        if not lease.is_ready:
            self.loading_pages += len(lease.private) + lease.num_host_blocks
        return lease

    def grow(self, lease: Lease, num_blocks: int) -> bool:
        """Add private pages until the lease has ``num_blocks``; False, and no change, if they
        cannot be had now."""
        self._return_tail(lease)
        more = num_blocks - lease.num_blocks
        pages = self.residency.take(more)
        if pages is None:
            return False
        self.table.write(lease.row, lease.num_blocks, pages)
        lease.private += pages
        return True

    def commit(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        """Put the full blocks of the first ``num_tokens`` tokens into the tree: their KV is written
        and the steps that wrote it were collected without a bad value."""
        self._return_tail(lease)
        upto = min(num_tokens // self.block_size, lease.num_blocks)
        size, branch = self.tree.block_bytes, lease.branch
        while (start := lease.num_shared) < upto:
            count = until(start, upto, branch)
            child = lease.end.children.get(self.tree.key(tokens, start, branch))
            if child is not None:
                if not self._join(lease, child, tokens, start + count):
                    return  # it is being loaded; ours stays private until the next commit
                continue
            fresh = tokens[start * size : (start + count) * size]
            pages, lease.private = lease.private[:count], lease.private[count:]
            begins = branch is not None and branch.block == start
            if not begins and self._may_extend(lease):
                self.tree.extend(lease.end, fresh, pages)
            else:
                mark = branch.mark if branch is not None and begins else b""
                child = self.tree.insert(lease.end, fresh, mark)
                self.tree.add_device(child, pages)
                child.ready = count
                child.pins = 1
                if lease.agent is not None:
                    child.owners[lease.agent] = lease.agent.calls
                lease.end = child
            lease.num_shared += count

    def release(self, lease: Lease, tokens: bytes = b"", num_tokens: int = 0) -> None:
        """End the lease. ``num_tokens`` of ``tokens`` have sound KV: full blocks stay in the tree,
        and the rest of one as the agent's tail; with 0, only what was shared already stays."""
        if not lease.is_ready:
            self._abandon_loads(lease)
        if lease.copies:  # never launched: the borrowed tokens are not in the private page
            num_tokens = min(num_tokens, lease.num_shared * self.block_size)
        self.commit(lease, tokens, num_tokens)
        rest = tokens[lease.num_shared * self.tree.block_bytes : num_tokens * TOKEN_BYTES]
        end = lease.end
        if lease.agent is not None and 0 < len(rest) < self.tree.block_bytes and not end.is_root:
            self._leave_tail(lease, rest)
        self.device.free(lease.private, self.residency.last_launched)
        lease.private = []
        if lease.borrowed is not None:
            self._unpin(lease.borrowed)
        self.table.free(lease.row)
        if lease.adapter is not None:
            self.adapters.leave(lease.adapter)
        if lease.agent is not None:
            if num_tokens and not end.is_root:
                self.owners.own(lease.agent, end)
                self.misses.released(lease)
            else:  # what it committed on the way is nobody's path
                self.owners.disown(lease.agent, end)
        chain = lineage(end)
        for segment in reversed(chain):
            self.standing.touch(segment)
        if lease.adapter is not None:
            self.standing.touch(lease.adapter)
            self._unpin(lease.adapter)
        for segment in chain:
            self._unpin(segment)
        if lease.failed is not None and lease.failed.error is not None:
            self.residency.lose_host(lease.failed)  # before a merge hides what it was
        for segment in chain[1:]:
            self.residency.tidy(segment)
        if lease.adapter is not None:
            self.residency.settle_adapter(lease.adapter)

    def fail(self, lease: Lease) -> None:
        """A load of this lease failed: release it, and forget what could not be read. Its tokens
        are rebuilt by the next ``acquire``."""
        assert lease.failed is not None
        self.release(lease)

    def poll(self) -> list[Lease]:
        """Take in finished copies; returns the leases that became ready, or failed
        (``lease.failed``)."""
        woken = []
        for transfer in self.residency.poll():
            for lease in transfer.waiters:
                lease.loads -= 1
                if transfer.error is not None or (transfer.cancelled and lease.failed is None):
                    lease.failed = transfer  # cancelled: an aborted request's, in part, before ours
                if lease.is_ready:
                    self.loading_pages -= len(lease.private) + lease.num_host_blocks
                    woken.append(lease)
        return woken

    def clear(self) -> None:
        """Forget everything that no lease holds and no copy touches: it would be rebuilt from its
        tokens. Once every lease is released and ``poll`` has taken in every copy, all pages are
        free."""
        self.residency.clear()

    # -- steps of the above -------------------------------------------------------------------

    def _usable(self, path: list[tuple[Segment, int]]) -> list[tuple[Segment, int]]:
        """``path`` as far as its content exists."""
        usable = []
        for segment, count in path:
            have = min(count, segment.num_available)
            if have:
                usable.append((segment, have))
            if have < segment.num_blocks:
                break
        return usable

    def _is_sooner_rebuilt(self, path: list[tuple[Segment, int]]) -> bool:
        """Whether what of ``path`` is only on the host would be there later than if it were
        computed again."""
        missing = sum(max(0, count - len(segment.device)) for segment, count in path)
        return self.residency.costs.worth_loading(missing) < missing

    def _apart(self, path: list[tuple[Segment, int]]) -> list[tuple[Segment, int]]:
        """``path``, with what is on its way of a segment cut off from what else it lacks: a segment
        is under one load at a time, and a load ahead may be of a part."""
        apart = []
        for segment, count in path:
            coming = len(segment.device)
            if segment.load is not None and coming < count:
                apart.append((self._split(segment, coming), coming))
                count -= coming
            apart.append((segment, count))
        return apart

    def _cut(self, path: list[tuple[Segment, int]], root: Segment) -> Segment:
        """The end of ``path``, as a segment that ends there: what lies behind it may have to
        leave."""
        if not path:
            return root
        end, count = path[-1]
        return end if count == end.num_blocks else self._split(end, count)

    def _split(self, segment: Segment, count: int) -> Segment:
        """The first ``count`` blocks of ``segment``, as a segment above it."""
        upper = self.tree.split(segment, count)
        self.standing.refresh(upper)
        self.standing.refresh(segment)
        return upper

    def _find_tail(
        self,
        path: list[tuple[Segment, int]],
        root: Segment,
        agent: AgentId | None,
        tokens: bytes,
        num_shared: int,
        num_tokens: int,
        branch: Branch | None,
    ) -> tuple[Segment, int] | None:
        """A partial block under the path's end that begins like the rest of ``tokens``, and how
        many of its tokens can be used: the agent's own, else the best of a few others'."""
        end = path[-1][0] if path else root
        if not end.tails or (path and path[-1][1] < end.num_blocks):
            return None
        rest = tokens[num_shared * self.tree.block_bytes : (num_tokens - 1) * TOKEN_BYTES]
        mark = branch.mark if branch is not None and branch.block == num_shared else b""
        own = None if agent is None else end.tails.get(agent)
        candidates = [own] if own is not None else list(end.tails.values())[:_MAX_TAILS_TRIED]
        candidates = [tail for tail in candidates if tail.mark == mark]
        if not candidates:
            return None
        best = max(candidates, key=lambda tail: common_tokens(tail.tokens, rest))
        count = common_tokens(best.tokens, rest)
        return (best, count) if count else None

    def _take_tail(self, lease: Lease, tail: Segment, count: int, stolen: bool) -> None:
        lease.num_cached = count
        if not stolen:
            lease.borrowed = tail
            lease.copies.append((tail.device[0], lease.private[0]))
            self.counters.copied_pages += 1
            return
        tail.pins -= 1
        page = self.tree.trim_device(tail, 0)
        self.standing.forget(tail)
        self.tree.remove(tail)
        lease.private[:0] = page

    def _return_tail(self, lease: Lease) -> None:
        """Let a borrowed tail go once its copy is launched: the fence then guards its page, and a
        lease that grows to the whole pool needs it."""
        if lease.borrowed is not None and not lease.copies:
            self._unpin(lease.borrowed)
            lease.borrowed = None

    def _tidy(self, end: Segment | None) -> None:
        """Undo the cut at ``end``, where nobody holds it."""
        if end is not None and end.parent is not None:
            self.residency.tidy(end)

    def _account(
        self,
        lease: Lease,
        chain: list[Segment],
        found: Segment,
        missing: int,
        num_tokens: int,
        on_time: bool,
    ) -> None:
        """``chain`` is what the lease uses; the prompt was found to ``found``, which may be
        further."""
        counters = self.counters
        on_device = sum(segment.ready for segment in chain)
        late = lease.num_shared - missing - on_device
        if found.parent is None:  # making room for the lease took it
            found = lease.end
        matched = lineage(found)
        spared = sum(segment.num_blocks for segment in matched) - lease.num_shared
        for segment in matched:
            segment.uses += 1
        for segment in chain:
            counters.prefetch_used += segment.prefetched
            segment.prefetched = 0
        lease.num_host_blocks = missing
        lease.num_waited_blocks = missing + late
        counters.lookups += 1
        counters.full_hits += lease.num_shared > 0 and missing + late == 0
        counters.device_blocks += on_device
        counters.host_blocks += missing
        counters.late_blocks += late
        counters.computed_blocks += -(-num_tokens // self.block_size) - lease.num_shared
        counters.spared_blocks += spared
        if lease.agent is not None:
            self.misses.looked_up(lease, found, missing + late, spared, self.standing.now)
            lease.num_rebuilt_blocks = spared + self.misses.num_lost(lease, found, num_tokens)
            if lease.agent.next_use is not None:
                self.look_ahead.observe_arrival(late=missing + late > 0 or not on_time)
            lease.agent.observe_reuse(found)
            if spared:
                self.look_ahead.give_up(lease.agent)

    def _load(self, lease: Lease, chain: list[Segment], pages: list[int]) -> None:
        """Load what ``chain``, from the root on, lacks into ``pages``; wait for what is coming."""
        parts = []
        transfers: dict[int, Transfer] = {}
        for segment in chain:
            if segment.load is not None:
                transfers[id(segment.load)] = segment.load
            count = segment.num_blocks - len(segment.device)
            if count:
                parts.append((segment, pages[:count]))
                pages = pages[count:]
        if parts:
            transfer = self.residency.start_load(parts, demand=True)
            transfers[id(transfer)] = transfer
        for transfer in transfers.values():
            transfer.waiters.append(lease)
            lease.loads += 1

    def _hold_adapter(self, lease: Lease, adapter: Segment, pages: list[int]) -> None:
        """Load what ``adapter`` lacks into ``pages``: from the host if all of it is there, else
        from its source."""
        if pages:
            if adapter.saved == adapter.num_blocks:
                self.residency.start_load([(adapter, pages)], demand=True)
            else:
                self.residency.start_read(adapter, pages)
        if adapter.load is not None:
            adapter.load.waiters.append(lease)
            lease.loads += 1
        self.counters.prefetch_used += adapter.prefetched
        adapter.prefetched = 0
        lease.adapter, lease.adapter_row = adapter, self.adapters.enter(adapter)
        lease.num_host_blocks += len(pages)
        self.adapters.write(adapter)

    def _write_row(self, lease: Lease, chain: list[Segment]) -> None:
        pages: list[int] = []
        for segment in chain:
            pages += segment.device
        assert len(pages) == lease.num_shared, (len(pages), lease.num_shared)
        self.table.write(lease.row, 0, pages + lease.private)

    def _may_extend(self, lease: Lease) -> bool:
        end = lease.end
        return (
            not end.is_root
            and end.pins == 1
            and not end.children
            and not end.tails
            and end.load is None
            and end.ready == end.num_blocks
            and end.uses == 0
            and list(end.owners) == ([] if lease.agent is None else [lease.agent])
        )

    def _join(self, lease: Lease, child: Segment, tokens: bytes, upto: int) -> bool:
        """The tree has these blocks already: use its pages where they are, give it ours where
        not."""
        if child.load is not None:
            return False
        count = self.tree.common_blocks(child, tokens, lease.num_shared, upto - lease.num_shared)
        if count < child.num_blocks:
            child = self.tree.split(child, count)
            (lower,) = child.children.values()
            self.standing.refresh(lower)
        theirs = child.ready
        mine, lease.private = lease.private[:count], lease.private[count:]
        self.device.free(mine[:theirs], self.residency.last_launched)
        self.table.write(lease.row, lease.num_shared, child.device[:theirs])
        self.tree.add_device(child, mine[theirs:])
        child.ready = count
        child.pins += 1
        self.standing.refresh(child)
        lease.end = child
        lease.num_shared += count
        return True

    def _leave_tail(self, lease: Lease, rest: bytes) -> None:
        agent = lease.agent
        assert agent is not None
        old = lease.end.tails.get(agent.id)
        if old is not None:
            if old.pins:
                return
            self.residency.drop(old)
        page, lease.private = lease.private[0], lease.private[1:]
        tail = self.tree.insert_tail(lease.end, rest, agent.id, page)
        if lease.branch is not None and lease.branch.block == lease.num_shared:
            tail.mark = lease.branch.mark
        tail.uses = 1  # expected again as long as its owner is
        tail.owners[agent] = agent.calls
        self.standing.touch(tail)
        self.standing.refresh(tail)

    def _abandon_loads(self, lease: Lease) -> None:
        """Call back those loads that have not started and serve no other request."""
        self.loading_pages -= len(lease.private) + lease.num_host_blocks
        lease.loads = 0
        held = lineage(lease.end)
        if lease.adapter is not None:
            held.append(lease.adapter)
        for transfer in {id(s.load): s.load for s in held if s.load}.values():
            transfer.waiters = [waiter for waiter in transfer.waiters if waiter is not lease]
            if not transfer.waiters and transfer.purpose == "demand":
                self.residency.cancel(transfer)

    def _pin(self, segment: Segment) -> None:
        segment.pins += 1
        if segment.pins == 1:
            self.standing.refresh(segment)

    def _unpin(self, segment: Segment) -> None:
        segment.pins -= 1
        assert segment.pins >= 0, segment
        if segment.pins == 0:
            self.standing.refresh(segment)


def _on_device(end: Segment) -> list[tuple[Segment, int]]:
    """The path to ``end``, as far as it is on the device or on its way there."""
    path = []
    for segment in reversed(lineage(end)):
        if segment.device:
            path.append((segment, len(segment.device)))
        if len(segment.device) < segment.num_blocks:
            break
    return path


def common_tokens(first: bytes, second: bytes) -> int:
    """How many leading int32 tokens two byte strings share."""
    limit = min(len(first), len(second)) // TOKEN_BYTES
    if first[: limit * TOKEN_BYTES] == second[: limit * TOKEN_BYTES]:
        return limit
    count = 0
    while first[count * 4 : count * 4 + 4] == second[count * 4 : count * 4 + 4]:
        count += 1
    return count
