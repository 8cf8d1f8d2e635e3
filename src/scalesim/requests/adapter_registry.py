"""The adapters of an engine, by name: the names that agents use, and the content of each name.

Used from any thread; folders are read on the caller's thread. An adapter's identity is the digest
of its content: two names of one content share pages, and a name with new content is a new adapter.
The content that a call uses is settled at the moment at which the call is handed in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalesim.checks import flag, instance, number, path_of, shown, text
from scalesim.core import AgentId, Int32s
from scalesim.errors import AdapterError, PromptTooLongError
from scalesim.memory.leases.adapters import ADAPTER, AdapterContent, adapter_spec
from scalesim.requests.adapter import Adapter, AdapterInfo

if TYPE_CHECKING:
    from scalesim.memory.manager import MemoryManager
    from scalesim.requests.call import Call

_LOOK_S = 1.0  # how often a waiting thread checks its timeout
ReadAdapter = Callable[["str | Path"], AdapterContent]
PackAdapter = Callable[[AdapterContent, "Mapping[str, Any]"], AdapterContent]
"""Makes of an adapter and tensors an adapter of the same layout. Raises ``AdapterError``."""


class AdapterHome(NamedTuple):
    """The model that adapters are of: how its adapters are read and packed, its name and the
    ``mark`` of its KV, which the engine's own does not have."""

    read: ReadAdapter | None
    pack: PackAdapter | None
    mark: bytes = b""
    model: str | None = None

    def own(self, content: AdapterContent) -> AdapterContent:
        """``content`` under a digest that no other model's adapter has."""
        if not self.mark:
            return content
        digest = blake2b(self.mark + content.digest, digest_size=16).digest()
        return replace_fields(content, digest=digest)


@dataclass(eq=False, slots=True)
class _Entry:
    content: AdapterContent
    home: AdapterHome
    names: set[str] = field(default_factory=set)


