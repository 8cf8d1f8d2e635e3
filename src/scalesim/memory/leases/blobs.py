"""Blobs in the page pools: values that an agent owns and that nothing can make again.

A blob lives on the host, where its pages stay as long as an agent owns it; what is on the device is
a copy, loaded and evicted by the next use of its owners like all that they own. So a blob is never
dirty on the device, and evicting it loses nothing. Forks share a blob until one of them writes.
This file keeps the books and knows no bytes: see ``memory.state``. Runs on the engine's thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from scalesim.core import AgentId
from scalesim.errors import StateError, StateLostError
from scalesim.memory.leases.orphans import Orphans
from scalesim.memory.owners import Owners
from scalesim.memory.residency import Residency
from scalesim.memory.tree.segment import Segment

_ROOT = "blobs"
Names = Mapping[AgentId, Iterable[str]]


class ValueForm(NamedTuple):
    """What makes a value of the bytes in pages again: ``num_bytes`` of them, the ``kind`` of value,
    and what its kind calls the ``form``, plain values that a snapshot can hold."""

    num_bytes: int
    kind: str
    form: tuple[str, tuple[int, ...]]


class Blob(NamedTuple):
    """A value in pages: those of ``segment``. Equal for all agents that share it."""

    segment: Segment
    form: ValueForm


class BlobPages:
    """The blobs of all agents, by name."""

    def __init__(self, residency: Residency, owners: Owners, orphans: Orphans) -> None:
        self._residency, self._owners, self._orphans = residency, owners, orphans
        self._root = residency.tree.root(_ROOT, "fatal")
        self._of: dict[AgentId, dict[str, Blob]] = {}
        self._lost: dict[AgentId, set[str]] = {}
        self._num_made = 0

    # -- look-up ------------------------------------------------------------------------------

    def names(self) -> dict[AgentId, list[str]]:
        """The names of each agent's blobs, also of those that were lost."""
        agents = dict.fromkeys((*self._of, *self._lost))
        return {agent: [*self.of(agent), *self._lost.get(agent, ())] for agent in agents}

    def of(self, agent: AgentId) -> Mapping[str, Blob]:
        """The blobs of ``agent``, by name."""
        return self._of.get(agent, {})

    def find(self, agent: AgentId, name: str) -> Blob:
        """Raises ``KeyError``, or ``StateLostError`` where the blob was lost."""
        found = self.of(agent).get(name)
        if found is None:
            if name in self._lost.get(agent, ()):
                raise StateLostError(
                    f"state {name!r} of agent {agent!r} was lost when the engine's memory began "
                    "anew after a fault; assign it again"
                )
            raise KeyError(name)
        return found

    def may_write(self, blob: Blob) -> bool:
        """Whether the pages of ``blob`` may be written: they are one agent's, and no copy or lease
        uses them."""
        segment = blob.segment
        return len(segment.owners) == 1 and not segment.pins and not segment.is_moving

    @property
    def num_pages(self) -> int:
        """Host pages that blobs hold."""
        return sum(len(segment.host) for segment in self._root.children.values())

    # -- changes ------------------------------------------------------------------------------

    def add(self, agent: AgentId, name: str, num_blocks: int, form: ValueForm) -> Blob | None:
        """Give ``agent`` a blob with ``num_blocks`` host pages, which the caller writes before
        anything else happens, in place of what it has under ``name``.

        Returns ``None``, with nothing changed, if host pages will be free once copies have ended.
        Raises ``StateError`` where the host can never have room.
        """
        residency, host = self._residency, self._residency.tiers.host
        if num_blocks > host.pool.num_free:
            self._check_room(name, num_blocks)
            if not residency.room.to_keep(num_blocks):
                return None
        pages = residency.host.allocate(num_blocks)
        assert pages is not None
        self._num_made += 1
        digest = self._num_made.to_bytes(8, "little")
        segment = residency.tree.insert_attachment(self._root, digest, num_blocks)
        segment.set_reused(True)
        host.put(segment, pages)
        self.discard(agent, name)
        self._owners.hold(agent, segment)
        blob = self._of.setdefault(agent, {})[name] = Blob(segment, form)
        return blob

    def _check_room(self, name: str, num_blocks: int) -> None:
        host = self._residency.tiers.host
        usable = host.pool.num_usable - len(host.lost)
        if usable == 0:
            raise StateError(
                f"state {name!r} has to be kept on the host, and policy "
                f"{self._residency.policy.name!r} has no host pool here: choose another "
                "policy, and set host_memory"
            )
        if (held := self.num_pages) + num_blocks > usable:
            raise StateError(
                f"state {name!r} takes {num_blocks} pages of {self._residency.page_bytes} bytes, "
                f"and other state holds {held} of the host's {usable}: raise host_memory"
            )

    def reform(self, agent: AgentId, name: str, form: ValueForm) -> None:
        """The pages of a blob hold a value of another ``form``, in as many pages."""
        self._of[agent][name] = self.find(agent, name)._replace(form=form)

    def discard(self, agent: AgentId, name: str) -> None:
        """Take a blob from ``agent``, if there is one of this name. What no other agent shares is
        freed."""
        self._forget_loss(agent, name)
        blob = self._of.get(agent, {}).pop(name, None)
        if blob is None:
            return
        self._owners.detach(self._owners.agent(agent), blob.segment)
        if not blob.segment.owners:
            self._orphans.add([blob.segment])

    def fork(self, parent: AgentId, child: AgentId) -> None:
        """``child``, which owns the segments of ``parent`` already, knows them by the same
        names."""
        if blobs := self._of.get(parent):
            self._of[child] = dict(blobs)
        if lost := self._lost.get(parent):
            self._lost[child] = set(lost)

    def forget(self, agent: AgentId) -> None:
        """Forget the names of ``agent``, whose segments the owners drop."""
        self._of.pop(agent, None)
        self._lost.pop(agent, None)

    def lose(self, names: Names) -> None:
        """Note blobs of a memory that began anew as lost."""
        self._lost = {agent: set(lost) for agent, lost in names.items()}

    def _forget_loss(self, agent: AgentId, name: str) -> None:
        lost = self._lost.get(agent, set())
        lost.discard(name)
        if not lost:
            self._lost.pop(agent, None)
