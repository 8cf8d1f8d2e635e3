"""Snapshots of an engine: how one is taken while the engine runs, and what is in it.

The state is taken at one moment, between two steps on the engine's thread. Pages follow in pieces,
each between two steps, on its way to a file: KV never changes its meaning, so pages need not be of
one moment. The values that agents keep do change, and are copied at that moment. Pages that an
earlier generation has are not written again. The manifest is last.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scalesim._version import __version__
from scalesim.core import AgentId, Bytes2D
from scalesim.engine.parts import EngineParts
from scalesim.engine.restoring import image_in, places_in
from scalesim.engine.saved_adapters import PageKeys, updated_in, updated_keys
from scalesim.engine.world import WorldState
from scalesim.errors import SnapshotError, SnapshotWarning
from scalesim.memory.image import (
    NOBODY,
    BlockRange,
    CopiedBlocks,
    LiveBlocks,
    MemoryImage,
    image_of,
)
from scalesim.memory.image_columns import to_columns
from scalesim.memory.pools.page_access import PageAccess
from scalesim.memory.state import StateAccess
from scalesim.requests.adapter_registry import AdapterImage, AdapterRegistry
from scalesim.requests.agent_registry import AgentRegistry, ForkedId
from scalesim.requests.model_registry import ModelRegistry
from scalesim.snapshot.block_index import BlockIndex, Keys, Places, places_from_front
from scalesim.snapshot.block_keys import BlockKeys
from scalesim.snapshot.generations import Generations
from scalesim.snapshot.page_file import PageFileWriter, PagePlace
from scalesim.snapshot.store import SnapshotStore

PIECE_BYTES = 8 << 20
"""Pages that are copied between two steps: some milliseconds."""
AskEngine = Callable[[Callable[[], Any]], Any]


class Snapshot(NamedTuple):
    """A snapshot that was written: generation ``generation`` in ``path``, a folder or a URL, of
    ``num_agents`` agents at ``tick`` of the clock. It refers to ``num_pages`` pages, of which it
    wrote ``num_new_pages``."""

    path: str
    generation: int
    tick: float
    num_agents: int
    num_pages: int
    num_new_pages: int


class SnapshotMoment(NamedTuple):
    """An engine at one moment. ``agents``: (id, name of the adapter); ``agent_models``: (id, name
    of the model) of those that use another than the engine's own; ``models``: (name, path,
    dummy_weights, digest); ``values``: what agents keep as their state, ``None`` without pages."""

    world: WorldState
    image: MemoryImage
    live: LiveBlocks
    agents: list[tuple[Any, str | None]]
    agent_models: list[tuple[Any, str]]
    models: list[tuple[str, str, bool, str]]
    adapters: tuple[AdapterImage, ...]
    values: dict[str, Any] | None


class Snapshots:
    """Takes the snapshots of one engine, one at a time. ``ask`` runs a function on the engine's
    thread, where ``state`` gives the state of the engine's own world."""

    def __init__(
        self,
        parts: EngineParts,
        registry: AgentRegistry,
        adapters: AdapterRegistry,
        models: ModelRegistry,
        state: Callable[[], WorldState],
        ask: AskEngine,
    ) -> None:
        self._parts, self._registry, self._adapters = parts, registry, adapters
        self._models = models
        self._state, self._ask = state, ask
        self._lock = threading.Lock()
        self._keys: BlockKeys | None = None
        self._index: tuple[str, BlockIndex] | None = None  # of the store written to last

    def take(self, store: SnapshotStore, data: bytes) -> Snapshot:
        """See ``Engine.snapshot``."""
        with self._lock:
            generations = Generations(store)
            try:
                with generations.writing() as number:
                    return self._write(generations, number, data)
            except OSError as error:
                self._index = None
                raise SnapshotError(f"{store} cannot be written to: {error}") from error

    def _write(self, generations: Generations, number: int, data: bytes) -> Snapshot:
        identity = self._parts.kv_identity()
        if self._keys is None:
            self._keys = BlockKeys(identity)
        index = self._index_of(generations, identity)
        moment: SnapshotMoment = self._ask(self._take_moment)
        segments = moment.image.segments
        keys = self._keys.of_image(segments)
        held = [
            of_segment[: segment.num_content]
            for of_segment, segment in zip(keys, segments, strict=True)
        ]
        updated = updated_in(moment.adapters)
        known = index.worth_keeping(key for some in (*held, *updated) for key in some)
        fresh = self._write_pages(generations, number, moment.live, held, known, updated)
        keys = [*keys, *map(list, updated)]
        parents = [*(segment.parent for segment in segments), *(NOBODY for _ in updated)]
        places = places_from_front(keys, parents, {**known, **fresh})
        generations.commit(number, self._manifest(moment, identity, places, data))
        self._keys.forget_unused()
        index = index.after(number, keys, places)
        where = str(generations.store)
        self._index = where, index
        _clean(generations, number, index)
        return Snapshot(
            where, number, moment.world.advice["now"], len(moment.agents),
            len(index.places), len(fresh),
        )  # fmt: skip

    # -- on the engine's thread ---------------------------------------------------------------

    def _take_moment(self) -> SnapshotMoment:
        memory, pages = self._parts.memory, self._parts.pages
        image, live = image_of(memory, _is_own)
        values = None if pages is None else StateAccess(memory, pages).image(_is_own)
        entries = self._registry.entries()
        return SnapshotMoment(
            self._state(),
            image,
            live,
            [(entry.id, entry.adapter) for entry in entries],
            [(entry.id, entry.model) for entry in entries if entry.model is not None],
            [
                (model.name, model.path, model.dummy_weights, model.digest.hex())
                for model in self._models.all()
            ],
            self._adapters.image(),
            values,
        )

    # -- pages --------------------------------------------------------------------------------

    def _write_pages(
        self,
        generations: Generations,
        number: int,
        live: LiveBlocks,
        keys: Keys,
        known: Mapping[bytes, PagePlace],
        updated: Mapping[PageKeys, Bytes2D],
    ) -> dict[bytes, PagePlace]:
        """Write the blocks of ``keys`` that are not ``known``, and pages of ``updated`` adapters by
        their keys, to a new page file. Returns where they lie; without those that were dropped
        meanwhile."""
        pages, page_bytes = self._parts.pages, self._parts.memory.page_bytes
        pieces = _pieces(keys, known, max(1, PIECE_BYTES // page_bytes))
        fresh: dict[bytes, PagePlace] = {}
        if pages is None:
            return fresh
        writer = generations.new_pages(number, page_bytes)
        try:
            for piece in pieces:
                self._write_piece(writer, live, piece, keys, pages, fresh)
            for of_adapter, rows in updated.items():
                if not all(key in known for key in of_adapter):
                    fresh.update(zip(of_adapter, writer.add(rows), strict=True))
            writer.finish()
        except BaseException:
            writer.abandon()
            raise
        if not fresh:
            writer.abandon()
        return fresh

    def _write_piece(
        self,
        writer: PageFileWriter,
        live: LiveBlocks,
        piece: Sequence[BlockRange],
        keys: Keys,
        pages: PageAccess,
        fresh: dict[bytes, PagePlace],
    ) -> None:
        """Copy a piece between two steps, and write it."""
        store = self._parts.store
        copied: CopiedBlocks = self._ask(lambda: live.copy(piece, pages, store))
        found = zip(piece, copied.read(), strict=True)
        there = [(wanted, rows) for wanted, rows in found if len(rows)]
        if not there:
            return
        places = iter(writer.add(np.concatenate([rows for _, rows in there])))
        for wanted, rows in there:
            for at in range(wanted.first, wanted.first + len(rows)):
                fresh[keys[wanted.segment][at]] = next(places)

    # -- the manifest -------------------------------------------------------------------------

    def _manifest(
        self, moment: SnapshotMoment, identity: str, places: Places, data: bytes
    ) -> dict[str, Any]:
        rows = [place for found in places for place in found]
        return {
            "release": __version__,
            "identity": identity,
            "page_bytes": self._parts.memory.page_bytes,
            "agents": moment.agents,
            "agent_models": moment.agent_models,
            "models": moment.models,
            "adapters": [adapter[:-1] for adapter in moment.adapters],
            "values": moment.values,
            "requests": moment.world.counts.columns(),
            "advice": moment.world.advice,
            "memory": to_columns(moment.image),
            "pages": {
                "num_pages": np.array([len(found) for found in places], np.int64),
                "file": np.array([place.file for place in rows], np.int64),
                "row": np.array([place.row for place in rows], np.int64),
                "checksum": np.array([place.checksum for place in rows], np.uint64),
            },
            "data": data,
        }

    def _index_of(self, generations: Generations, identity: str) -> BlockIndex:
        """What the newest of ``generations`` refers to. Raises ``SnapshotError`` where there
        are generations and none is sound: they are not written over."""
        newest = generations.newest_number()
        where, index = self._index or (None, BlockIndex())
        if where != str(generations.store) or index.generation != newest:
            index = self._read_index(generations, identity) if newest else BlockIndex()
        gone = {place.file for place in index.places.values()} - generations.page_files()
        return index.without_files(gone) if gone else index

    def _read_index(self, generations: Generations, identity: str) -> BlockIndex:
        assert self._keys is not None
        newest = generations.newest()
        image, places = image_in(newest.manifest), places_in(newest.manifest)
        keys: Keys = [*self._keys.of_image(image.segments), *updated_keys(newest.manifest)]
        index = BlockIndex().after(newest.number, keys, places)
        if newest.manifest["identity"] == identity:
            return index
        return index.without_files(set().union(*index.files.values()))  # other KV


def _clean(generations: Generations, number: int, index: BlockIndex) -> None:
    """Remove what is out of use. Generation ``number`` is there, whatever comes of that."""
    try:
        generations.clean(index.files)
    except (OSError, SnapshotError) as error:
        warnings.warn(
            f"{generations.store}: generation {number} is written, and what is out of use cannot "
            f"be removed, which the next snapshot tries again: {error!s:.300}",
            SnapshotWarning,
            stacklevel=5,
        )


def _is_own(agent: AgentId) -> bool:
    """Whether ``agent`` is of the engine's own world."""
    return not isinstance(agent, ForkedId)


def _pieces(keys: Keys, known: Mapping[bytes, PagePlace], most: int) -> Iterator[list[BlockRange]]:
    """The blocks that are not ``known``, in pieces of about ``most`` blocks."""
    piece: list[BlockRange] = []
    count = 0
    for index, of_segment in enumerate(keys):
        missing = [at for at, key in enumerate(of_segment) if key not in known]
        for wanted in _ranges(index, missing, most):
            piece.append(wanted)
            count += wanted.num_blocks
            if count >= most:
                yield piece
                piece, count = [], 0
    if piece:
        yield piece


def _ranges(index: int, blocks: list[int], most: int) -> Iterator[BlockRange]:
    """Runs of consecutive ``blocks`` of segment ``index``, of at most ``most`` blocks each."""
    first = 0
    for at in range(1, len(blocks) + 1):
        if at == len(blocks) or blocks[at] != blocks[at - 1] + 1 or at - first == most:
            yield BlockRange(index, blocks[first], at - first)
            first = at
