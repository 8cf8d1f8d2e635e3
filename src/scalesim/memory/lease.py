"""A lease: one request's hold on memory, from its look-up to its release. Plain state; the
manager acts."""

from __future__ import annotations

from dataclasses import dataclass, field

from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Branch, Segment, Transfer


@dataclass(eq=False, slots=True)
class Lease:
    """One request's hold on memory. ``num_cached`` tokens need no computing once the loads are
    over."""

    agent: AgentState | None
    end: Segment
    num_shared: int
    private: list[int]
    row: int
    num_cached: int
    num_host_blocks: int = 0  # of the shared blocks: loaded for this request
    num_waited_blocks: int = 0  # of the shared blocks: those, and those that were on their way
    num_rebuilt_blocks: int = 0  # behind the shared ones: computed again, as far as one can tell
    copies: list[tuple[int, int]] = field(default_factory=list)  # copy-on-write, not yet launched
    borrowed: Segment | None = None  # another's tail, pinned until the copy is launched
    loads: int = 0  # transfers not yet over
    failed: Transfer | None = None
    adapter: Segment | None = None  # pinned with the path
    adapter_row: int = 0
    branch: Branch | None = None  # where the adapter comes into force

    @property
    def num_blocks(self) -> int:
        return self.num_shared + len(self.private)

    @property
    def is_ready(self) -> bool:
        return self.loads == 0
