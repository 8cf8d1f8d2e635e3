"""The eviction strategy ``next-use``: which node of SGLang's radix tree leaves first.

Every rank has a tree of its own, and all must evict alike. So hints come with requests, which every
rank gets in the same order, and nothing here asks a clock of the machine.
"""

from __future__ import annotations

import logging
from typing import Any

from scalesim.core import AgentId
from scalesim.errors import RequestError
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.owner import MANY_OWNERS
from scalesim.order.board import CallBoard
from scalesim.order.request_hints import RequestHint, read_hint

OWNERS = "scalesim_owners"
"""The attribute of a node that has the names of its owners."""
_log = logging.getLogger(__name__)


class NextUseStrategy:
    """SGLang's ``EvictionStrategy``: of all leaves, the one with the smallest priority leaves.

    A node's owners are the sessions whose requests made or passed it; it is used next when the
    first of them calls. The nodes of one agent leave by their last access, and always from the end
    of a prompt, since only leaves leave.
    """

    def __init__(self) -> None:
        self.board = CallBoard()
        self.num_malformed = 0

    def get_priority(self, node: Any) -> tuple[float, bool, float, float]:
        """The smaller, the sooner ``node`` leaves."""
        owners = getattr(node, OWNERS, ())
        uses = [use for owner in owners if (use := self.board.agent_use(owner)) is not None]
        now, last_access = self.board.clock.now, float(node.last_access_time)
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
        try:
            hint = read_hint(custom, request.session_id)
        except RequestError as error:
            hint = RequestHint()
            self.num_malformed += 1
            if self.num_malformed == 1:
                _log.warning("a request's hint is ignored, as will be others like it: %s", error)
        hint.tell(self.board, request.rid)

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
