"""The adapters of an engine, by name: the names that agents use, and the content of each name.

Used from any thread; folders are read on the caller's thread. An adapter's identity is the digest
of its content: two names of one content share pages, and a name with new content is a new adapter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scalesim.checks import flag, number, path_of, shown, text
from scalesim.core import AgentId, Int32s
from scalesim.errors import AdapterError
from scalesim.memory.leases.adapters import ADAPTER, AdapterContent, adapter_spec

if TYPE_CHECKING:
    from scalesim.memory.lease import AttachmentSpec
    from scalesim.memory.manager import MemoryManager
    from scalesim.requests.call import Call

_LOOK_S = 1.0  # how often a waiting thread checks its timeout
ReadAdapter = Callable[["str | Path"], AdapterContent]


@dataclass(eq=False, slots=True)
class _Entry:
    content: AdapterContent
    names: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter's name: the folder it was read from, its size, and the open calls that use it."""

    name: str
    path: str  # as it was given
    num_pages: int  # that the adapter takes in a pool
    digest: str  # of its content, in hex; names with one digest share pages
    activated: bool  # in force only from its invocation tokens on
    open_calls: int  # that use this content, under any name


class AdapterRegistry:
    """``Engine.adapters``. ``post`` runs a function on the engine's thread; ``check`` raises in a
    process that is not the engine's."""

    def __init__(
        self,
        read: ReadAdapter | None,
        memory: MemoryManager,
        post: Callable[[Callable[[], None]], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._read, self._memory, self._post, self._check = read, memory, post, check
        self._lock = threading.RLock()  # ``with`` releases a bare lock even if Ctrl-C strikes
        self._changed = threading.Condition(self._lock)  # for callers that wait in ``remove``
        self._by_name: dict[str, tuple[_Entry, str]] = {}
        self._by_digest: dict[bytes, _Entry] = {}
        self._open: dict[bytes, set[Call]] = {}  # by digest; no empty sets
        self._bound: dict[AgentId, bytes] = {}

    def add(self, name: str, path: str | Path, *, replace: bool = False) -> None:
        """Read the adapter in the folder ``path`` and give it ``name``. Calls made after this use
        the adapter; open calls keep the content that they began with.

        Raises ``AdapterError`` for a folder that cannot be used, and for a name that has other
        content already unless ``replace``.
        """
        self._check()
        name = text("adapter name", name, AdapterError, empty=False)
        path_of("path", path, AdapterError)
        flag("replace", replace, AdapterError)
        if self._read is None:
            raise AdapterError("this engine's parts have no reader of adapters (read_adapter)")
        content = self._read(path)
        with self._lock:
            previous = self._by_name.get(name)
            if previous is not None and previous[0].content.digest != content.digest:
                if not replace:
                    raise AdapterError(
                        f"adapter name {name!r} has other content, from {previous[1]}; remove it, "
                        "or give replace=True"
                    )
                self._let_go(name)
            unread = replace_fields(content, pages=None)  # only the pools keep the pages
            entry = self._by_digest.setdefault(content.digest, _Entry(unread))
            entry.names.add(name)
            self._by_name[name] = (entry, str(path))
            self._post(lambda: self._memory.add_adapter(content))

    def remove(self, name: str, *, timeout: float | None = None) -> None:
        """Forget ``name``. The adapter's pages are freed with its last name. Calls of agents that
        use the name are refused from now on.

        Raises ``AdapterError`` while open calls use the adapter; with a ``timeout``, waits so many
        seconds for these calls to end first.
        """
        self._check()
        timeout_s = 0.0 if timeout is None else number("timeout", timeout, 0.0, error=AdapterError)
        end_s = time.monotonic() + timeout_s
        with self._lock:
            entry = self._entry(name)
            digest = entry.content.digest
            while entry.names == {name} and (users := self._open.get(digest)):
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    raise AdapterError(
                        f"adapter {name!r} is used by {len(users)} open calls; wait for "
                        "them, or give a longer timeout="
                    )
                self._changed.wait(min(left_s, _LOOK_S))
            if name in self._by_name:
                self._let_go(name)

    def list(self) -> list[AdapterInfo]:
        """The adapters, sorted by name."""
        self._check()
        with self._lock:
            return [
                AdapterInfo(
                    name,
                    path,
                    entry.content.num_pages,
                    entry.content.digest.hex(),
                    entry.content.invocation_tokens is not None,
                    len(self._open.get(entry.content.digest, ())),
                )
                for name, (entry, path) in sorted(self._by_name.items())
            ]

    def __contains__(self, name: str) -> bool:
        return isinstance(name, str) and name in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)

    # -- for the engine -----------------------------------------------------------------------

    def bind(self, agent: AgentId, name: str) -> None:
        """Note that ``agent`` uses the adapter ``name``: from now on the adapter's pages are loaded
        and evicted by the agent's next use."""
        with self._lock:
            digest = self._bound[agent] = self._entry(name).content.digest
            self._post(lambda: self._memory.bind_adapter(agent, digest))

    def fork(self, parent: AgentId, child: AgentId) -> None:
        """Bind ``child`` to the adapter of ``parent``. Memory's own fork binds the child as well;
        this note is for ``restore``."""
        with self._lock:
            digest = self._bound.get(parent)
            if digest is not None:
                self._bound[child] = digest

    def unbind(self, agents: Iterable[AgentId]) -> None:
        """Note that ``agents`` are forgotten. Their adapters stay."""
        with self._lock:
            for agent in agents:
                self._bound.pop(agent, None)

    def restore(self) -> None:
        """Tell memory all adapters and bindings again, after a reset. On the engine's thread."""
        with self._lock:
            for entry in self._by_digest.values():
                self._memory.add_adapter(entry.content)
            for agent, digest in self._bound.items():
                self._memory.bind_adapter(agent, digest)

    def num_pages(self, name: str) -> int:
        with self._lock:
            return self._entry(name).content.num_pages

    def uses(self, name: str, tokens: Int32s) -> tuple[AttachmentSpec, ...]:
        """What a call with this prompt needs of the adapter; nothing of an activated one that the
        prompt does not invoke."""
        with self._lock:
            content = self._entry(name).content
        if content.invocation_tokens is None:
            return (adapter_spec(content.digest, content.layout),)
        start = last_invocation(tokens, content.invocation_tokens)
        return () if start is None else (adapter_spec(content.digest, content.layout, start),)

    def hold(self, calls: Iterable[Call]) -> None:
        """Note that ``calls`` use their adapters, until ``let_go``."""
        for call in calls:
            for digest in _digests(call):
                with self._lock:
                    self._open.setdefault(digest, set()).add(call)

    def let_go(self, calls: Iterable[Call]) -> None:
        """Note that ``calls`` have ended, or will never begin. Calls that were not held change
        nothing."""
        for call in calls:
            for digest in _digests(call):
                with self._lock:
                    users = self._open.get(digest, set())
                    users.discard(call)
                    if not users:
                        self._open.pop(digest, None)
                    entry = self._by_digest.get(digest)
                    if entry is not None:
                        self._forget_if_done(entry)
                    self._changed.notify_all()

    def _entry(self, name: str) -> _Entry:
        if name not in self:
            known = ", ".join(sorted(self._by_name)[:8]) or "none"
            raise AdapterError(
                f"adapter {shown(name)} is unknown, or was removed; there are: {known}"
            )
        return self._by_name[name][0]

    def _let_go(self, name: str) -> None:
        entry, _ = self._by_name.pop(name)
        entry.names.discard(name)
        self._forget_if_done(entry)

    def _forget_if_done(self, entry: _Entry) -> None:
        digest = entry.content.digest
        if not entry.names and digest not in self._open:
            del self._by_digest[digest]
            self._post(lambda: self._memory.remove_adapter(digest))


def _digests(call: Call) -> list[bytes]:
    return [use.digest for use in call.attachments if use.kind == ADAPTER]


def last_invocation(tokens: Int32s, invocation: tuple[int, ...]) -> int | None:
    """The position at which the last occurrence of ``invocation`` in ``tokens`` begins, as in
    PEFT; ``None`` if there is no occurrence."""
    size = len(invocation)
    if len(tokens) < size:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(tokens, size)
    found = np.flatnonzero((windows == np.array(invocation)).all(axis=1))
    return int(found[-1]) if len(found) else None
