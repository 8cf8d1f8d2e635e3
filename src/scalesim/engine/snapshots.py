"""Snapshots of an engine: how one is taken while the engine runs, and what is in it.

The state is taken at one moment, between two steps on the engine's thread. Pages follow in pieces,
each between two steps, on its way to a file: KV never changes its meaning, so pages need not be of
one moment. Pages that an earlier generation has are not written again. The manifest is last.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scalesim._version import __version__
from scalesim.core import Bytes2D
from scalesim.engine.parts import EngineParts
from scalesim.engine.restoring import image_in, places_in
from scalesim.engine.world import WorldState
from scalesim.errors import SnapshotError
from scalesim.memory.image import BlockRange, LiveBlocks, MemoryImage, image_of
from scalesim.memory.image_columns import to_columns
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.agent_registry import AgentRegistry, ForkedId
from scalesim.snapshot.block_keys import BlockKeys, keys_of_segments
from scalesim.snapshot.folder import KEPT, SnapshotFolder
from scalesim.snapshot.page_file import PageFileWriter, PagePlace

PIECE_BYTES = 8 << 20
"""Pages that are copied between two steps: some milliseconds."""
MAX_FILES = 16
"""Page files that a manifest refers to. The pages of the smallest are written anew beyond it."""
AskEngine = Callable[[Callable[[], Any]], Any]


class Snapshot(NamedTuple):
    """A snapshot that was written: generation ``generation`` in ``path``, of ``num_agents`` agents
    at ``tick`` of the clock. It refers to ``num_pages`` pages, of which it wrote
    ``num_new_pages``."""

    path: Path
    generation: int
    tick: float
    num_agents: int
    num_pages: int
    num_new_pages: int


class Moment(NamedTuple):
    """An engine at one moment. ``agents``: (id, name of the adapter); ``adapters``: (name, path,
    digest)."""

    world: WorldState
    image: MemoryImage
    live: LiveBlocks
    agents: list[tuple[Any, str | None]]
    adapters: list[tuple[str, str, str]]


@dataclass
class _Written:
    """What the generations in a folder refer to: pages by key, and the page files by generation."""

    generation: int = 0
    places: dict[bytes, PagePlace] = field(default_factory=dict)
    files: dict[int, set[int]] = field(default_factory=dict)


class Snapshots:
    """Takes the snapshots of one engine, one at a time. ``ask`` runs a function on the engine's
    thread, where ``state`` gives the state of the engine's own world."""

    def __init__(
        self,
        parts: EngineParts,
        registry: AgentRegistry,
        adapters: AdapterRegistry,
        state: Callable[[], WorldState],
        ask: AskEngine,
    ) -> None:
        self._parts, self._registry, self._adapters = parts, registry, adapters
        self._state, self._ask = state, ask
        self._lock = threading.Lock()
        self._keys: BlockKeys | None = None
        self._written: dict[Path, _Written] = {}

    def take(self, path: Path, data: bytes) -> Snapshot:
        """See ``Engine.snapshot``."""
        with self._lock:
            folder = SnapshotFolder(path)
            try:
                with folder.writing() as number:
                    return self._write(folder, number, data)
            except OSError as error:
                self._written.pop(path, None)
                raise SnapshotError(f"{path} cannot be written: {error}") from error

    def _write(self, folder: SnapshotFolder, number: int, data: bytes) -> Snapshot:
        parts, identity = self._parts, self._parts.kv_identity()
        block_bytes = parts.memory.block_size * 4
        if self._keys is None:
            self._keys = BlockKeys(identity, block_bytes)
        before = self._written_in(folder, identity)
        moment: Moment = self._ask(self._take_moment)
        segments = moment.image.segments
        keys = keys_of_segments(
            self._keys, [(found.parent, found.mark, found.tokens) for found in segments]
        )
        known = _worth_keeping(before.places, keys, moment.image)
        writer = None if parts.pages is None else folder.new_pages(number, parts.memory.page_bytes)
        fresh: dict[bytes, PagePlace] = {}
        try:
            if writer is not None:
                for piece in self._pieces(moment.image, keys, known):
                    self._add_piece(writer, moment.live, piece, keys, fresh)
                writer.finish()
        except BaseException:
            if writer is not None:
                writer.abandon()
            raise
        if writer is not None and not fresh:
            writer.abandon()
        places = _places_from_front(moment.image, keys, {**known, **fresh})
        folder.commit(number, self._manifest(moment, identity, places, data))
        self._keys.forget_unused()
        own = {place.file for found in places for place in found}
        files = {**before.files, number: own}
        files = {kept: files[kept] for kept in sorted(files)[-KEPT:]}
        folder.clean(files)
        by_key = {
            key: place
            for of_segment, found in zip(keys, places, strict=True)
            for key, place in zip(of_segment, found, strict=False)
        }
        self._written = {folder.path: _Written(number, by_key, files)}
        return Snapshot(
            folder.path, number, moment.world.advice["now"], len(moment.agents), len(by_key),
            len(fresh),
        )  # fmt: skip

    # -- on the engine's thread ---------------------------------------------------------------

    def _take_moment(self) -> Moment:
        image, live = image_of(self._parts.memory, lambda id: not isinstance(id, ForkedId))
        agents = [(entry.id, entry.adapter) for entry in self._registry.entries()]
        adapters = [(info.name, info.path, info.digest) for info in self._adapters.list()]
        return Moment(self._state(), image, live, agents, adapters)

    # -- pages --------------------------------------------------------------------------------

    def _pieces(
        self, image: MemoryImage, keys: list[list[bytes]], known: dict[bytes, PagePlace]
    ) -> Iterator[list[BlockRange]]:
        """The blocks that are to be written, in pieces of about ``PIECE_BYTES``."""
        most = max(1, PIECE_BYTES // self._parts.memory.page_bytes)
        piece: list[BlockRange] = []
        count = 0
        for index, segment in enumerate(image.segments):
            missing = [at for at in range(segment.num_content) if keys[index][at] not in known]
            for wanted in _ranges(index, missing, most):
                piece.append(wanted)
                count += wanted.num_blocks
                if count >= most:
                    yield piece
                    piece, count = [], 0
        if piece:
            yield piece

    def _add_piece(
        self,
        writer: PageFileWriter,
        live: LiveBlocks,
        piece: list[BlockRange],
        keys: list[list[bytes]],
        fresh: dict[bytes, PagePlace],
    ) -> None:
        """Copy a piece between two steps, and write it."""
        parts = self._parts
        assert parts.pages is not None
        pages, block_bytes = parts.pages, parts.memory.block_size * 4
        found: list[Bytes2D] = self._ask(lambda: live.read(piece, pages, block_bytes))
        there = [(wanted, rows) for wanted, rows in zip(piece, found, strict=True) if len(rows)]
        if not there:
            return
        places = iter(writer.add(np.concatenate([rows for _, rows in there])))
        for wanted, rows in there:
            for at in range(wanted.first, wanted.first + len(rows)):
                fresh[keys[wanted.segment][at]] = next(places)

    # -- the manifest -------------------------------------------------------------------------

    def _manifest(
        self, moment: Moment, identity: str, places: list[list[PagePlace]], data: bytes
    ) -> dict[str, Any]:
        rows = [place for found in places for place in found]
        return {
            "release": __version__,
            "identity": identity,
            "page_bytes": self._parts.memory.page_bytes,
            "agents": moment.agents,
            "adapters": moment.adapters,
            "keys": moment.world.keys,
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

    def _written_in(self, folder: SnapshotFolder, identity: str) -> _Written:
        """What the newest generation in ``folder`` refers to, and where the pages are. Raises
        ``SnapshotError`` where there are generations and none is sound: they are not written
        over."""
        number = folder.newest_number()
        known = self._written.get(folder.path)
        if known is None or known.generation != number:
            known = _Written()
            if number:
                newest = folder.newest()
                known.files[newest.number] = set(newest.manifest["pages"]["file"].tolist())
                if newest.manifest["identity"] == identity:
                    known.places = self._places_by_key(newest.manifest)
        files = {place.file for place in known.places.values()}
        gone = {file for file in files if not folder.pages_path(file).exists()}
        if gone:
            known.places = {k: place for k, place in known.places.items() if place.file not in gone}
        return known

    def _places_by_key(self, manifest: dict[str, Any]) -> dict[bytes, PagePlace]:
        assert self._keys is not None
        image, places = image_in(manifest), places_in(manifest)
        segments = [(found.parent, found.mark, found.tokens) for found in image.segments]
        keys = keys_of_segments(self._keys, segments)
        return {
            key: place
            for of_segment, found in zip(keys, places, strict=True)
            for key, place in zip(of_segment, found, strict=False)
        }


def _ranges(index: int, blocks: list[int], most: int) -> Iterator[BlockRange]:
    """Runs of consecutive ``blocks`` of segment ``index``, of at most ``most`` blocks each."""
    first = 0
    for at in range(1, len(blocks) + 1):
        if at == len(blocks) or blocks[at] != blocks[at - 1] + 1 or at - first == most:
            yield BlockRange(index, blocks[first], at - first)
            first = at


def _worth_keeping(
    places: dict[bytes, PagePlace], keys: list[list[bytes]], image: MemoryImage
) -> dict[bytes, PagePlace]:
    """The pages of earlier generations that this one refers to. Pages of files most of which is
    out of use are left out, so that the files can go: they are written anew."""
    held = {
        key
        for of_segment, segment in zip(keys, image.segments, strict=True)
        for key in of_segment[: segment.num_content]
    }
    known = {key: places[key] for key in held if key in places}
    used = Counter(place.file for place in known.values())
    written: Counter[int] = Counter()
    for place in places.values():
        written[place.file] = max(written[place.file], place.row + 1)
    files = [file for file in used if 2 * used[file] >= written[file]]
    files = sorted(files, key=lambda file: used[file])[-(MAX_FILES - 1) :]
    kept = set(files)
    return {key: place for key, place in known.items() if place.file in kept}


def _places_from_front(
    image: MemoryImage, keys: list[list[bytes]], known: dict[bytes, PagePlace]
) -> list[list[PagePlace]]:
    """Of each segment, where the pages of its first blocks lie: up to the first that has none."""
    found: list[list[PagePlace]] = []
    for of_segment, segment in zip(keys, image.segments, strict=True):
        places = []
        for key in of_segment[: segment.num_content]:
            if (place := known.get(key)) is None:
                break
            places.append(place)
        found.append(places)
    return found
