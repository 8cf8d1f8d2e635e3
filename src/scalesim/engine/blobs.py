"""State that an agent keeps beside its calls: values by name, in the pages of the engine's pools.

``Agent.state`` is a ``BlobMapping``. A value is checked and packed on the caller's thread, and
written between two steps of the engine's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from scalesim.checks import number, shown, text
from scalesim.engine.parts import EngineParts
from scalesim.errors import StateError, UnknownAgentError
from scalesim.memory.kinds import OriginSource, Packed, ValueForm, digest_of, packed
from scalesim.memory.links.link import PageSource
from scalesim.memory.state import NewValue, StateAccess, StoredValue
from scalesim.model.values import bytes_in
from scalesim.requests.agent_registry import AgentEntry

MAX_NAME_LEN = 256
PATIENCE_S = 10.0
"""How long an assignment waits for copies that hold host pages, and a reading for pages that are
being filled."""


class BlobMapping(MutableMapping[str, Any]):
    """``Agent.state``: values that the agent owns, by name.

    ``state["memory"] = tensor`` keeps a copy of a tensor or a numpy array of any dtype, on whatever
    device it is; ``state["memory"]`` gives a tensor on the engine's device, a copy as well. Values
    of other kinds are taken once ``Engine.register_kind`` knows them. Values lie in pages of the
    engine's pools: on the host, where they stay unless they can be read again, and on the device,
    to which they are loaded before the agent's next use with all that it owns. Snapshots and forks
    keep them.

    Raises ``StateError`` for what cannot be kept, or where ``host_memory`` has no room;
    ``StateLostError`` for a value that was lost in a fault; ``KeyError`` for a name without value;
    ``UnknownAgentError`` once the agent was forgotten. Every operation waits for the engine's
    thread, for the end of a step at most.
    """

    def __init__(
        self, entry: AgentEntry, parts: EngineParts, ask: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self._entry, self._parts, self._ask = entry, parts, ask
        self._access = None if parts.pages is None else StateAccess(parts.memory, parts.pages)
        self._live: dict[str, Any] = {}  # of the block of ``active``
        self._found: dict[str, ValueForm] = {}  # what was read in it, and not assigned since
        self._gone: set[str] = set()  # what was deleted in it
        self._block = threading.Lock()

    @contextmanager
    def active(self) -> Iterator[BlobMapping]:
        """In its block ``state[name]`` is one value, of tensors one on the engine's device, which
        may be written: at the end of the block, pages whose bytes have changed are written back,
        with what was assigned and deleted in it, at one moment. If the block raises, nothing is.
        The block is the agent's: what other threads do with this state meanwhile is part of it.

        Raises ``StateError`` within another such block of this agent; and at the end, with nothing
        written, where the host has no room for all of it, a value that is read again from its
        origin was changed in place, or what a kind says is wrong."""
        if not self._block.acquire(blocking=False):
            raise StateError(f"the state of agent {shown(self._entry.id)} is active already")
        try:
            yield self
            self._write(self._changed(), self._gone)
        finally:
            self._live, self._found, self._gone = {}, {}, set()
            self._block.release()

    def __getitem__(self, name: str) -> Any:
        if name in self._live:
            return self._live[name]
        if name in self._gone:
            raise KeyError(name)
        found = self._stored(name)
        rows = found.rows
        if rows is None:
            assert found.source is not None
            rows = _read(name, found.form, found.source)
        value = self._view(found.form, rows)
        if self._block.locked():
            self._live[name], self._found[name] = value, found.form
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        _checked_name(name)
        if not self._block.locked():
            self._write({name: self._packed(value)})
        else:
            if value is not self._live.get(name):
                self._live[name] = self._view(*self._packed(value))
            self._found.pop(name, None)
            self._gone.discard(name)

    def __delitem__(self, name: str) -> None:
        access, key = self._store(), self._entry.key
        if not self._block.locked():
            self._ask(lambda: access.remove(key, name))
            return
        is_kept = name not in self._gone and self._ask(lambda: access.has(key, name))
        if self._live.pop(name, None) is None and not is_kept:
            raise KeyError(name)
        self._found.pop(name, None)
        if is_kept:
            self._gone.add(name)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in {**self._forms(), **self._live} if name not in self._gone])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each value, by name. In pages it takes whole ones."""
        return {name: form.num_bytes for name, form in self._forms().items()}

    def _stored(self, name: str) -> StoredValue:
        """The value as it lies in pages, once they are filled."""
        access, key = self._store(), self._entry.key
        pause = threading.Event()
        deadline_s = self._parts.time_s() + PATIENCE_S
        while True:
            found: StoredValue = self._ask(lambda: access.read(key, name))
            if not found.is_coming or self._parts.time_s() > deadline_s:
                return found
            pause.wait(0.001)

    def _forms(self) -> dict[str, ValueForm]:
        access, key = self._store(), self._entry.key
        found: dict[str, ValueForm] = self._ask(lambda: access.names(key))
        return found

    def _packed(self, value: Any) -> Packed:
        return packed(self._parts.kinds.of(value), value, self._parts.memory.page_bytes)

    def _view(self, form: ValueForm, rows: Any) -> Any:
        """The value of ``form`` in ``rows``, which become its own."""
        data = bytes_in(rows, form.num_bytes, self._parts.device)
        return self._parts.kinds.named(form.kind).view(form.form, data, form.origin)

    def _changed(self) -> dict[str, Packed]:
        """What a block of ``active`` has to write. Raises ``StateError`` for a value that was
        changed in place, and is read again from the origin that it still has."""
        values = {}
        for name, value in self._live.items():
            mine, found = self._packed(value), self._found.get(name)
            if found is None or found.origin is None or found.origin != mine.form.origin:
                values[name] = mine
            elif digest_of(self._parts.kinds.named(found.kind), mine) != found.digest:
                raise StateError(
                    f"state {name!r} was changed in place, and is read again from "
                    f"{shown(found.origin)}: change it there, and assign it"
                )
        return values

    def _write(self, values: Mapping[str, Packed], gone: Collection[str] = ()) -> None:
        """Set ``values`` and forget those that are ``gone``, at one moment."""
        access, key = self._store(), self._entry.key
        new = {name: self._new(value) for name, value in values.items()}
        if not new and not gone:
            return
        pause = threading.Event()
        deadline_s = self._parts.time_s() + PATIENCE_S
        while not self._ask(lambda: access.change(key, new, gone)):
            if self._parts.time_s() > deadline_s:
                raise StateError(
                    f"state {', '.join(map(repr, new))} takes "
                    f"{sum(len(rows) for _, rows in values.values())} host pages, and copies have "
                    f"held too many for {PATIENCE_S:.0f} s: raise host_memory"
                )
            pause.wait(0.001)

    def _new(self, value: Packed) -> NewValue:
        form, rows = value
        if form.origin is None:
            return NewValue(form, rows)
        kinds, page_bytes = self._parts.kinds, self._parts.memory.page_bytes
        read_s = kinds.named(form.kind).reread_s(form.origin)
        if read_s is not None:
            read_s = number("reread_s()", read_s, 0.0, error=StateError)
        return NewValue(form, rows, OriginSource(form, page_bytes, kinds.named, read_s))

    def _store(self) -> StateAccess:
        if self._entry.is_forgotten:
            raise UnknownAgentError(f"agent {shown(self._entry.id)} was forgotten, with its state")
        if self._access is None:
            raise StateError("this engine has no pages to keep state in: its parts have none")
        return self._access

    def __repr__(self) -> str:
        return f"BlobMapping({self._entry.id!r})"


def _checked_name(name: object) -> str:
    found = text("name", name, StateError)
    if not 0 < len(found) <= MAX_NAME_LEN:
        raise StateError(f"name {shown(found)} has {len(found)} characters: 1 to {MAX_NAME_LEN}")
    return found


def _read(name: str, form: ValueForm, source: PageSource) -> Any:
    """The pages of a value that no pool has."""
    try:
        return source.read()
    except StateError as error:
        raise StateError(f"state {name!r}: {error}") from error
    except Exception as error:
        raise StateError(
            f"state {name!r} cannot be read again from {shown(form.origin)}: {error!r:.200}"
        ) from error
