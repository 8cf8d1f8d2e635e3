"""Blobs in the page pools: the values that agents own, by name.

A blob without a source cannot be made again. It lives on the host, where its pages stay as long as
an agent owns it; what is on the device is a copy, loaded and evicted by the next use of its owners
like all that they own. So it is never dirty on the device, and evicting it loses nothing. Forks
share such a blob until one of them writes. A blob with a source may leave all tiers, and whoever
has the same content shares its pages.
This file keeps the books and knows no bytes: see ``memory.state``. Runs on the engine's thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from scalesim.core import AgentId, Bytes2D
from scalesim.errors import StateError, StateLostError
from scalesim.memory.kinds import ValueForm, num_pages_of
from scalesim.memory.leases.orphans import Orphans
from scalesim.memory.leases.sourced import SourcedPages
from scalesim.memory.links.link import PageSource
from scalesim.memory.owners import Owners
from scalesim.memory.residency import Residency
from scalesim.memory.tree.segment import Segment

_ROOT, _SOURCED_ROOT = "blobs", "sourced blobs"


class Blob(NamedTuple):
    """A value in pages: those of ``segment``. Equal for all agents that share it. Without a
    ``source`` losing its pages is fatal."""

    segment: Segment
    form: ValueForm
    source: PageSource | None = None


Books = Mapping[AgentId, Mapping[str, "Blob | None"]]
"""Blobs by agent and name; ``None`` for one that was lost."""


class BlobPages:
    """The blobs of all agents, by name."""

    def __init__(self, residency: Residency, owners: Owners, orphans: Orphans) -> None:
        self._residency, self._owners, self._orphans = residency, owners, orphans
        self._root = residency.tree.root(_ROOT, "fatal")
        self._sourced = SourcedPages(residency, owners, _SOURCED_ROOT)
        self._of: dict[AgentId, dict[str, Blob]] = {}
        self._lost: dict[AgentId, set[str]] = {}
        self._num_made = 0

    # -- look-up ------------------------------------------------------------------------------

    def books(self) -> Books:
        """The blobs of each agent, also those that were lost."""
        agents = dict.fromkeys((*self._of, *self._lost))
        return {
            agent: {**self.of(agent), **dict.fromkeys(self._lost.get(agent, ()))}
            for agent in agents
        }

    def of(self, agent: AgentId) -> Mapping[str, Blob]:
        """The blobs of ``agent``, by name."""
        return self._of.get(agent, {})

    def find(self, agent: AgentId, name: str) -> Blob:
        """Raises ``KeyError``, or ``StateLostError`` where the blob was lost."""
        found = self.of(agent).get(name)
        if found is None:
            if name in self._lost.get(agent, ()):
                raise StateLostError(
                    f"state {name!r} of agent {agent!r} was lost: the engine's memory began anew "
                    "after a fault, or a restore had no room for it (host_memory); assign it again"
                )
            raise KeyError(name)
        return found

    def may_write(self, blob: Blob) -> bool:
        """Whether the pages of ``blob`` may be written: they have no source, are one agent's, and
        no copy or lease uses them."""
        segment = blob.segment
        if blob.source is not None:
            return False
        return len(segment.owners) == 1 and not segment.pins and not segment.is_moving

    @property
    def num_pages(self) -> int:
        """Host pages of blobs without a source."""
        return sum(len(segment.host) for segment in self._root.children.values())

    # -- changes ------------------------------------------------------------------------------

    def add(self, agent: AgentId, name: str, num_blocks: int, form: ValueForm) -> Blob | None:
        """Give ``agent`` a blob with ``num_blocks`` host pages, which the caller writes before
        anything else happens, in place of what it has under ``name``.

        Returns ``None``, with nothing changed, if host pages will be free once copies have ended.
        Raises ``StateError`` where the host can never have room.
        """
        residency, host = self._residency, self._residency.tiers.host
        if not self.make_room(repr(name), num_blocks):
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

    def refer(
        self,
        agent: AgentId,
        name: str,
        form: ValueForm,
        source: PageSource,
        pages: Bytes2D | None = None,
    ) -> None:
        """Give ``agent`` a blob that is read from ``source``, in place of what it has under
        ``name``. Its ``pages``, uint8 ``[num_pages, page_bytes]``, spare the first read."""
        count = num_pages_of(form.num_bytes, self._residency.page_bytes)
        segment = self._sourced.put(form.digest, count, source, pages)
        self.share(agent, name, Blob(segment, form, source))

    def share(self, agent: AgentId, name: str, blob: Blob) -> None:
        """Give ``agent`` a blob whose pages are there, as a fork would."""
        if blob.segment not in self._owners.agent(agent).attached:
            self._owners.hold(agent, blob.segment)
        self.discard(agent, name, kept=blob)
        self._of.setdefault(agent, {})[name] = blob

    def make_room(self, names: str, num_blocks: int) -> bool:
        """Make ``num_blocks`` host pages free for the blobs that an error calls ``names``. Returns
        ``False`` if they will be free once copies have ended. Raises ``StateError`` where they
        never will be."""
        if num_blocks <= self._residency.tiers.host.pool.num_free:
            return True
        self._check_room(names, num_blocks)
        return self._residency.room.to_keep(num_blocks)

    def _check_room(self, names: str, num_blocks: int) -> None:
        host = self._residency.tiers.host
        usable = host.pool.num_usable - len(host.lost)
        if usable == 0:
            raise StateError(
                f"state {names} has to be kept on the host, and policy "
                f"{self._residency.policy.name!r} has no host pool here: choose another "
                "policy, and set host_memory"
            )
        if (held := self.num_pages) + num_blocks > usable:
            raise StateError(
                f"state {names} takes {num_blocks} pages of {self._residency.page_bytes} bytes, "
                f"and other state holds {held} of the host's {usable}: raise host_memory"
            )

    def reform(self, agent: AgentId, name: str, form: ValueForm) -> None:
        """The pages of a blob hold a value of another ``form``, in as many pages."""
        self._of[agent][name] = self.find(agent, name)._replace(form=form)

    def discard(self, agent: AgentId, name: str, kept: Blob | None = None) -> None:
        """Take a blob from ``agent``, if there is one of this name. Pages are freed that no other
        name or agent shares, and not ``kept``."""
        self._forget_loss(agent, name)
        blobs = self._of.get(agent, {})
        blob = blobs.pop(name, None)
        if blob is None:
            return
        segment, held = blob.segment, (*blobs.values(), kept) if blob.source is not None else ()
        if any(other is not None and other.segment is segment for other in held):
            return
        self._owners.detach(self._owners.agent(agent), segment)
        if segment.owners:
            return
        if blob.source is not None:
            self._sourced.remove(blob.form.digest)
        else:
            self._orphans.add([segment])

    def agents(self) -> list[AgentId]:
        """The agents that have blobs."""
        return [agent for agent, blobs in self._of.items() if blobs]

    def fork(self, parent: AgentId, child: AgentId) -> None:
        """``child``, which owns the segments of ``parent`` already, knows them by the same
        names."""
        if blobs := self._of.get(parent):
            self._of[child] = dict(blobs)
        if lost := self._lost.get(parent):
            self._lost[child] = set(lost)

    def forget(self, agent: AgentId) -> None:
        """Forget the blobs of ``agent``."""
        for name in list(self.of(agent)):
            self.discard(agent, name)
        self._of.pop(agent, None)
        self._lost.pop(agent, None)

    def lose(self, agent: AgentId, name: str) -> None:
        """Note that a blob was lost, in place of what ``agent`` has under ``name``."""
        self.discard(agent, name)
        self._lost.setdefault(agent, set()).add(name)

    def lost(self) -> list[tuple[AgentId, str]]:
        """The blobs that were lost and not assigned again, by agent and name."""
        return [(agent, name) for agent, names in self._lost.items() for name in sorted(names)]

    def begin_from(self, books: Books) -> None:
        """Go on from the ``books`` of a memory that began anew: what has a source is read again,
        all else is lost."""
        for agent, blobs in books.items():
            for name, blob in blobs.items():
                if blob is not None and blob.source is not None:
                    self.refer(agent, name, blob.form, blob.source)
                else:
                    self.lose(agent, name)

    def _forget_loss(self, agent: AgentId, name: str) -> None:
        lost = self._lost.get(agent, set())
        lost.discard(name)
        if not lost:
            self._lost.pop(agent, None)
