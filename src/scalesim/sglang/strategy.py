"""The eviction strategy ``next-use``: which node of SGLang's radix tree leaves first.

Every rank has a tree of its own, and all must evict alike. So hints come with requests, which every
rank gets in the same order, and nothing here asks a clock of the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from scalesim.core import AgentId
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.owner import MANY_OWNERS
from scalesim.order.board import MAX_BOARD_AGENTS, CallBoard
from scalesim.order.request_hints import HintReader

OWNERS = "scalesim_owners"
"""The attribute of a node that has the names of its owners."""


class NextUseStrategy:
    """SGLang's ``EvictionStrategy``: of all leaves, the one with the smallest priority leaves.

    A node's owners are the sessions whose requests made or passed it; it is used next when the
    first of them calls. The nodes of one agent leave by their last access, and always from the end
    of a prompt, since only leaves leave.
    """

    def __init__(self) -> None:
        self.board = CallBoard()
        self.hints = HintReader()
        self._adapter_of: dict[AgentId, str] = {}
        self._agents_of: dict[str, tuple[AgentId, ...]] = {}

    def get_priority(self, node: Any) -> tuple[float, bool, float, float]:
        """The smaller, the sooner ``node`` leaves."""
        return self._priority(getattr(node, OWNERS, ()), float(node.last_access_time))

    def first_adapter(self, candidates: Iterable[str]) -> str:
        """Which of these LoRA adapters leaves first: one that no agent has, else the one whose
        agents all call last. Of equal ones the first given."""

        def place(name: str) -> tuple[bool, tuple[float, bool, float, float]]:
            agents = self._agents_of.get(name, ())
            return bool(agents), self._priority(agents, 0.0)

        return min(candidates, key=place)

    def _priority(
        self, owners: Sequence[AgentId], last_access: float
    ) -> tuple[float, bool, float, float]:
        uses = [use for owner in owners if (use := self.board.agent_use(owner)) is not None]
        now = self.board.clock.now
        known = [use for use in uses if use.time is not None]
        if len(owners) > MANY_OWNERS:
            return 0.0, True, 0.0, last_access  # one of them always calls now
        if known:
            use = min(known)
            return -use.distance(now), True, -float(use.seq), last_access
        last = max(uses, key=lambda use: use.last_seq, default=NextUse(None, 0, 0.0, 0))
        return -last.distance(now), False, float(last.last_seq), last_access

    # -- told by the hooks -----------------------------------------------------------------------

    def begin(self, request: Any) -> None:
        """A request is in the queue; it may have been there before."""
        custom = getattr(request.sampling_params, "custom_params", None)
        hint = self.hints.hint(custom, request.session_id)
        hint.tell(self.board, request.rid)
        if hint.agent is not None:
            self._note_adapter(hint.agent, request.lora_id)

    def _note_adapter(self, agent: AgentId, adapter: str | None) -> None:
        """``agent`` calls with ``adapter``, a name of SGLang's; ``None`` for the base model."""
        before = self._adapter_of.pop(agent, None)
        if adapter is not None:
            self._adapter_of[agent] = adapter
            if len(self._adapter_of) > MAX_BOARD_AGENTS:
                self._note_adapter(next(iter(self._adapter_of)), None)
        if before == adapter:
            return
        if before is not None:
            left = tuple(other for other in self._agents_of[before] if other != agent)
            self._agents_of[before] = left
            if not left:
                del self._agents_of[before]
        if adapter is not None:
            agents = self._agents_of.get(adapter, ())
            if len(agents) <= MANY_OWNERS:
                self._agents_of[adapter] = (*agents, agent)

    def end(self, request: Any) -> None:
        """A request has let go of its memory: it is over, or will be queued again."""
        self.board.end(request.rid)


def add_owner(node: Any, owner: AgentId | None) -> None:
    """``owner`` has a new node; it passes all nodes above as well."""
    while owner is not None and node is not None and node.key is not None:
        owners = getattr(node, OWNERS, ())
        if owner not in owners and len(owners) <= MANY_OWNERS:
            setattr(node, OWNERS, (*owners, owner))
        node = node.parent


def split_owners(upper: Any, lower: Any) -> None:
    """``upper`` was split off from ``lower``: both have the same owners."""
    setattr(upper, OWNERS, getattr(lower, OWNERS, ()))
