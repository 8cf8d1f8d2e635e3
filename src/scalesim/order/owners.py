"""Owners of keys: agents, and groups of keys that have the same owners."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from typing import TypeAlias

from scalesim.core import AgentId
from scalesim.memory.tree.next_use import NextUse

Key: TypeAlias = Hashable
"""Stands for the content of a block and of all before it, as a chained hash does."""
MAX_KEPT_PATHS = 4
"""The keys of so many of an agent's calls are kept for it at first, and at most."""


class KeyOwner:
    """An agent, or a single call of nobody's (``name`` is ``None``).

    ``next_use`` is in ticks of the clock, ``None`` where unknown. ``paths`` are the keys of the
    agent's last calls, the newest first, each in the order of the prompt. ``reach`` is how many
    calls back an agent was seen to return to a prompt: 1 goes on from its last one, 2 takes turns
    between two. Keys of older prompts are not expected again.
    """

    __slots__ = (
        "alone", "groups", "last_seq", "last_use", "name", "next_seq", "next_use", "num_calls",
        "num_open", "past", "paths", "reach",
    )  # fmt: skip

    def __init__(self, name: AgentId | None) -> None:
        self.name = name
        self.next_use: float | None = None
        self.next_seq = 0
        self.last_use, self.last_seq = 0.0, 0
        self.num_calls = self.num_open = 0
        self.paths: list[Collection[Key]] = []
        self.reach = 1
        self.alone = KeyGroup((self,))
        self.past = KeyGroup((self,), is_past=True)
        self.groups: set[KeyGroup] = {self.alone, self.past}

    def num_kept(self) -> int:
        """How many of the newest paths the agent is likely to use again."""
        return MAX_KEPT_PATHS if self.num_calls <= MAX_KEPT_PATHS else self.reach

    def observe_return(self, deepest: Key) -> None:
        """Record that a call goes on from ``deepest``, a key that the agent had before."""
        ages = (age for age, path in enumerate(self.paths, 1) if deepest in path)
        age = next(ages, len(self.paths) + 1)
        self.reach = min(max(self.reach, age), MAX_KEPT_PATHS)

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
