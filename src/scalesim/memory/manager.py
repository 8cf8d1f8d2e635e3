"""The memory manager: the door to memory. It gives requests their leases, and is told of time.

The scheduler and the engine call it, on the engine's thread. It decides nothing: each method hands
on to one of the parts (``parts`` says which there are). A lease pins the path of shared segments
that the request's tokens begin with, and owns the private pages behind it; the lease's row of the
block table lists both:

    row     | shared: pinned segments of the tree | private: this lease alone |
    block   0                          num_shared                      num_blocks
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scalesim.core import AgentId, Int32s
from scalesim.memory.lease import AttachmentUse, Lease
from scalesim.memory.leases.adapters import AdapterContent
from scalesim.memory.misses import Miss
from scalesim.memory.owners import AgentPages
from scalesim.memory.parts import MemoryParts
from scalesim.memory.prefetch.planner import UNKNOWN, Forecast
from scalesim.memory.tiers import TierUse
from scalesim.memory.timing import Pace


class MemoryManager(MemoryParts):
    """One fixed device pool and one fixed host pool, shared by all agents.

    Callers use the methods, ``counters`` and the sizes; the parts are memory's own, and only its
    audit and ``scalesim.testing`` look at them from outside.
    """

    @property
    def num_pages(self) -> int:
        """Pages of the device pool that requests may use."""
        return self.device.num_usable

    @property
    def num_free_pages(self) -> int:
        return self.device.num_free

    @property
    def num_lost_pages(self) -> int:
        """Pages of both pools that are out of circulation for good."""
        return sum(len(tier.lost) for tier in self.tiers)

    @property
    def tier_use(self) -> tuple[TierUse, ...]:
        """How full each tier is, the nearest to the compute first. From any thread."""
        return tuple(
            TierUse(tier.name, tier.pool.num_usable - len(tier.lost), tier.pool.num_free)
            for tier in self.tiers
        )

    @property
    def loading_pages(self) -> int:
        """Pages held by leases that wait for loads."""
        return self.loads.num_pages

    # -- a request's life ---------------------------------------------------------------------

    def acquire(
        self,
        agent: AgentId | None,
        tokens: bytes,
        num_blocks: int,
        *,
        attachments: Sequence[AttachmentUse] = (),
        salt: bytes = b"",
        max_loading_pages: int | None = None,
    ) -> Lease | None:
        """Find what is held of ``tokens`` (int32 as bytes), pin it, and reserve ``num_blocks`` in
        all. With a ``salt``, only what was computed with the same one is found.

        All or nothing: ``None`` if the pages cannot be had now. Look-up and pin are one act. Loads
        of what is on the host start at once; the lease is ready when they are over. At least the
        last token is left to compute. With ``max_loading_pages``, a lease that would have to load
        is refused when all waiting leases would then hold more.

        ``attachments`` are reserved, pinned and loaded with the rest. Raises ``AttachmentError``
        for one that there is not.
        """
        return self.admission.acquire(
            agent, tokens, num_blocks, attachments, salt, max_loading_pages
        )

    def grow(self, lease: Lease, num_blocks: int) -> bool:
        """Add private pages until the lease has ``num_blocks``; False, and no change, if they
        cannot be had now."""
        self.tails.give_back(lease)
        more = num_blocks - lease.num_blocks
        pages = self.residency.take(more)
        if pages is None:
            return False
        self.table.write(lease.row, lease.num_blocks, pages)
        lease.grow(pages)
        return True

    def commit(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        """Put the full blocks of the first ``num_tokens`` tokens into the tree: their KV is written
        and the steps that wrote it were collected without a bad value."""
        self.releases.commit(lease, tokens, num_tokens)

    def release(self, lease: Lease, tokens: bytes = b"", num_tokens: int = 0) -> None:
        """End the lease. ``num_tokens`` of ``tokens`` have sound KV: full blocks stay in the tree,
        and the rest of one as the agent's tail; with 0, only what was shared already stays."""
        self.releases.release(lease, tokens, num_tokens)

    def fail(self, lease: Lease) -> None:
        """A load of this lease failed: release it, and forget what could not be read. Its tokens
        are rebuilt by the next ``acquire``."""
        assert lease.failed is not None
        self.release(lease)

    def poll(self) -> list[Lease]:
        """A step begins, and nobody went away without pages in it so far: take in finished copies.
        Returns the leases that became ready, or failed (``lease.failed``)."""
        self.residency.refused = False
        leases = self.loads.poll()
        self.orphans.drop_unheld()
        return leases

    def forget(self, agent: AgentId) -> None:
        """Nothing is ``agent``'s any more. What nobody else owns goes from both tiers: at once, or
        when the last lease and the last copy let go of it; leases that the agent has go on, and
        leave nothing to it. Whoever comes under this id later is another."""
        self.misses.forget(agent)
        self.orphans.add(self.owners.drop(agent))

    def leave_nothing(self, lease: Lease) -> None:
        """``lease``, fresh and nobody's, goes with all that is computed under it and not shared."""
        lease.leave_nothing(self.owners.nobody())

    def clear(self) -> None:
        """Forget everything that no lease holds and no copy touches: it would be rebuilt from its
        tokens. Once every lease is released and ``poll`` has taken in every copy, all pages are
        free."""
        self.residency.clear()

    # -- agents -------------------------------------------------------------------------------

    def hint(self, next_uses: Sequence[tuple[AgentId, float | None]]) -> None:
        """When agents are needed next, in steps of the clock; ``None`` = unknown. Of an agent that
        is named twice, the last one holds."""
        self.owners.set_next_uses(next_uses)

    def called(self, agent: AgentId, expected: float | None) -> None:
        """``agent`` called; ``expected`` is the next use that was known before."""
        self.misses.calls(agent, expected)

    def last_miss(self, agent: AgentId) -> Miss | None:
        """Why ``agent``'s state was not there the last time that it was not."""
        return self.misses.last.get(agent)

    def first_resident(self, agents: Iterable[AgentId | None]) -> int | None:
        """The index of the first of ``agents`` whose next request likely begins with what is on the
        device; ``None`` if there is none."""
        return self.owners.first_resident(agents)

    def pages_of(self, agent: AgentId) -> AgentPages:
        """Where the state lies that ``agent``'s next request will likely begin with."""
        return self.owners.pages_of(agent)

    def census(self) -> list[tuple[AgentId, AgentPages]]:
        """``pages_of`` every agent that memory knows. O(agents)."""
        return self.owners.census()

    def agents_under(self, tokens: bytes) -> list[AgentId]:
        """The agents whose state begins with ``tokens`` (int32 as bytes), as far as that is
        held."""
        return self.owners.under(tokens)

    def fork(self, parent: AgentId, child: AgentId) -> None:
        """``child`` owns what ``parent`` owns. Pages are shared until one of them writes."""
        self.owners.fork(parent, child)

    # -- adapters -----------------------------------------------------------------------------

    def add_adapter(self, content: AdapterContent) -> None:
        """Know of an adapter from now on. Adding equal content again changes nothing."""
        self.adapters.add(content)

    def remove_adapter(self, digest: bytes) -> None:
        """Forget an adapter: its pages leave at once, or when the last lease lets go of it."""
        self.adapters.remove(digest)

    def bind_adapter(self, agent: AgentId, digest: bytes) -> None:
        """``agent`` uses this adapter now, and no other; no effect where it was removed."""
        if self.adapters.has(digest):
            self.adapters.bind(agent, digest)

    # -- time, steps and copies ---------------------------------------------------------------

    def tick(self, now: float, pace: Pace, *, idle: bool) -> None:
        """The simulation's clock moved to ``now``; ``idle``: no request was open."""
        self.timing.tick(now, pace, idle=idle)

    def plan(self, wall_s: float, forecast: Forecast = UNKNOWN) -> None:
        """Once an iteration of the engine's loop: start the loads whose time has come, as far as
        ``forecast`` tells it."""
        self.prefetcher.plan(wall_s, forecast)

    @property
    def opens_in_s(self) -> float | None:
        """Seconds from the last ``plan`` to the next load ahead; ``None`` where none is due."""
        return self.prefetcher.opens_in_s

    def take_table_changes(self) -> tuple[Int32s, Int32s, Int32s]:
        """Rows, columns and pages of the block table written since the last call, in order."""
        return self.table.take_changes()

    def launched(self, step: int, prefill_tokens: int) -> None:
        """``step`` is the newest of the compute queue: pages that are freed now may be used until
        it is over."""
        self.timing.launched(step, prefill_tokens)
        if self.flight is not None:
            self.flight.step(step)

    def preempted(self) -> None:
        """A running request had to give its pages to another."""
        self.counters.preemptions += 1

    def stalled(self, seconds: float) -> None:
        """For so long, nothing could run because of loads."""
        self.counters.stall_s += seconds

    @property
    def is_moving(self) -> bool:
        """Whether copies are under way."""
        return bool(self.residency.transfers)

    def drain(self) -> None:
        """Call back every copy that has not started, and wait for the others."""
        self.residency.drain()
