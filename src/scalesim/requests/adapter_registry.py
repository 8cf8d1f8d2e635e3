"""The adapters of an engine, by name: the names that agents use, and the content of each name.

Folders are read on the caller's thread. An adapter's identity is the digest of its content: two
names of one content share pages, and a name with new content is a new adapter. The content that a
call uses is settled at the moment at which the call is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalesim.checks import flag, instance, is_url, path_of, place_of, shown, text
from scalesim.core import AgentId, Bytes2D, Int32s
from scalesim.errors import AdapterError, PromptTooLongError
from scalesim.memory.lease import ADAPTER
from scalesim.memory.leases.adapters import AdapterContent, adapter_spec
from scalesim.memory.links.link import PageSource
from scalesim.requests.adapter import Adapter, AdapterInfo
from scalesim.requests.adapter_home import AdapterHome
from scalesim.requests.bindings import Bindings

if TYPE_CHECKING:
    from scalesim.memory.manager import MemoryManager
    from scalesim.requests.call import Call


class HomedAdapter(NamedTuple):
    """An adapter and its home."""

    content: AdapterContent
    home: AdapterHome


class _Origin(NamedTuple):
    """The folder or URL of an adapter's name, ``None`` after an update, and the name of its
    model."""

    path: str | None
    model: str | None


class AdapterImage(NamedTuple):
    """An adapter's name in a snapshot: folder, digest in hex and model. One that is in no folder
    has a ``form``, as ``AdapterContent``, and a ``source`` of its pages."""

    name: str
    path: str | None
    digest: str
    model: str | None
    form: Any
    source: PageSource | None


class AdapterRegistry(Bindings[HomedAdapter]):
    """``Engine.adapters``. ``home_of`` gives the home of a model's adapters by the model's name."""

    kind, noun, error = ADAPTER, "adapter", AdapterError

    def __init__(
        self,
        home_of: Callable[[str | None], AdapterHome],
        memory: MemoryManager,
        post: Callable[[Callable[[], None]], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(post, check)
        self._home_of, self._memory = home_of, memory

    def add(
        self, name: str, path: str | Path, *, replace: bool = False, model: str | None = None
    ) -> Adapter:
        """Read the adapter in the folder ``path``, or under a URL as fsspec understands it, and
        give it ``name``. Calls made after this use the adapter; open calls keep the content that
        they began with. ``model``: whose adapter it is, a name that ``Engine.add_model`` was
        given, or the engine's own model.

        Raises ``AdapterError`` for a place that cannot be used, and for a name that has other
        content already unless ``replace``; ``ModelError`` for an unknown model.
        """
        self._check()
        name = text("adapter name", name, AdapterError, empty=False)
        place_of("path", path, AdapterError)
        flag("replace", replace, AdapterError)
        home = self._home_of(model)
        if home.read is None:
            raise AdapterError("this engine's parts have no reader of adapters (read_adapter)")
        content = home.own(home.read(path))
        with self._lock:
            if name in self and not replace:
                self._check_same(name, content, model)
            self._settle(name, home, content, _Origin(content.origin or str(path), model))
        return Adapter(self, name)

    def _check_same(self, name: str, content: AdapterContent, model: str | None) -> None:
        before = self._origin(name)
        if before.model != model:
            raise AdapterError(
                f"adapter name {shown(name)} is of {_words(before.model)}, and not of "
                f"{_words(model)}; choose another name, or give replace=True"
            )
        if self.known(name).key[0] != content.digest:
            raise AdapterError(
                f"adapter name {shown(name)} has other content, from "
                f"{before.path or 'update()'}; remove it, or give replace=True"
            )

    def update(self, name: str, tensors: Mapping[str, Any]) -> None:
        """``Adapter.update``."""
        self._check()
        instance("tensors", tensors, Mapping, "give a state dict: names to tensors", AdapterError)
        packed_for, content = None, None
        while True:
            with self._lock:
                before, home = self.known(name).value  # it may be removed, or replaced, since
                form = home, before.layout, before.invocation_tokens
                if content is not None and form == packed_for:
                    self._settle(name, home, content, _Origin(None, self._origin(name).model))
                    return
            packed_for = form
            if home.pack is None:
                raise AdapterError("this engine's parts take no tensors of adapters (pack_adapter)")
            try:
                content = home.own(home.pack(before, tensors))
            except AdapterError as error:
                raise AdapterError(f"adapter {shown(name)}: {error}") from error

    def _settle(
        self, name: str, home: AdapterHome, content: AdapterContent, origin: _Origin
    ) -> None:
        unread = replace_fields(content, pages=None)  # only the pools keep the pages
        key = content.digest, content.layout
        self._put(name, key, HomedAdapter(unread, home), HomedAdapter(content, home), origin)

    def _origin(self, name: str) -> _Origin:
        origin: _Origin = self.known(name).names[name]
        return origin

    def list(self) -> list[AdapterInfo]:
        """The adapters, sorted by name."""
        self._check()
        with self._lock:
            return [self.info(name) for name in sorted(self._by_name)]

    def info(self, name: str) -> AdapterInfo:
        """``Adapter.info``."""
        with self._lock:
            version, origin = self.known(name), self._origin(name)
            content = version.value.content
            return AdapterInfo(
                name,
                origin.path,
                content.num_pages,
                content.digest.hex(),
                content.invocation_tokens is not None,
                len(version.calls),
                origin.model,
            )

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of this name. Raises ``AdapterError``."""
        with self._lock:
            self.known(name)
        return Adapter(self, name)

    # -- for the engine -----------------------------------------------------------------------

    def image(self) -> tuple[AdapterImage, ...]:
        """All adapters, for a snapshot."""
        with self._lock:
            return tuple(self._image(info) for info in self.list())

    def _image(self, info: AdapterInfo) -> AdapterImage:
        content = self.known(info.name).value.content
        saved = (None, None) if info.path is not None else (content.form, content.source)
        return AdapterImage(info.name, info.path, info.digest, info.model, *saved)

    def put_back(
        self, name: str, model: str | None, form: Any, pages: Bytes2D, digest: str
    ) -> None:
        """Give ``name`` what an image had of it, whose ``pages`` are uint8 ``[n, page_bytes]``.
        Raises ``AdapterError`` where they are not what they were, and ``ModelError``."""
        home = self._home_of(model)
        if home.rebuild is None:
            raise AdapterError("this engine's parts take no tensors of adapters (rebuild_adapter)")
        content = home.own(home.rebuild(form, pages))
        if content.digest.hex() != digest:
            raise AdapterError("its weights are of another dtype or page layout")
        self._settle(name, home, content, _Origin(None, model))

    def name_of(self, adapter: str | Path | Adapter, model: str | None) -> str:
        """The name of ``adapter``: a name that is known, a folder, which is added under its path
        for ``model``, or an adapter of this engine. Raises ``AdapterError``."""
        if isinstance(adapter, Adapter):
            if not adapter.is_of(self):
                raise AdapterError(f"{adapter!r} is another engine's; add it to this one")
            return adapter.name
        is_stored = isinstance(adapter, str) and is_url(adapter)
        name = str(adapter if is_stored else path_of("adapter", adapter, AdapterError))
        if name not in self:
            self.add(name, adapter, model=model)
        return name

    def num_pages(self, name: str) -> int:
        with self._lock:
            return self.known(name).value.content.num_pages

    def attach(self, call: Call) -> None:
        """Give ``call`` what it needs of its adapter, with the content of now: nothing of an
        activated one that the prompt does not invoke. Raises ``AdapterError``, or
        ``PromptTooLongError`` unless the device pool can hold the call and its adapter."""
        if call.adapter is None:
            return
        with self._lock:
            content, home = self.known(call.adapter).value
            model = self._origin(call.adapter).model
        runs_on = None if call.added is None else call.added.name
        if model != runs_on:
            raise AdapterError(
                f"adapter {shown(call.adapter)} is of {_words(model)}, and the call runs on "
                f"{_words(runs_on)}: set agent.model or agent.adapter (adapter='' for one call), "
                f"or add an adapter with model={shown(runs_on)}"
            )
        if call.added is not None and home is not call.added.home:
            raise AdapterError(
                f"adapter {shown(call.adapter)} was made for other shapes than {_words(model)} has "
                "now; add one for these, with replace=True"
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
        block_size = self._memory.block_size_of(call.attachments)
        num_weights = 0 if call.added is None else call.added.weights.num_pages
        needed = -(-num_tokens // block_size) + content.num_pages + num_weights
        if needed > self._memory.num_pages:
            model = f", {num_weights} of its model" if num_weights else ""
            raise PromptTooLongError(
                f"{num_tokens} tokens and adapter {shown(call.adapter)} need {needed} pages "
                f"({content.num_pages} of the adapter{model}); the device pool has "
                f"{self._memory.num_pages}; raise device_memory"
            )

    def hold(self, calls: Iterable[Call]) -> None:
        """Note that ``calls``, which are handed in now, use their adapters, until ``let_go``: all
        of them with the content of this moment. One whose adapter was removed since it was made, or
        has grown too large for it, is refused."""
        with self._lock:
            for call in calls:
                try:
                    self.attach(call)
                except (AdapterError, PromptTooLongError) as error:
                    call.error = error
                else:
                    self.use(call)

    def _join(self, value: HomedAdapter) -> None:
        self._memory.add_adapter(value.content)

    def _leave(self, value: HomedAdapter, is_last: bool) -> None:
        if is_last:
            self._memory.remove_adapter(value.content.digest)

    def _own(self, agent: AgentId, digest: bytes | None) -> None:
        self._memory.bind_adapter(agent, digest)


def _words(model: str | None) -> str:
    return "the engine's own model" if model is None else f"model {shown(model)}"


def last_invocation(tokens: Int32s, invocation: tuple[int, ...]) -> int | None:
    """The position at which the last occurrence of ``invocation`` in ``tokens`` begins, as in
    PEFT; ``None`` if there is no occurrence."""
    size = len(invocation)
    if len(tokens) < size:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(tokens, size)
    found = np.flatnonzero((windows == np.array(invocation)).all(axis=1))
    return int(found[-1]) if len(found) else None
