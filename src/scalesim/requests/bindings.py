"""Bindings: what names stand for, which agents use which name, and which calls use which content.

A name may be given other content while agents use it. Their next calls use the new content, and the
old one stays until the calls that began with it have ended. Used from any thread; memory is told on
the engine's.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar
from weakref import WeakSet

from scalesim.checks import number, shown
from scalesim.core import AgentId
from scalesim.errors import ScaleSimError

if TYPE_CHECKING:
    from scalesim.requests.call import Call

_LOOK_S = 1.0  # how often a waiting thread checks its timeout
ContentKey: TypeAlias = "tuple[bytes, int]"
"""Digest and layout, as in an ``AttachmentSpec``. Memory knows content by the digest alone."""
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Version(Generic[T]):
    """Content as long as it is in use: under ``names``, each with what is noted of it, or by
    ``calls`` that are open. A call that is never handed in counts for as long as somebody has
    it."""

    key: ContentKey
    value: T
    names: dict[str, Any] = field(default_factory=dict)
    calls: WeakSet[Call] = field(default_factory=WeakSet)


class Bindings(ABC, Generic[T]):
    """The names of one ``kind`` of attachment, which errors call ``noun``. ``post`` runs a function
    on the engine's thread; ``check`` raises in a process that is not the engine's."""

    kind: ClassVar[str]
    noun: ClassVar[str]
    error: ClassVar[type[ScaleSimError]]

    def __init__(
        self,
        post: Callable[[Callable[[], None]], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._post, self._check = post, check
        self._lock = threading.RLock()  # ``with`` releases a bare lock even if Ctrl-C strikes
        self._changed = threading.Condition(self._lock)  # for callers that wait in ``remove``
        self._by_name: dict[str, Version[T]] = {}
        self._versions: dict[ContentKey, Version[T]] = {}
        self._unnamed: dict[ContentKey, Version[T]] = {}  # which calls use
        self._bound: dict[AgentId, str] = {}
        self._users: dict[str, set[AgentId]] = {}  # the agents of each name; no empty sets

    # -- memory, on the engine's thread -------------------------------------------------------

    @abstractmethod
    def _join(self, value: T) -> None:
        """Tell memory of content, which it may know."""

    @abstractmethod
    def _leave(self, value: T, is_last: bool) -> None:
        """Content left; ``is_last``: and no other version has its digest."""

    @abstractmethod
    def _own(self, agent: AgentId, digest: bytes | None) -> None:
        """Have memory move this content by the next use of ``agent``; no effect if it left."""

    def restore(self) -> None:
        """Tell memory all content and bindings again, after a reset. On the engine's thread."""
        with self._lock:
            for version in self._versions.values():
                self._join(version.value)
            for agent, name in self._bound.items():
                if name in self:
                    self._own(agent, self._by_name[name].key[0])

    # -- names --------------------------------------------------------------------------------

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)

    def remove(self, name: str, *, timeout: float | None = None) -> None:
        """Forget ``name``. The pages of what it stands for are freed with its last name. Calls of
        agents that use the name are refused from now on.

        Raises this kind's error for a name that is unknown, and while open calls use what it stands
        for; with a ``timeout``, waits so many seconds for these calls to end first.
        """
        self._check()
        timeout_s = 0.0 if timeout is None else number("timeout", timeout, 0.0, error=self.error)
        end_s = time.monotonic() + timeout_s
        with self._lock:
            version: Version[T] | None = self.known(name)
            while version is not None and version.names.keys() == {name} and version.calls:
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    raise self.error(
                        f"{self.noun} {shown(name)} is used by {len(version.calls)} open calls; "
                        "wait for them, or give a longer timeout="
                    )
                self._changed.wait(min(left_s, _LOOK_S))
                version = self._by_name.get(name)
            if version is not None:
                del self._by_name[name]
                self._unname(version, name)
                self._tell(name, self._users.get(name, ()))
                self._drop_unused()

    def known(self, name: str) -> Version[T]:
        """What ``name`` stands for. Raises this kind's error."""
        found = self._by_name.get(name) if isinstance(name, str) else None
        if found is None:
            names = ", ".join(map(shown, sorted(self._by_name)[:8])) or "none"
            raise self.error(
                f"{self.noun} {shown(name)} is unknown, or was removed; there are: {names}"
            )
        return found

    def _put(self, name: str, key: ContentKey, value: T, read: T, note: Any = None) -> None:
        """Let ``name`` stand for ``value``; ``read`` is the same with its pages. All commands of
        one change are posted before any call that uses the new content."""
        with self._lock:
            version = self._versions.setdefault(key, Version(key, value))
            previous = self._by_name.get(name)
            self._by_name[name] = version
            version.names[name] = note
            self._unnamed.pop(key, None)
            self._post(lambda: self._join(read))
            if previous is not None and previous is not version:
                self._unname(previous, name)
            self._tell(name, self._users.get(name, ()))
            self._drop_unused()

    def _unname(self, version: Version[T], name: str) -> None:
        del version.names[name]
        if not version.names:
            self._unnamed[version.key] = version

    def _drop_unused(self) -> None:
        for key, version in list(self._unnamed.items()):
            if not version.calls:
                del self._unnamed[key], self._versions[key]
                is_last = all(other[0] != key[0] for other in self._versions)
                self._post(partial(self._leave, version.value, is_last))

    # -- agents -------------------------------------------------------------------------------

    def bind(self, agent: AgentId, name: str | None) -> None:
        """Note that ``agent`` uses ``name``: from now on the pages of what it stands for are loaded
        and evicted by the agent's next use. ``None``: the agent uses none. Raises this kind's
        error."""
        with self._lock:
            if name is not None:
                self.known(name)
            self.rebind(agent, name)

    def rebind(self, agent: AgentId, name: str | None) -> None:
        """``bind`` as it was before, also to a name that was removed: once that stands for
        something again, ``agent`` uses it."""
        with self._lock:
            self._note(agent, name)
            self._tell(name, (agent,))

    def fork(self, parent: AgentId, child: AgentId) -> None:
        """Bind ``child`` to the name of ``parent``. Memory's own fork binds the child as well; this
        note is for ``restore``, and for new content of the name."""
        with self._lock:
            if parent in self._bound:
                self._note(child, self._bound[parent])

    def unbind(self, agents: Iterable[AgentId]) -> None:
        """Note that ``agents`` are forgotten. What they used stays."""
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
        digest = self._by_name[name].key[0] if name in self else None  # type: ignore[index]
        agents = tuple(agents)

        def bind() -> None:
            for agent in agents:
                self._own(agent, digest)

        if agents:
            self._post(bind)

    # -- calls --------------------------------------------------------------------------------

    def use(self, call: Call) -> bool:
        """Note that ``call`` uses what is attached to it, until ``let_go``. Returns False, with
        nothing noted, if that has left meanwhile."""
        with self._lock:
            found = [self._versions.get(key) for key in self._keys(call)]
            for version in found:
                if version is None:
                    return False
                version.calls.add(call)
        return True

    def let_go(self, calls: Iterable[Call]) -> None:
        """Note that ``calls`` have ended, or will never begin. Calls that use nothing of this kind
        change nothing."""
        for call in calls:
            for key in self._keys(call):
                with self._lock:
                    if (version := self._versions.get(key)) is not None:
                        version.calls.discard(call)
                    self._drop_unused()
                    self._changed.notify_all()

    def _keys(self, call: Call) -> Iterator[ContentKey]:
        return ((use.digest, use.layout) for use in call.attachments if use.kind == self.kind)
