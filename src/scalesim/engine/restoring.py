"""How an engine goes on from a snapshot.

The manifest is sound as a whole, or is not used; a page is sound by itself, or is a miss. The
engine is new and nobody else has it yet, so all of this runs on the caller's thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from scalesim.checks import shown
from scalesim.core import Bytes2D
from scalesim.distance.distances import Change
from scalesim.engine.parts import EngineParts
from scalesim.engine.saved_adapters import digests_in_manifest
from scalesim.engine.world import WorldState
from scalesim.errors import AdapterError, ModelError, ScaleSimError, SnapshotError, SnapshotWarning
from scalesim.memory.image import MemoryImage, Placed, leave_out_others, put_agents, put_image
from scalesim.memory.image_columns import from_columns
from scalesim.memory.kinds import OriginSource
from scalesim.memory.state import StateAccess
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.model_registry import ModelRegistry
from scalesim.sampling.keys import RequestCounts
from scalesim.snapshot.generations import Generation, Generations
from scalesim.snapshot.page_file import PageFileReader, PagePlace
from scalesim.snapshot.store import SnapshotStore


class Restored(NamedTuple):
    """What an engine was restored from. ``data`` is what the program gave to ``snapshot``.
    ``num_pages`` pages are in their places; ``num_missing`` of the snapshot's are computed again:
    ``num_damaged`` of these did not match their checksums, the others had no room."""

    generation: int
    data: bytes
    num_agents: int
    num_pages: int
    num_missing: int
    num_damaged: int


class SavedPages:
    """The pages of a generation, read segment by segment. A context manager. What cannot be read or
    does not match is counted in ``num_damaged``."""

    def __init__(
        self, generations: Generations, places: Sequence[Sequence[PagePlace]], page_bytes: int
    ) -> None:
        self.num_damaged = 0
        self._generations, self._places, self._page_bytes = generations, places, page_bytes
        self._open = ExitStack()
        self._readers: dict[int, PageFileReader | None] = {}

    def read(self, segment: int, count: int) -> Bytes2D:
        """The first ``count`` pages of ``segment``, or as many as are sound, uint8 ``[n,
        page_bytes]``."""
        wanted = self._places[segment][:count]
        rows = np.zeros((len(wanted), self._page_bytes), np.uint8)
        for at, place in enumerate(wanted):
            reader = self._reader(place.file)
            found, sound = (rows, [False]) if reader is None else reader.read([place])
            if not sound[0]:
                self.num_damaged += 1
                return rows[:at]
            rows[at] = found[0]
        return rows

    def _reader(self, file: int) -> PageFileReader | None:
        if file not in self._readers:
            try:
                reader = self._generations.open_pages(file, self._page_bytes)
                self._readers[file] = self._open.enter_context(reader)
            except SnapshotError:
                self._readers[file] = None
        return self._readers[file]

    def __enter__(self) -> SavedPages:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()


def newest_in(where: SnapshotStore) -> Generation:
    """The newest sound generation in ``where``. Raises ``SnapshotError``."""
    found = Generations(where).newest()
    if found.damaged:
        _warn(f"{where}: generation {found.number} is restored, since {'; '.join(found.damaged)}")
    return found


def image_in(manifest: dict[str, Any]) -> MemoryImage:
    """The image of memory in a manifest. Raises ``SnapshotError``."""
    try:
        return from_columns(manifest["memory"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
        raise SnapshotError(f"the snapshot's memory cannot be read: {error!r:.200}") from error


def places_in(manifest: dict[str, Any]) -> list[list[PagePlace]]:
    """Where the pages of each segment lie. Raises ``SnapshotError``."""
    try:
        pages = manifest["pages"]
        columns = (pages[name].tolist() for name in ("file", "row", "checksum"))
        rows = (PagePlace(*row) for row in zip(*columns, strict=True))
        return [[next(rows) for _ in range(count)] for count in pages["num_pages"].tolist()]
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise SnapshotError(f"the snapshot's pages cannot be found: {error!r:.200}") from error


def fits(parts: EngineParts, manifest: dict[str, Any]) -> bool:
    """Whether pages of the snapshot are pages of this engine: the same KV in the same layout."""
    memory = parts.memory
    return (manifest["identity"], manifest["page_bytes"], manifest["memory"]["block_size"]) == (
        parts.kv_identity(), memory.page_bytes, memory.block_size
    )  # fmt: skip


def restore_memory(
    parts: EngineParts,
    where: SnapshotStore,
    manifest: dict[str, Any],
    weights: Collection[bytes] | None,
) -> tuple[Placed, int]:
    """Put what memory held into ``parts.memory``, which is empty; warn of what is left out: with
    ``weights``, the digests of all models beside the engine's own, also the KV of others. Returns
    what has found a place, and the number of damaged pages."""
    image, memory = image_in(manifest), parts.memory
    places = places_in(manifest)[: len(image.segments)]  # the others are of adapters
    num_pages = sum(map(len, places))
    if parts.pages is None or not num_pages:
        why = "it was taken without pages" if parts.pages is not None else "no pages are read here"
    elif not fits(parts, manifest):
        why = "it is of another model, dtype or page layout"
    else:
        image.segments = [
            segment._replace(num_content=min(segment.num_content, len(found)))
            for segment, found in zip(image.segments, places, strict=True)
        ]
        former = 0 if weights is None else leave_out_others(image, weights)
        if former:
            _warn(
                f"{where}: the KV of {former} models is computed again: their weights are others "
                "now, or a page holds another number of tokens"
            )
        with SavedPages(Generations(where), places, memory.page_bytes) as saved:
            placed = put_image(memory, image, saved.read, parts.pages, parts.store)
        if placed.num_left_out:
            _warn(
                f"{where}: {placed.num_left_out} of {num_pages} pages are computed again: "
                f"{saved.num_damaged} cannot be read as they were written, and the others have no "
                "room or are behind one of those"
            )
        return placed, saved.num_damaged
    put_agents(memory, image, {})
    if num_pages or parts.pages is None:
        _warn(f"{where}: the agents' KV is computed again: {why}")
    return Placed(0, num_pages), 0


def restore_values(parts: EngineParts, where: SnapshotStore, manifest: dict[str, Any]) -> None:
    """Give agents the values that they kept; warn of those for which the host has no room. Before
    KV, which can be computed again."""
    values = manifest.get("values")  # a release before kept none
    if not values or not values["owners"]:
        return
    left_out = values["owners"]
    if parts.pages is not None:
        source_of = partial(
            OriginSource, page_bytes=parts.memory.page_bytes, named=parts.kinds.named
        )
        left_out = StateAccess(parts.memory, parts.pages).put_image(values, source_of)
    if left_out:
        agent, name = left_out[0][:2]
        _warn(
            f"{where}: {len(left_out)} of {len(values['owners'])} values that agents kept are not "
            f"restored, the first is {name!r} of agent {agent!r}: the host has no room; raise "
            "host_memory"
        )


def restore_adapters(
    adapters: AdapterRegistry, parts: EngineParts, where: SnapshotStore, manifest: dict[str, Any]
) -> None:
    """Read the adapters of the snapshot from their folders again, or from the snapshot where they
    were updated; warn of one that is gone, damaged, or has other content: its agents' calls are
    refused until it is added. Digests are of adapters as they lie in pages: with other pages, they
    say nothing of a folder."""
    has_digests = fits(parts, manifest)
    pages_of = _updated_pages(where, manifest)
    for name, folder, digest, *rest in manifest["adapters"]:
        model, form = (*rest, None, None)[:2]  # a release before had none
        try:
            if form is not None:
                adapters.put_back(name, model, form, pages_of[digest], digest)
            elif folder is None:
                raise AdapterError("its weights were given to update(), and are in no folder")
            else:
                adapters.add(name, folder, model=model)
                if has_digests and adapters.info(name).digest != digest:
                    adapters.remove(name)
                    raise AdapterError("its folder has other content now")
        except (AdapterError, ModelError) as error:
            _warn(
                f"{where}: adapter {name!r} is not restored; calls that use it are refused until "
                f"engine.adapters.add() adds it: {error}"
            )
    if gone := _not_saved(manifest["agents"], manifest["adapters"]):
        _warn(
            f"{where}: adapters that agents use were gone when it was taken; calls that use them "
            f"are refused until engine.adapters.add() adds them: {gone}"
        )


def _not_saved(agents: Iterable[Sequence[Any]], saved: Iterable[Sequence[Any]]) -> str:
    """The names that ``agents`` (id, name) use and that are not the first of a ``saved`` one, as
    text; empty if there are none."""
    gone = {name for _, name in agents} - {None, *(name for name, *_ in saved)}
    return shown(sorted(gone)) if gone else ""


def _updated_pages(where: SnapshotStore, manifest: dict[str, Any]) -> dict[str, Bytes2D]:
    """The pages of the adapters that a snapshot holds, by digest: those that are sound, up to the
    first that is not."""
    digests, places = digests_in_manifest(manifest), places_in(manifest)
    places = places[len(places) - len(digests) :]
    with SavedPages(Generations(where), places, manifest["page_bytes"]) as saved:
        return {
            digest: saved.read(index, len(places[index])) for index, digest in enumerate(digests)
        }


def restore_models(
    models: ModelRegistry, where: SnapshotStore, manifest: dict[str, Any]
) -> set[bytes] | None:
    """Read the models beside the engine's own again; warn of one that is gone, whose agents' calls
    are refused until it is added, or has other content. Returns the digests of their weights;
    ``None`` if one is gone."""
    is_whole = True
    for name, folder, dummy_weights, digest in manifest.get("models", ()):
        try:
            models.add(name, folder, dummy_weights)
        except ScaleSimError as error:
            _warn(
                f"{where}: model {name!r} is not restored; calls on it are refused until "
                f"engine.add_model() adds it: {error}"
            )
            is_whole = False
            continue
        if models.known(name).value.digest.hex() != digest:
            _warn(
                f"{where}: the files of model {name!r} have other content now; what its agents "
                "said is computed again with it"
            )
    if gone := _not_saved(manifest.get("agent_models", ()), manifest.get("models", ())):
        _warn(
            f"{where}: models that agents use were gone when it was taken; calls on them are "
            f"refused until engine.add_model() adds them: {gone}"
        )
    return {model.weights.digest for model in models.all()} if is_whole else None


@contextmanager
def reading_manifest(where: SnapshotStore, number: int) -> Iterator[None]:
    """In its block, what a manifest's values break becomes a ``SnapshotError``."""
    try:
        yield
    except ScaleSimError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise SnapshotError(
            f"{where}: generation {number} cannot be restored: {error!r:.200}; was it written by "
            "another release?"
        ) from error


def in_order(changes: Sequence[Change], manifest: dict[str, Any]) -> list[Change]:
    """``changes`` in the order in which memory was told of them before: equal next uses are ordered
    by it."""
    columns = manifest["memory"]
    order = dict(zip(columns["ids"], columns["agents"]["next_seq"].tolist(), strict=True))
    return sorted(changes, key=lambda change: order.get(change[0], 0))


def state_in(manifest: dict[str, Any]) -> WorldState:
    """The state of the world in a manifest."""
    return WorldState(manifest["advice"], RequestCounts.of(manifest["requests"]))


def warn_of_lost_sources(where: SnapshotStore, names: Sequence[str]) -> None:
    """Warn of sources that begin anew."""
    if names:
        _warn(
            f"{where}: what the sources {', '.join(map(repr, names))} had said and learned is not "
            "restored: give sources of these names, made with the same arguments, as sources="
        )


def _warn(message: str) -> None:
    warnings.warn(message, SnapshotWarning, stacklevel=5)
