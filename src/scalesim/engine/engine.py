"""The engine: many agents' calls on one model and one page pool.

The engine's life is here, calls are in ``entrypoints``, agents, hints and time in ``world``, and
snapshots in ``snapshots``. Everything reaches the loop through the inbox, in order.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scalesim.checks import flag, function, instance, path_of
from scalesim.config import EngineConfig
from scalesim.distance.combine import Combine, earliest_credible
from scalesim.distance.estimates import Source
from scalesim.distance.voice import Voice
from scalesim.engine import forks
from scalesim.engine.agent import Agents
from scalesim.engine.ask import ask
from scalesim.engine.inbox import Inbox
from scalesim.engine.loop import EngineLoop
from scalesim.engine.memory_view import MemoryView
from scalesim.engine.parts import EngineParts
from scalesim.engine.restoring import (
    Restored,
    in_order,
    newest_in,
    reading_manifest,
    restore_adapters,
    restore_memory,
    restore_models,
    restore_values,
    state_in,
    warn_of_lost_sources,
)
from scalesim.engine.snapshots import Snapshot, Snapshots
from scalesim.engine.sources import EngineListener, checked_voices
from scalesim.engine.stats import EngineStats
from scalesim.engine.thread import EngineThread
from scalesim.engine.world import AgentWorld
from scalesim.errors import ConfigError, SnapshotError
from scalesim.memory.kinds import StateKind
from scalesim.model.values import TENSORS
from scalesim.requests.adapter_home import AdapterHome
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.agent_registry import AgentRegistry
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.model_registry import ModelRegistry
from scalesim.requests.prepare import Intake
from scalesim.requests.tickets import Desk
from scalesim.snapshot.generations import Generation
from scalesim.snapshot.store import SnapshotStore, store_at
from scalesim.trace.recorder import Recorder, check_new


class Engine(AgentWorld):
    """Runs requests of any number of agents: a world, which can be forked.

    ``model`` is a Hugging Face folder or hub id, or ready-made ``EngineParts``. Settings are the
    fields of ``EngineConfig``, given as one (``config``) or by name. ``dummy_weights``: random
    ones, for which the folder's config is enough. ``sources`` say who will call when, beside
    ``expect``; ``combine`` makes one next use of several. ``record``: write a trace of all calls
    and hints to this file, which must not exist yet. Raises ``ConfigError``,
    ``UnsupportedModelError`` or ``WeightsError`` at once. Close it, or use it as a context
    manager.
    """

    restored: Restored | None = None
    """What the engine was restored from; ``None`` for one that was made anew."""

    def __init__(
        self,
        model: str | Path | EngineParts,
        config: EngineConfig | None = None,
        *,
        dummy_weights: bool = False,
        sources: Iterable[Source] = (),
        combine: Combine = earliest_credible,
        record: str | Path | None = None,
        **settings: Any,
    ) -> None:
        voices = checked_voices(sources)
        function("combine", combine, "(at, confidence)", ConfigError)
        flag("dummy_weights", dummy_weights, ConfigError)
        trace = None if record is None else path_of("record", record, ConfigError)
        if trace is not None:
            check_new(trace)
        self.parts = parts = _parts_of(model, config, settings, dummy_weights)
        if not isinstance(model, EngineParts):
            # until there is more to close: whatever is wrong from here on, its threads end
            self._finalizer = weakref.finalize(self, parts.link.close)
        parts.kinds.add(TENSORS)
        self.model, limits = parts.model, parts.limits
        self._inbox, registry = Inbox(), AgentRegistry()
        shared = parts.memory, self._inbox.post_if_open, self._inbox.check_process
        home = AdapterHome(parts.read_adapter, parts.pack_adapter, parts.rebuild_adapter)
        self.models = ModelRegistry(parts.model, home, parts.join_model, *shared)
        self.adapters = AdapterRegistry(self.models.home_of, *shared)
        self._limiter = RequestLimiter(limits.max_open_requests, refuse=limits.when_full == "error")
        self._loop = EngineLoop(
            parts,
            combine=combine,
            limiter=self._limiter,
            bindings=(self.models, self.adapters),
            recorder=None if trace is None else Recorder(trace, parts.memory.block_size),
            is_known=registry.__contains__,
        )
        self._thread = EngineThread(self._loop, self._inbox)
        if not isinstance(model, EngineParts):
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, self._thread.close)  # also at interpreter exit
        self._desk = Desk(self._inbox.post_quietly, self._loop.calls.abandon)
        self._advice, self._keys = self._loop.advice, self._loop.keys
        self._intake = Intake(self.models, registry, self.adapters, self._keys)
        self._agents = Agents(
            registry, self.adapters, self.models, self._advice, self._keys, self._loop, self._inbox,
            self._thread,
        )  # fmt: skip
        self.memory = MemoryView(parts, registry, self._loop, self._inbox, self._thread)
        on_thread = partial(ask, self._thread, self._inbox)
        self._snapshots = Snapshots(
            parts, registry, self.adapters, self.models, self._now, on_thread
        )
        self._listener = EngineListener(self._inbox, self._advice.poll)
        self._source_names: set[str] = set()
        for voice in voices:
            self._advice.listen(voice)
            voice.heard_by(self._listener)
        forks.tell(self)

    def after_fork(self) -> None:
        """In the child of a fork (``forks``): the engine is closed there, and touches nothing that
        it shares with its own process."""
        self._inbox.after_fork()
        if self._loop.recorder is not None:
            self._loop.recorder.after_fork()

    @property
    def device(self) -> str:
        """Where it computes: ``"cpu"``, or ``"cuda:0"`` and so on."""
        return self.parts.device

    @property
    def stats(self) -> EngineStats:
        """Counts of calls, tokens, steps, and of what memory did, since the start: as of now."""
        return self._loop.stats.with_memory(self.parts.memory)

    def add_model(
        self, name: str, path: str | Path, *, dummy_weights: bool = False, replace: bool = False
    ) -> None:
        """Let agents run on a further model, ``path``, which is a Hugging Face folder or hub id:
        ``engine.agent(id, model=name)``. Settings, such as the dtype, are the engine's, but for
        ``dummy_weights``: random ones, other ones for each name.

        Its weights lie in the engine's pools, on pages like KV, and are moved by the soonest next
        use of its agents: more models than fit on the device can serve. Weights that are on no tier
        are read from the folder again. Returns when the model is read and checked.

        ``replace``: the name may have a model, in whose place this one comes between two calls of
        an agent: calls made after the return run on the new model, calls that are open end on the
        one before. KV of the old weights never serves the new; both are given back with the last
        of those calls. Adapters of the name stay, if the new model has the same shapes.

        Raises ``ModelError`` for a name that is taken, unless ``replace``, and for a model that
        does not fit the engine's pages or pool; otherwise what ``Engine`` raises.
        """
        self._inbox.check_open()
        self.models.add(name, path, dummy_weights, replace)

    def remove_model(self, name: str, *, timeout: float | None = None) -> None:
        """Forget the model ``name``, its weights and all KV that was computed with them. Calls of
        agents that use the name are refused from now on, until a model is added under it.

        Raises ``ModelError`` for a name that is unknown, and while open calls run on the model;
        with a ``timeout``, waits so many seconds for these calls to end first.
        """
        self._inbox.check_open()
        self.models.remove(name, timeout=timeout)

    def register_kind(self, kind: StateKind) -> None:
        """Let agents keep values of ``kind`` as their state, also those of forked worlds. A kind
        that is registered later is asked first what it takes; values that a snapshot holds find
        their kind by name. Raises ``StateError`` for what is no ``StateKind``, and where another
        kind has its name."""
        self.parts.kinds.add(kind)

    # -- snapshots ----------------------------------------------------------------------------

    def snapshot(self, path: str | Path, *, data: bytes = b"") -> Snapshot:
        """Write all that the simulation needs to go on to ``path``, a folder or the URL of an
        object store (``"s3://bucket/prefix"``, as fsspec understands it), as a new generation:
        agents and their adapters' names, weights that adapters were updated with, the clock, hints
        and what sources have learned, counts of equal requests, the values that agents keep, and
        KV. Pages that an earlier generation has are not written again. The generation before is
        kept.

        The engine goes on meanwhile: it stops for a look at its state, and for some milliseconds
        for each piece of pages. The state is of one moment. Where calls are open then, requests of
        the open tick count as not yet made: a program that goes on from there makes the whole tick
        again. ``data`` is the program's own, for ``restored``. Forked worlds are no part of it.

        Returns when the snapshot is on the disk, or in the store: killed before that, ``path`` has
        the one before. Raises ``SnapshotError`` where nothing can be written, or another engine
        writes to the folder; a store knows no locks, so give each engine a prefix of its own.
        """
        where = store_at(path)
        instance("data", data, bytes, "encode it", SnapshotError)
        self._inbox.check_open()
        return self._snapshots.take(where, bytes(data))

    @classmethod
    def restore(
        cls,
        path: str | Path,
        model: str | Path | EngineParts,
        config: EngineConfig | None = None,
        *,
        sources: Iterable[Source] = (),
        **settings: Any,
    ) -> Engine:
        """An engine that goes on from the newest sound snapshot in ``path``, a folder or a URL; the
        other arguments are those of ``Engine``. ``restored`` says what was restored.

        The seed is the snapshot's. Sources go on from what those of the same names had learned.
        Adapters are read from their folders again, weights that were given to ``Adapter.update``
        from the snapshot. KV comes back if model, dtype, page layout and
        kernels are the same, and is computed again otherwise, as are pages that are damaged or for
        which there is no room: with a ``SnapshotWarning``, as for all that is not restored. Raises
        ``SnapshotError`` where no generation can be read, and what ``Engine`` raises.
        """
        where = store_at(path)
        found = newest_in(where)
        voices = checked_voices(sources)
        engine = cls(model, config, **settings)
        try:
            engine._go_on_from(where, found, voices)
        except BaseException:
            engine.close()
            raise
        return engine

    def _go_on_from(self, where: SnapshotStore, found: Generation, voices: Sequence[Voice]) -> None:
        manifest, registry = found.manifest, self._agents.registry
        with reading_manifest(where, found.number):
            weights = restore_models(self.models, where, manifest)
            restore_adapters(self.adapters, self.parts, where, manifest)
            models = dict(manifest.get("agent_models", ()))
            for id, adapter in manifest["agents"]:
                self.agent(id)
                entry = registry.known(id)
                entry.adapter, entry.model = adapter, models.get(id)
                self.models.rebind(entry.key, entry.model)
                self.adapters.rebind(entry.key, adapter)
            while not self._inbox.is_empty:  # nobody else has the engine yet
                self._loop.run_command(self._inbox.take())
            changes, lost = self._go_on(state_in(manifest), voices)
            restore_values(self.parts, where, manifest)
            placed, num_damaged = restore_memory(self.parts, where, manifest, weights)
            self._advice.tell(in_order(changes, manifest))
        for voice in voices:
            voice.heard_by(self._listener)
        warn_of_lost_sources(where, lost)
        self.restored = Restored(
            found.number, manifest["data"], len(registry), *placed, num_damaged
        )

    # -- its life -----------------------------------------------------------------------------

    def step(self) -> bool:
        """One step of the loop, on the caller's thread; False when there was nothing to do.

        Raises ``EngineModeError`` when the engine's own thread drives.
        """
        try:
            return self._thread.step()
        finally:
            if self._inbox.is_closed:
                self._finalizer.detach()  # what it died of has the caller's frames, and so us

    def close(self) -> None:
        """End all open calls with ``EngineClosedError``, stop the thread and the link.
        Idempotent."""
        self._thread.close()
        self._finalizer.detach()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *error: object) -> None:
        """``close`` beside the event loop, whose tasks learn meanwhile that their calls ended."""
        await asyncio.to_thread(self.close)


def _parts_of(
    model: str | Path | EngineParts,
    config: EngineConfig | None,
    settings: Mapping[str, Any],
    dummy: bool,
) -> EngineParts:
    if isinstance(model, EngineParts):
        if config is not None or settings or dummy:
            given = next(iter(settings), "config" if config is not None else "dummy_weights")
            raise ConfigError(f"{given} says nothing of Parts, which are made already; leave it")
        return model
    from scalesim.engine.build import build_parts, with_settings

    path_of("model", model, ConfigError)
    # as it was written: "./org/name" is a folder, "org/name" may be a hub's
    return build_parts(os.fspath(model), with_settings(config, settings), dummy)
