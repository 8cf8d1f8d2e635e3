"""An agent's own state: values by name, as bytes in pages of the pools.

The books are those of ``BlobPages``; this file moves the bytes. A write goes to the host, where
blobs live, page by page where the bytes differ, and to the copy on the device if there is one. All
of it is called on the engine's thread, between two steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from scalesim.core import AgentId, Bytes2D
from scalesim.memory.leases.blobs import Blob, ValueForm
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_access import PageAccess


class StoredValue(NamedTuple):
    """A value as it lies in pages: ``rows``, uint8 ``[num_pages, page_bytes]``, an array or, where
    they were read from a device, a tensor there."""

    form: ValueForm
    rows: Any


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
            self._memory.ranking.touch(segment)
            self._memory.ranking.refresh(segment)
            return StoredValue(blob.form, self._access.read_there(list(segment.device)))
        return StoredValue(blob.form, self._access.read("host", list(segment.host)))

    def write(self, agent: AgentId, name: str, form: ValueForm, rows: Bytes2D) -> int | None:
        """Set a value. Returns the number of pages written: of a value in as many pages that no
        other agent shares, those that differ. ``None``, with nothing changed, where the host has
        too little room until copies have ended. Raises ``StateError`` where it never has."""
        blobs = self._memory.blobs
        before = blobs.of(agent).get(name)
        if before is not None and len(before.segment.host) == len(rows) and blobs.may_write(before):
            blobs.reform(agent, name, form)
            return self._write_changed(before, rows)
        blob = blobs.add(agent, name, len(rows), form)
        if blob is None:
            return None
        self._access.write("host", list(blob.segment.host), rows)
        return len(rows)

    def remove(self, agent: AgentId, name: str) -> None:
        """Forget a value. Raises ``KeyError`` for one that is not there."""
        if name not in self._memory.blobs.names().get(agent, ()):
            raise KeyError(name)
        self._memory.blobs.discard(agent, name)

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
