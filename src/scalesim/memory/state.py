"""An agent's own state: values by name, as bytes in pages of the pools.

The books are those of ``BlobPages``; this file moves the bytes. A write goes to the host, where
blobs live, page by page where the bytes differ, and to the copy on the device if there is one. All
of it is called on the engine's thread, between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from scalesim.core import AgentId, Bytes2D
from scalesim.errors import StateError
from scalesim.memory.kinds import ValueForm, in_rows, stored_form
from scalesim.memory.leases.blobs import Blob
from scalesim.memory.links.link import PageSource
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_access import PageAccess
from scalesim.memory.tree.segment import Segment


class StoredValue(NamedTuple):
    """A value as it lies in pages: ``rows``, uint8 ``[num_pages, page_bytes]``, an array or, where
    they were read from a device, a tensor there; ``None`` where the value has to be read from its
    ``source``, unless it ``is_coming``: its pages are being filled."""

    form: ValueForm
    rows: Any
    source: PageSource | None
    is_coming: bool = False


class NewValue(NamedTuple):
    """A value to be set: ``rows``, uint8 ``[num_pages, page_bytes]``, which the caller leaves as
    they are, and its ``source``, if it can be read again."""

    form: ValueForm
    rows: Bytes2D
    source: PageSource | None = None


class StateAccess:
    """Reads and writes the blobs of ``memory``."""

    def __init__(self, memory: MemoryManager, access: PageAccess) -> None:
        self._memory, self._access = memory, access

    def names(self, agent: AgentId) -> dict[str, ValueForm]:
        """The forms of the values of ``agent``, by name, in the order of their assignment."""
        return {name: blob.form for name, blob in self._memory.blobs.of(agent).items()}

    def read(self, agent: AgentId, name: str) -> StoredValue:
        """A copy of a value, from the device if all of it is there, else from the host. Raises
        ``KeyError``, or ``StateLostError`` where memory began anew since it was written."""
        blob = self._memory.blobs.find(agent, name)
        segment = blob.segment
        if segment.is_ready:
            self._memory.counters.prefetch_used += segment.take_prefetched()
            self._memory.ranking.touch(segment)
            self._memory.ranking.refresh(segment)
            rows = self._access.read_there(list(segment.device))
        elif segment.host.valid == segment.num_blocks:
            rows = self._access.read("host", list(segment.host))
        else:
            is_coming = segment.is_moving
            if not is_coming:
                owner, blocked = self._memory.owners.agent(agent), self._memory.planner.blocked_by
                self._memory.misses.record_read(owner, segment.num_blocks, blocked)
            return StoredValue(blob.form, None, blob.source, is_coming)
        return StoredValue(blob.form, rows, blob.source)

    def change(
        self, agent: AgentId, values: Mapping[str, NewValue], gone: Collection[str] = ()
    ) -> bool:
        """Set ``values`` and forget those that are ``gone``, by name: all, or nothing. Returns
        ``False``, with nothing changed, where the host has too little room until copies have ended.
        Raises ``StateError``, with nothing changed, where it never has."""
        blobs = self._memory.blobs
        kept, moved = dict[str, NewValue](), dict[str, int]()
        for name, value in values.items():
            is_moved = self._in_place(agent, name, len(value.rows)) is None
            if value.source is not None or (is_moved and self._is_there(agent, name, value)):
                continue  # also where forks share it
            kept[name] = value
            if is_moved:
                moved[name] = len(value.rows)
        if not blobs.make_room(", ".join(map(repr, moved)), sum(moved.values())):
            return False
        for name, (form, rows, _) in kept.items():
            written = self.write(agent, name, form, rows)
            assert written is not None
        for name, (form, rows, source) in values.items():
            if source is not None:
                self.refer(agent, name, form, source, rows)
        for name in gone:
            blobs.discard(agent, name)
        return True

    def write(self, agent: AgentId, name: str, form: ValueForm, rows: Bytes2D) -> int | None:
        """Set a value that has no source. Returns the number of pages written: of a value in as
        many pages that no other agent shares, those that differ. ``None``, with nothing changed,
        where the host has too little room until copies have ended. Raises ``StateError`` where it
        never has."""
        blobs = self._memory.blobs
        before = self._in_place(agent, name, len(rows))
        if before is not None:
            blobs.reform(agent, name, form)
            return self._write_changed(before, rows)
        blob = blobs.add(agent, name, len(rows), form)
        if blob is None:
            return None
        self._access.write("host", list(blob.segment.host), rows)
        return len(rows)

    def refer(
        self, agent: AgentId, name: str, form: ValueForm, source: PageSource, rows: Bytes2D
    ) -> None:
        """Set a value that is read from ``source``: ``rows``, uint8 ``[num_pages, page_bytes]``,
        which the caller leaves as they are."""
        self._memory.blobs.refer(agent, name, form, source, rows)

    def has(self, agent: AgentId, name: str) -> bool:
        """Whether there is such a value, or was before it was lost."""
        return name in self._memory.blobs.books().get(agent, ())

    def remove(self, agent: AgentId, name: str) -> None:
        """Forget a value. Raises ``KeyError`` for one that is not there."""
        if not self.has(agent, name):
            raise KeyError(name)
        self._memory.blobs.discard(agent, name)

    # -- snapshots ----------------------------------------------------------------------------

    def image(self, is_wanted: Callable[[AgentId], bool]) -> dict[str, Any]:
        """All values of the agents that are wanted, as plain values, with the bytes of those that
        have no source. One that forks share is there once. O(bytes)."""
        place: dict[Segment, int] = {}
        values: list[ValueForm] = []
        data: list[bytes] = []
        owners: list[tuple[AgentId, str, int]] = []
        for agent in filter(is_wanted, self._memory.blobs.agents()):
            for name, (segment, form, source) in self._memory.blobs.of(agent).items():
                if segment not in place:
                    place[segment] = len(values)
                    values.append(form)
                    rows = self._access.read("host", list(segment.host) if source is None else [])
                    data.append(rows.reshape(-1)[: form.num_bytes].tobytes())
                owners.append((agent, name, place[segment]))
        lost = [(agent, name) for agent, name in self._memory.blobs.lost() if is_wanted(agent)]
        return {"owners": owners, "forms": values, "bytes": b"".join(data), "lost": lost}

    def put_image(
        self, image: Mapping[str, Any], source_of: Callable[[ValueForm], PageSource]
    ) -> list[tuple[AgentId, str]]:
        """Put what ``image`` gave into memory in which these agents have no values. Returns the
        values for which the host has no room, which are lost. ``source_of`` gives a source for a
        value with an origin. Raises ``ValueError``, ``LookupError`` or ``TypeError`` for columns of
        others."""
        forms = [stored_form(*columns) for columns in image["forms"]]
        kept = [form.num_bytes * (form.origin is None) for form in forms]
        ends = [0, *accumulate(kept)]
        if ends[-1] != len(image["bytes"]) or min(ends) < 0:
            raise ValueError(
                f"{len(image['bytes'])} bytes of values, and {ends[-1]} in their forms"
            )
        made: dict[int, Blob] = {}
        left_out = []
        for agent, name in image.get("lost", ()):  # a release before had none
            self._memory.blobs.lose(agent, name)
        for agent, name, index in image["owners"]:
            if index in made:
                self._memory.blobs.share(agent, name, made[index])
                continue
            if forms[index].origin is not None:
                self._memory.blobs.refer(agent, name, forms[index], source_of(forms[index]))
                continue
            data = np.frombuffer(image["bytes"][ends[index] : ends[index + 1]], np.uint8)
            rows = in_rows(data, self._memory.page_bytes)
            try:
                self.write(agent, name, forms[index], rows)
            except StateError:
                left_out.append((agent, name))
                self._memory.blobs.lose(agent, name)
            else:
                made[index] = self._memory.blobs.find(agent, name)
        return left_out

    def _in_place(self, agent: AgentId, name: str, num_pages: int) -> Blob | None:
        """The value whose pages a value of ``num_pages`` may be written to, in its place."""
        blobs = self._memory.blobs
        found = blobs.of(agent).get(name)
        if found is None or len(found.segment.host) != num_pages or not blobs.may_write(found):
            return None
        return found

    def _is_there(self, agent: AgentId, name: str, value: NewValue) -> bool:
        """Whether the value is there already, form and bytes."""
        found = self._memory.blobs.of(agent).get(name)
        if found is None or found.source is not None or found.form != value.form:
            return False
        return bool((self._access.read("host", list(found.segment.host)) == value.rows).all())

    def _write_changed(self, blob: Blob, rows: Bytes2D) -> int:
        segment = blob.segment
        differs = (self._access.read("host", list(segment.host)) != rows).any(axis=1)
        changed = np.flatnonzero(differs).tolist()
        if changed:
            self._access.write("host", [segment.host[at] for at in changed], rows[changed])
        copied = [at for at in changed if at < segment.device.valid]
        if copied:
            self._access.write("device", [segment.device[at] for at in copied], rows[copied])
        return len(changed)
