"""The memory manager: the only door to memory. It gives requests their leases, and it is told of
time, hints and steps.

The scheduler and the engine call it on the engine's thread. Each method hands on to one or two of
the parts; ``MemoryParts`` shows which there are. A lease pins the path of shared segments that
matches the request's tokens, and owns the private pages behind the path; the lease's row of the
block table lists both:

    row     | shared: pinned segments of the tree | private: this lease alone |
    block   0                          num_shared                      num_blocks
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from scalesim.core import AgentId, Int32s
from scalesim.memory.lease import AttachmentSpec, Lease
from scalesim.memory.leases.adapters import AdapterContent
from scalesim.memory.leases.attachments import block_size_of, branch_of
from scalesim.memory.leases.weights import WeightsContent
from scalesim.memory.misses import Miss
from scalesim.memory.owners import AgentPages
from scalesim.memory.parts import MemoryParts
from scalesim.memory.prefetch.planner import UNKNOWN, Forecast
from scalesim.memory.tiers import TierUse
from scalesim.memory.tree.walk import lineage


class MemoryManager(MemoryParts):
    """The memory of one engine: pools of fixed sizes, one for each tier, shared by all agents.

    Callers use the methods, ``counters`` and the sizes. The parts are private to memory; only its
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
        """Pages of all pools that were taken out of circulation."""
        return sum(len(tier.lost) for tier in self.tiers)

    @property
    def tier_use(self) -> tuple[TierUse, ...]:
        """How full each tier of this engine is, the nearest to the compute first. From any
        thread."""
        return tuple(
            TierUse(tier.name, tier.pool.num_usable - len(tier.lost), tier.pool.num_free)
            for tier in self.tiers
            if tier is not self.tiers.disk or tier.pool.num_usable
        )

    def block_size_of(self, attachments: Iterable[AttachmentSpec]) -> int:
        """How many tokens of KV that is computed with ``attachments`` a page holds."""
        return block_size_of(attachments, self.block_size)

    @property
    def loading_pages(self) -> int:
        """Device pages held by leases that wait for loads."""
        return self.waiters.num_pages

    # -- a request's life ---------------------------------------------------------------------

    def acquire(
        self,
        agent: AgentId | None,
        tokens: bytes,
        num_blocks: int,
        *,
        attachments: Sequence[AttachmentSpec] = (),
        salt: bytes = b"",
        max_loading_pages: int | None = None,
        backlog: int = 0,
    ) -> Lease | None:
        """Look up ``tokens`` (int32 as bytes), pin what is cached of them, and reserve
        ``num_blocks`` blocks in all.

        Returns ``None``, with nothing changed, if the pages cannot be had now. Loads of what is on
        the host start at once, and the lease is ready when they are over. At least the last token
        is left to be computed. With ``max_loading_pages``, a lease that would have to load is
        refused if all waiting leases would then hold more pages than that. A prefill of ``backlog``
        tokens goes before what the lease computes, and loads have that time.

        ``attachments`` are pinned and loaded as well. Raises ``AttachmentError`` for one that does
        not exist. With a ``salt``, only what was computed with the same salt is found.
        """
        return self.admission.acquire(
            agent, tokens, num_blocks, attachments, salt, max_loading_pages, backlog
        )

    def grow(self, lease: Lease, num_blocks: int) -> bool:
        """Add private pages until the lease has ``num_blocks`` blocks. Returns False, with nothing
        changed, if the pages cannot be had now."""
        return self.admission.grow(lease, num_blocks)

    def commit(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        """Put the full blocks of the first ``num_tokens`` tokens into the prefix tree. The steps
        that computed them must have been collected, without an invalid value."""
        self.releases.commit(lease, tokens, num_tokens)

    def release(self, lease: Lease, tokens: bytes = b"", num_tokens: int = 0) -> None:
        """End the lease. The KV of the first ``num_tokens`` of ``tokens`` is sound: full blocks
        stay in the tree, and the remaining tokens as the agent's partial block. With 0, only what
        was shared already stays."""
        self.releases.release(lease, tokens, num_tokens)

    def fail(self, lease: Lease) -> None:
        """Release a lease one of whose loads failed, and forget what could not be loaded. The next
        ``acquire`` of its tokens computes them again."""
        assert lease.failed is not None
        self.release(lease)

    def poll(self) -> list[Lease]:
        """Take in the copies that have ended; called at the beginning of a step. Returns the leases
        that became ready, or failed (``lease.failed``)."""
        self.residency.clear_failure()
        leases = self.waiters.poll()
        self.orphans.drop_unpinned()
        self.adapters.drop_stale()
        self.weights.drop_stale()
        return leases

    def forget(self, agent: AgentId) -> None:
        """Forget ``agent``. What no other agent owns is freed on every tier once no lease and no
        copy has it. Open leases go on, and leave nothing behind. The name can be used anew."""
        self.misses.forget(agent)
        self.blobs.forget(agent)
        self.orphans.add(self.owners.drop(agent))

    def make_temporary(self, lease: Lease) -> None:
        """Let ``lease``, which is new and has no agent, leave nothing behind: what is computed
        under it and not shared is freed at its release."""
        lease.make_temporary(self.owners.nobody())

    def clear(self) -> None:
        """Forget everything that no lease pins and no copy uses. Once all leases are released and
        ``poll`` has taken in all copies, all pages are free."""
        self.residency.drops.clear()

    # -- agents -------------------------------------------------------------------------------

    def hint(self, next_uses: Sequence[tuple[AgentId, float | None]]) -> None:
        """Set the next uses of agents, in ticks of the simulation's clock; ``None`` = unknown. If
        an agent is named twice, the last entry counts."""
        self.owners.set_next_uses(next_uses)

    def called(self, agent: AgentId, expected: float | None) -> None:
        """Record that ``agent`` called; ``expected`` is the next use that was known before."""
        self.misses.record_call(agent, expected)
        self.owners.agent(agent).called()

    def last_miss(self, agent: AgentId) -> Miss | None:
        """Why ``agent``'s state was not on the device at its last miss; ``None`` if it never
        missed."""
        return self.misses.last.get(agent)

    def first_resident(self, agents: Iterable[AgentId | None]) -> int | None:
        """The index of the first of ``agents`` whose next request will likely begin with a prefix
        on the device; ``None`` if there is none."""
        return self.owners.first_resident(agents)

    def pages_of(self, agent: AgentId) -> AgentPages:
        """Where the state lies that ``agent``'s next request will likely begin with."""
        return self.owners.pages_of(agent)

    def census(self) -> list[tuple[AgentId, AgentPages]]:
        """``pages_of`` every agent that memory knows. O(agents)."""
        return self.owners.census()

    def agents_under(self, tokens: bytes, salt: bytes = b"") -> list[AgentId]:
        """The agents whose state begins with ``tokens`` (int32 as bytes), as far as that is held,
        and was computed with ``salt`` by the engine's own model."""
        return self.owners.under(tokens, branch_of((), salt, self.block_size))

    def prefixes(self, *, on_host: bool = False) -> Iterator[bytes]:
        """The tokens (int32 as bytes) of each prefix on the device, or on its way; ``on_host``: or
        on the host. O(state)."""
        for segment in self.tree:
            count = max(len(segment.device), len(segment.host) if on_host else 0)
            if count and not segment.is_partial:
                tokens = b"".join(above.tokens for above in reversed(lineage(segment)))
                missing = (segment.num_blocks - count) * segment.block_bytes
                yield tokens[: len(tokens) - missing]

    def fork(self, parent: AgentId, child: AgentId) -> None:
        """Let ``child`` own all that ``parent`` owns. Pages are shared until one of the two writes
        to them."""
        self.owners.fork(parent, child)
        self.blobs.fork(parent, child)

    # -- adapters and models -----------------------------------------------------------------

    def add_adapter(self, content: AdapterContent) -> None:
        """Add an adapter. Adding equal content again changes nothing."""
        self.adapters.add(content)

    def remove_adapter(self, digest: bytes) -> None:
        """Remove an adapter, and the KV that was computed with it. Their pages are freed now, or
        when the last lease or copy that uses them ends."""
        self.adapters.remove(digest)

    def bind_adapter(self, agent: AgentId, digest: bytes | None) -> None:
        """Let ``agent`` use this adapter, in place of any other (``None``: no adapter); no effect
        if the adapter was removed."""
        self.adapters.bind(agent, digest)

    def add_weights(self, content: WeightsContent) -> None:
        """Add the weights of a model beside the engine's own. Equal content changes nothing."""
        self.weights.add(content)

    def remove_weights(self, digest: bytes) -> None:
        """Remove weights, and the KV that was computed with them, as ``remove_adapter`` does."""
        self.weights.remove(digest)

    def bind_weights(self, agent: AgentId, digest: bytes | None) -> None:
        """Let ``agent`` use the model with these weights (``None``: the engine's own), so that they
        are moved by its next use as well; no effect if they were removed."""
        self.weights.bind(agent, digest)

    # -- time, steps and copies ---------------------------------------------------------------

    def tick(self, now: float, tick_s: float | None) -> None:
        """The simulation's clock moved to ``now``, in ticks; a tick takes about ``tick_s`` seconds,
        ``None`` = unknown."""
        self.timing.tick(now, tick_s)

    def plan(self, wall_s: float, forecast: Forecast = UNKNOWN) -> None:
        """Start the loads whose turn has come, as far as ``forecast`` tells. Called once
        an iteration of the engine's loop, at ``wall_s`` seconds."""
        self.planner.plan(wall_s, forecast)

    def take_table_changes(self) -> tuple[Int32s, Int32s, Int32s]:
        """The rows, columns and pages of the block table written since the last call, each ``[n]``
        int32, in order."""
        return self.table.take_changes()

    def launched(self, step: int, prefill_tokens: int) -> None:
        """``step`` was launched and is the newest of the compute queue: it may use pages that are
        freed from now on. ``prefill_tokens``: the tokens that it prefills."""
        self.timing.launched(step, prefill_tokens)
        if self.page_log is not None:
            self.page_log.step(step)

    def preempted(self) -> None:
        """Count a running request that lost its pages to another."""
        self.counters.preemptions += 1

    def stalled(self, seconds: float) -> None:
        """Count ``seconds`` in which nothing could run because of loads."""
        self.counters.stall_s += seconds

    @property
    def is_moving(self) -> bool:
        """Whether copies are under way."""
        return bool(self.residency.transfers)

    def drain(self) -> None:
        """Cancel every copy that has not started, and wait for the others."""
        self.residency.drain()
