"""Owners of keys: agents, and groups of keys that have the same owners."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

from scalesim.core import AgentId
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.owner import ReuseStats

Key: TypeAlias = Hashable
"""Stands for the content of a block and of all before it, as a chained hash does."""
MAX_KEPT_PATHS = 4
"""The keys of so many of an agent's last calls are remembered, to see which of them come again."""
_FORGET = 0.25  # weight of an agent's newest call in its own statistics
_PRIOR = 2.0  # weight of the statistics of all agents, in calls of the agent's own


class KeyOwner:
    """An agent, or a single call of nobody's (``name`` is ``None``).

    ``next_use`` is in ticks of the clock, ``None`` where unknown. ``paths`` are the keys of the
    agent's last calls, the newest first, each in the order of the prompt. ``reach`` is how many
    calls back the agent returns to a prompt: 1 goes on from its last one, 2 takes turns between
    two. ``overlap`` is how deep into such a prompt its last call went, ``None`` if to the end.
    ``expected`` are the keys that its next call is likely to use. ``groups`` are those of its keys.

    Most agents are only spoken of at first: what belongs to keys is made with the first ones.
    """

    __slots__ = (
        "_own", "continued", "could_continue", "expected", "groups", "last_seq", "last_use",
        "name", "next_seq", "next_use", "num_open", "overlap", "paths", "reach",
    )  # fmt: skip

    def __init__(self, name: AgentId | None) -> None:
        self.name = name
        self.next_use: float | None = None
        self.next_seq = 0
        self.last_use, self.last_seq = 0.0, 0
        self.num_open = 0
        self.paths: Sequence[Sequence[Key]] = ()
        self.expected: Sequence[Key] = ()
        self.reach = 1
        self.overlap: int | None = None
        self.continued = self.could_continue = 0.0  # decaying counts of its calls
        self._own: tuple[KeyGroup, KeyGroup] | None = None
        self.groups: set[KeyGroup] = _NO_GROUPS

    @property
    def alone(self) -> KeyGroup:
        """The keys that nobody else owns."""
        return self._own_groups()[0]

    @property
    def past(self) -> KeyGroup:
        """The keys that it has left behind, and nobody else owns."""
        return self._own_groups()[1]

    def _own_groups(self) -> tuple[KeyGroup, KeyGroup]:
        if self._own is None:
            self._own = KeyGroup((self,)), KeyGroup((self,), is_past=True)
            self.groups = set(self._own)
        return self._own

    def remember(self, path: Mapping[Key, int], common: ReuseStats) -> list[Key]:
        """Record the keys of a call, at least one, with their places in the prompt. Returns the
        keys that the agent is not likely to use again: of older prompts, and behind the place where
        its prompts part from each other, if they usually do. ``common`` are the statistics of all
        agents.

        A first prompt does not tell where it will part. Until prompts are seen to go on, the last
        block is doubted: if it comes again, its room was meanwhile another agent's, and what that
        one finds makes up for it.
        """
        could_come = self.reach  # beyond so many paths, all was left behind before
        self._observe_return(path, common)
        paths = (tuple(path), *self.paths)
        left_now = paths[: could_come + 1]
        self.paths = paths[:MAX_KEPT_PATHS]
        rate = self.continued + _PRIOR * common.continuation_rate
        first, last = path[self.paths[0][0]], path[self.paths[0][-1]]
        cut = last + 1
        if rate <= 0.5 * (self.could_continue + _PRIOR):
            cut = max(first + 1, last) if self.overlap is None else self.overlap
        self.expected = [key for key, depth in path.items() if depth < cut]
        kept = set(self.expected).union(*self.paths[1 : self.reach])
        return [key for old in left_now for key in old if key not in kept]

    def _observe_return(self, path: Mapping[Key, int], common: ReuseStats) -> None:
        """Record which of the last prompts the call went on from, and how far."""
        found, reach = 0, 1
        for age, old in enumerate(self.paths, 1):
            deepest = next((key for key in reversed(old) if key in path), None)
            if deepest is not None and path[deepest] + 1 > found:
                found, reach = path[deepest] + 1, age
                self.overlap = None if deepest == old[-1] else found
        if not self.paths:
            return
        continued = bool(found) and self.overlap is None
        if not found:
            self.overlap = 0
        self.reach = max(reach, self.reach - 1)
        common.observe(continued)
        self.continued += continued - _FORGET * self.continued
        self.could_continue += 1.0 - _FORGET * self.could_continue

    def known_next_use(self) -> NextUse:
        """The next use as a key of the orders."""
        seq = 0 if self.next_use is None else self.next_seq
        return NextUse(self.next_use, seq, self.last_use, self.last_seq)

    def __repr__(self) -> str:
        return f"KeyOwner({self.name!r}, next_use={self.next_use})"


class KeyGroup:
    """Keys with the same owners: they have one next use, and leave a tier one after the other.

    ``is_past``: the keys of prompts that their one owner has left behind. No owners at all: so many
    agents share the keys that one of them always calls soon; such keys go by their last use.
    """

    __slots__ = ("is_past", "last_seq", "last_use", "num_keys", "owners")

    def __init__(self, owners: tuple[KeyOwner, ...], *, is_past: bool = False) -> None:
        self.owners, self.is_past = owners, is_past
        self.num_keys = 0
        self.last_use, self.last_seq = 0.0, 0  # of a group without owners

    @property
    def is_nobodys(self) -> bool:
        """Whether no agent counts on the keys: another call may take them over."""
        return self.is_past or (len(self.owners) == 1 and self.owners[0].name is None)

    def next_use(self) -> NextUse:
        """The soonest next use of the owners."""
        if not self.owners:
            return NextUse(None, 0, self.last_use, self.last_seq)
        if self.is_past:
            [owner] = self.owners
            return NextUse(math.inf, -owner.last_seq, owner.last_use, owner.last_seq)
        if len(self.owners) == 1:  # nearly always
            return self.owners[0].known_next_use()
        uses = [owner.known_next_use() for owner in self.owners]
        known = [use for use in uses if use.time is not None]
        if known:
            return min(known)
        return max(uses, key=lambda use: use.last_seq)


class OwnedKey:
    """A key that somebody owns. ``depth`` is its place in the prompt, 0 for the beginning;
    ``stamp`` the sequence number of the last call that used it."""

    __slots__ = ("depth", "group", "stamp")

    def __init__(self, group: KeyGroup) -> None:
        self.group = group
        self.depth = self.stamp = 0


_NO_GROUPS: set[KeyGroup] = set()  # of all agents without keys; nothing is ever put into it
