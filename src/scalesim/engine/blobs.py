"""State that an agent keeps beside its calls: tensors by name, in the pages of the engine's pools.

``Agent.state`` is a ``BlobMapping``. A value is checked and packed on the caller's thread, and
written between two steps of the engine's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from scalesim.checks import shown, text
from scalesim.engine.parts import EngineParts
from scalesim.errors import StateError, UnknownAgentError
from scalesim.memory.leases.blobs import ValueForm
from scalesim.memory.state import StateAccess, StoredValue, in_rows
from scalesim.model.values import packed, tensor_of, unpacked
from scalesim.requests.agent_registry import AgentEntry

TENSOR = "tensor"
MAX_NAME_LEN = 256
PATIENCE_S = 10.0
"""How long an assignment waits for copies that hold host pages."""


class BlobMapping(MutableMapping[str, Any]):
    """``Agent.state``: tensors that the agent owns, by name.

    ``state["memory"] = tensor`` keeps a copy of a tensor or a numpy array of any dtype, on whatever
    device it is; ``state["memory"]`` gives a tensor on the engine's device, a copy as well. Values
    lie in pages of the engine's pools: on the host, where they stay, and on the device, to which
    they are loaded before the agent's next use with all that it owns. Snapshots and forks keep
    them.

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
        self._is_active = False

    @contextmanager
    def active(self) -> Iterator[BlobMapping]:
        """In its block ``state[name]`` is one tensor on the engine's device, which may be written:
        at the end of the block, pages whose bytes have changed are written back, and what was
        assigned. If the block raises, nothing is. Raises ``StateError`` within another such block
        of this agent."""
        if self._is_active:
            raise StateError(f"the state of agent {shown(self._entry.id)} is active already")
        self._is_active = True
        try:
            yield self
            for name, tensor in self._live.items():
                self._write(name, tensor)
        finally:
            self._is_active = False
            self._live = {}

    def __getitem__(self, name: str) -> Any:
        if name in self._live:
            return self._live[name]
        access, key = self._store(), self._entry.key
        found: StoredValue = self._ask(lambda: access.read(key, name))
        tensor = unpacked(found.form.form, found.rows.reshape(-1), self._parts.device)
        if self._is_active:
            self._live[name] = tensor
        return tensor

    def __setitem__(self, name: str, value: Any) -> None:
        _checked_name(name)
        tensor = tensor_of(value)
        if not self._is_active:
            self._write(name, tensor)
        elif value is not self._live.get(name):
            self._live[name] = tensor.to(self._parts.device, copy=True)

    def __delitem__(self, name: str) -> None:
        access, key = self._store(), self._entry.key
        if self._live.pop(name, None) is None or name in self._forms():
            self._ask(lambda: access.remove(key, name))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._forms(), *self._live)))

    def __len__(self) -> int:
        return len({*self._forms(), *self._live})

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each value, by name. In pages it takes whole ones."""
        return {name: form.num_bytes for name, form in self._forms().items()}

    def _forms(self) -> dict[str, ValueForm]:
        access, key = self._store(), self._entry.key
        found: dict[str, ValueForm] = self._ask(lambda: access.names(key))
        return found

    def _write(self, name: str, tensor: Any) -> None:
        access, key = self._store(), self._entry.key
        form, data = packed(tensor)
        rows = in_rows(data, self._parts.memory.page_bytes)
        value = ValueForm(len(data), TENSOR, form)
        pause = threading.Event()
        deadline_s = self._parts.time_s() + PATIENCE_S
        while self._ask(lambda: access.write(key, name, value, rows)) is None:
            if self._parts.time_s() > deadline_s:
                raise StateError(
                    f"state {name!r} takes {len(rows)} host pages, and copies have held too many "
                    f"for {PATIENCE_S:.0f} s: raise host_memory"
                )
            pause.wait(0.001)

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