class AdapterRegistry:
    """``Engine.adapters``. ``home_of`` gives the home of a model's adapters by the model's name.
    ``post`` runs a function on the engine's thread; ``check`` raises in a process that is not the
    engine's."""

    def __init__(
        self,
        home_of: Callable[[str | None], AdapterHome],
        memory: MemoryManager,
        post: Callable[[Callable[[], None]], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._home_of = home_of
        self._memory, self._post, self._check = memory, post, check
        self._lock = threading.RLock()  # ``with`` releases a bare lock even if Ctrl-C strikes
        self._changed = threading.Condition(self._lock)  # for callers that wait in ``remove``
        self._by_name: dict[str, tuple[_Entry, str | None]] = {}
        self._by_digest: dict[bytes, _Entry] = {}
        self._open: dict[bytes, set[Call]] = {}  # by digest; no empty sets
        self._bound: dict[AgentId, str] = {}
        self._users: dict[str, set[AgentId]] = {}  # the agents of each name; no empty sets

    def add(
        self, name: str, path: str | Path, *, replace: bool = False, model: str | None = None
    ) -> Adapter:
        """Read the adapter in the folder ``path`` and give it ``name``. Calls made after this use
        the adapter; open calls keep the content that they began with. ``model``: whose adapter it
        is, a name that ``Engine.add_model`` was given, or the engine's own model.

        Raises ``AdapterError`` for a folder that cannot be used, and for a name that has other
        content already unless ``replace``; ``ModelError`` for an unknown model.
        """
        self._check()
        name = text("adapter name", name, AdapterError, empty=False)
        path_of("path", path, AdapterError)
        flag("replace", replace, AdapterError)
        home = self._home_of(model)
        if home.read is None:
            raise AdapterError("this engine's parts have no reader of adapters (read_adapter)")
        self._put(name, home, home.own(home.read(path)), str(path), replace)
        return Adapter(self, name)

    def update(self, name: str, tensors: Mapping[str, Any]) -> None:
        """``Adapter.update``."""
        self._check()
        instance("tensors", tensors, Mapping, "give a state dict: names to tensors", AdapterError)
        packed_for, content = None, None
        while True:
            with self._lock:
                entry = self._entry(name)  # it may have been removed, or replaced, since
                before, home = entry.content, entry.home
                form = home.mark, before.layout, before.invocation_tokens
                if content is not None and form == packed_for:
                    self._put(name, home, content, None, replace=True)
                    return
            packed_for = form
            if home.pack is None:
                raise AdapterError("this engine's parts take no tensors of adapters (pack_adapter)")
            try:
                content = home.own(home.pack(before, tensors))
            except AdapterError as error:
                raise AdapterError(f"adapter {name!r}: {error}") from error

    def _put(
        self, name: str, home: AdapterHome, content: AdapterContent, path: str | None, replace: bool
    ) -> None:
        """Let ``name`` stand for ``content``. The commands of one change reach the loop together,
        before any call that uses the new content."""
        with self._lock:
            previous = self._by_name.get(name)
            is_other = previous is not None and previous[0].content.digest != content.digest
            if previous is not None and is_other and not replace:
                raise AdapterError(
                    f"adapter name {name!r} has other content, from "
                    f"{previous[1] or 'update()'}; remove it, or give replace=True"
                )
            unread = replace_fields(content, pages=None)  # only the pools keep the pages
            entry = self._by_digest.setdefault(content.digest, _Entry(unread, home))
            self._post(lambda: self._memory.add_adapter(content))
            if is_other:
                self._let_go(name)
            entry.names.add(name)
            self._by_name[name] = (entry, path)
            self._tell(name, self._users.get(name, ()))

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
                self._tell(name, self._users.get(name, ()))

    def list(self) -> list[AdapterInfo]:
        """The adapters, sorted by name."""
        self._check()
        with self._lock:
            return [self.info(name) for name in sorted(self._by_name)]

    def info(self, name: str) -> AdapterInfo:
        """``Adapter.info``."""
        with self._lock:
            content, path = self._entry(name).content, self._by_name[name][1]
            return AdapterInfo(
                name,
                path,
                content.num_pages,
                content.digest.hex(),
                content.invocation_tokens is not None,
                len(self._open.get(content.digest, ())),
                self._entry(name).home.model,
            )

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of this name. Raises ``AdapterError``."""
        with self._lock:
            self._entry(name)
        return Adapter(self, name)

    def __contains__(self, name: str) -> bool:
        return isinstance(name, str) and name in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)

    # -- for the engine -----------------------------------------------------------------------

    def name_of(self, adapter: str | Path | Adapter, model: str | None) -> str:
        """The name of ``adapter``: a name that is known, a folder, which is added under its path
        for ``model``, or an adapter of this engine. Raises ``AdapterError``."""
        if isinstance(adapter, Adapter):
            if not adapter.is_of(self):
                raise AdapterError(f"{adapter!r} is another engine's; add it to this one")
            return adapter.name
        name = str(path_of("adapter", adapter, AdapterError))
        if name not in self:
            self.add(name, adapter, model=model)
        return name

    def bind(self, agent: AgentId, name: str | None) -> None:
        """Note that ``agent`` uses the adapter ``name``: from now on the adapter's pages are loaded
        and evicted by the agent's next use. ``None``: the agent uses the base model."""
        with self._lock:
            if name is not None:
                self._entry(name)
            self._note(agent, name)
            self._tell(name, (agent,))

    def fork(self, parent: AgentId, child: AgentId) -> None:
        """Bind ``child`` to the adapter of ``parent``. Memory's own fork binds the child as well;
        this note is for ``restore``, and for new content of the name."""
        with self._lock:
            if parent in self._bound:
                self._note(child, self._bound[parent])

    def unbind(self, agents: Iterable[AgentId]) -> None:
        """Note that ``agents`` are forgotten. Their adapters stay."""
        with self._lock:
            for agent in agents:
                self._note(agent, None)

    def _note(self, agent: AgentId, name: str | None) -> None:
        before = self._bound.pop(agent, None)
        if before is not None:
            self._users[before].discard(agent)
            if not self._users[before]:
                del self._users[before]
        if name is not None:
            self._bound[agent] = name
            self._users.setdefault(name, set()).add(agent)

    def _tell(self, name: str | None, agents: Iterable[AgentId]) -> None:
        """Have memory bind ``agents`` to what ``name`` stands for now."""
        entry = None if name is None else self._by_name.get(name, (None,))[0]
        digest, agents = None if entry is None else entry.content.digest, tuple(agents)

        def bind() -> None:
            for agent in agents:
                self._memory.bind_adapter(agent, digest)

        if agents:
            self._post(bind)

    def restore(self) -> None:
        """Tell memory all adapters and bindings again, after a reset. On the engine's thread."""
        with self._lock:
            for entry in self._by_digest.values():
                self._memory.add_adapter(entry.content)
            for agent, name in self._bound.items():
                if name in self:
                    self._memory.bind_adapter(agent, self._entry(name).content.digest)

    def num_pages(self, name: str) -> int:
        with self._lock:
            return self._entry(name).content.num_pages

    def attach(self, call: Call) -> None:
        """Give ``call`` what it needs of its adapter, with the content of now: nothing of an
        activated one that the prompt does not invoke. Raises ``AdapterError``, or
        ``PromptTooLongError`` unless the device pool can hold the call and its adapter."""
        if call.adapter is None:
            return
        with self._lock:
            entry = self._entry(call.adapter)
            content = entry.content
        if call.mark != entry.home.mark:
            raise AdapterError(
                f"adapter {call.adapter!r} is another model's than the call's; give adapter='' for "
                "none, or add the adapter with model="
            )
        self._check_room(call, content)
        start: int | None = 0
        if content.invocation_tokens is not None:
            start = last_invocation(call.tokens, content.invocation_tokens)
        others = tuple(use for use in call.attachments if use.kind != ADAPTER)
        call.attachments = (
            others
            if start is None
            else (*others, adapter_spec(content.digest, content.layout, start))
        )

    def _check_room(self, call: Call, content: AdapterContent) -> None:
        num_tokens = len(call.tokens) + call.request.params.max_tokens
        needed = -(-num_tokens // self._memory.block_size) + content.num_pages
        if needed > self._memory.num_pages:
            raise PromptTooLongError(
                f"{num_tokens} tokens and adapter {call.adapter!r} of {content.num_pages} pages "
                f"need {needed} pages; the device pool has {self._memory.num_pages}; raise "
                "device_memory"
            )

    def hold(self, calls: Iterable[Call]) -> None:
        """Note that ``calls``, which are handed in now, use their adapters, until ``let_go``: all
        of them with the content of this moment."""
        with self._lock:
            for call in calls:
                with suppress(AdapterError, PromptTooLongError):  # the content of before, if it is
                    self.attach(call)  # there still; otherwise the call ends with AdapterError
                for digest in _digests(call):
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
