"""The index of blocks: where the pages of a folder's newest generation lie, by the keys of their
blocks, and to which page files each generation that is kept refers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from scalesim.snapshot.generations import KEPT
from scalesim.snapshot.page_file import PagePlace

MAX_FILES = 16
"""Page files that a generation refers to. The pages of the smallest are written anew beyond it."""

Keys = Sequence[Sequence[bytes]]
"""The keys of each segment's blocks."""
Places = Sequence[Sequence[PagePlace]]
"""Of each segment, where the pages of its first blocks lie."""


@dataclass(frozen=True, slots=True)
class BlockIndex:
    """What is known of a folder; empty for a new one."""

    generation: int = 0
    places: Mapping[bytes, PagePlace] = field(default_factory=dict)
    files: Mapping[int, set[int]] = field(default_factory=dict)

    def after(self, generation: int, keys: Keys, places: Places) -> BlockIndex:
        """The index once ``generation`` is there, whose blocks have these keys and places."""
        by_key = {
            key: place
            for of_segment, found in zip(keys, places, strict=True)
            for key, place in zip(of_segment, found, strict=False)
        }
        files = {**self.files, generation: {place.file for place in by_key.values()}}
        kept = {number: files[number] for number in sorted(files)[-KEPT:]}
        return BlockIndex(generation, by_key, kept)

    def without_files(self, gone: set[int]) -> BlockIndex:
        """The index without the pages in files that are gone."""
        left = {key: place for key, place in self.places.items() if place.file not in gone}
        return BlockIndex(self.generation, left, self.files)

    def worth_keeping(self, held: Iterable[bytes]) -> dict[bytes, PagePlace]:
        """The places of the blocks ``held`` that the next generation refers to. Pages in files most
        of which is out of use are left out, so that the files can go: they are written anew."""
        known = {key: self.places[key] for key in held if key in self.places}
        used = Counter(place.file for place in known.values())
        written: dict[int, int] = {}
        for place in self.places.values():
            written[place.file] = max(written.get(place.file, 0), place.row + 1)
        files = [file for file in used if 2 * used[file] >= written[file]]
        kept = set(sorted(files, key=lambda file: used[file])[-(MAX_FILES - 1) :])
        return {key: place for key, place in known.items() if place.file in kept}


def places_from_front(
    keys: Keys, parents: Sequence[int], known: Mapping[bytes, PagePlace]
) -> list[list[PagePlace]]:
    """Of each segment, where the pages of its first blocks lie: up to the first that has none.
    ``keys`` are of all blocks of the segments; parents (indices, -1 at a root) stand before their
    children. What is behind a block that has no page is of no use: it is left out."""
    found: list[list[PagePlace]] = []
    for of_segment, parent in zip(keys, parents, strict=True):
        found.append([])
        if parent >= 0 and len(found[parent]) < len(keys[parent]):
            continue
        for key in of_segment:
            if (place := known.get(key)) is None:
                break
            found[-1].append(place)
    return found
