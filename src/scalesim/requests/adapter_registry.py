"""The adapters of an engine, by name: what agents call them, and what content that means now.

Used from any thread; reads folders on the caller's. Identity is the content's digest: two names of
one content share pages, and a name that is given new content is a new adapter.
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

_LOOK_S = 1.0  # how often a waiting thread looks whether its time is over
ReadAdapter = Callable[["str | Path"], AdapterContent]


@dataclass(eq=False, slots=True)
class _Entry:
    content: AdapterContent
    names: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One name: where it was read from, its size, how many calls that use it are open."""

    name: str
    path: str  # as it was given
    num_pages: int  # of a pool, while it is there
    digest: str  # of its content, in hex; names with one digest share pages
    activated: bool  # in force from its invocation tokens on
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
        self._lock = threading.RLock()  # a bare one: ``with`` gives it back whatever strikes
        self._changed = threading.Condition(self._lock)  # only for who waits in ``remove``
        self._by_name: dict[str, tuple[_Entry, str]] = {}
        self._by_digest: dict[bytes, _Entry] = {}
        self._open: dict[bytes, set[Call]] = {}  # by digest, of those that are used
        self._bound: dict[AgentId, bytes] = {}

    def add(self, name: str, path: str | Path, *, replace: bool = False) -> None:
        """Read the adapter in the folder ``path`` and give it ``name``. Calls made after this use
        it; those that are open keep what they began with.

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
            unread = replace_fields(content, pages=None)  # the pools keep them, or nobody does
            entry = self._by_digest.setdefault(content.digest, _Entry(unread))
            entry.names.add(name)
            self._by_name[name] = (entry, str(path))
            self._post(lambda: self._memory.add_adapter(content))

    def remove(self, name: str, *, timeout: float | None = None) -> None:
        """Forget ``name``; its pages go with its last name. Agents that call themselves by it are
        refused from now on.

        While open calls use it, raises ``AdapterError``; with a ``timeout``, waits so many seconds
        for them to end first.
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
        """What there is, by name."""
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
        """``agent`` calls with ``name``: its pages move with the agent's next use from now on."""
        with self._lock:
            digest = self._bound[agent] = self._entry(name).content.digest
            self._post(lambda: self._memory.bind_adapter(agent, digest))

    def fork(self, parent: AgentId, child: AgentId) -> None:
        """``child`` is bound as ``parent`` is. Memory's own fork says so too, until everything
        begins anew."""
        with self._lock:
            digest = self._bound.get(parent)
            if digest is not None:
                self._bound[child] = digest

    def unbind(self, agents: Iterable[AgentId]) -> None:
        """``agents`` are gone; the adapters stay, for others and under their names."""
        with self._lock:
            for agent in agents:
                self._bound.pop(agent, None)

    def restore(self) -> None:
        """Memory has forgotten everything: tell it again, on the engine's thread."""
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
        """``calls`` use their adapters, until they are let go."""
        for call in calls:
            for digest in _digests(call):
                with self._lock:
                    self._open.setdefault(digest, set()).add(call)

    def let_go(self, calls: Iterable[Call]) -> None:
        """``calls`` have ended, or will never begin. Of those that held nothing, nothing comes."""
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
    """Where the last occurrence of ``invocation`` in ``tokens`` begins: PEFT's rule."""
    size = len(invocation)
    if len(tokens) < size:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(tokens, size)
    found = np.flatnonzero((windows == np.array(invocation)).all(axis=1))
    return int(found[-1]) if len(found) else None
