"""A small map: a dictionary of numbers that is small while it has one key.

Nearly every segment has one owner, and nearly every agent one path.

A dictionary of one entry takes 230 bytes, a small map 48, and an idle agent has two. Dictionaries
would make a call 2 to 4 % cheaper (``benchmarks overhead``).
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

K = TypeVar("K")
_NOTHING: Mapping[Any, int] = MappingProxyType({})


class SmallMap(MutableMapping[K, int], Generic[K]):
    """A dictionary in the order of insertion. A real dictionary is made with the second entry.

    ``sole`` is the only key, and ``None`` where there is none or several; ``None`` is never a
    key."""

    __slots__ = ("_held", "sole")

    def __init__(self, entries: Mapping[K, int] = _NOTHING) -> None:
        self.sole: K | None = None
        self._held: Any = _NOTHING  # the number of ``sole``; without one, a dictionary
        for key in entries:
            self[key] = entries[key]

    def __len__(self) -> int:
        return 1 if self.sole is not None else len(self._held)

    def __iter__(self) -> Iterator[K]:
        return iter(self._held) if self.sole is None else iter((self.sole,))

    def __contains__(self, key: object) -> bool:
        return key in self._held if self.sole is None else key == self.sole

    def __getitem__(self, key: K) -> int:
        if self.sole is None:
            return int(self._held[key])
        if key == self.sole:
            return int(self._held)
        raise KeyError(key)

    def __setitem__(self, key: K, number: int) -> None:
        if self.sole is None:
            if self._held:
                self._held[key] = number
            else:
                self.sole, self._held = key, number
        elif key == self.sole:
            self._held = number
        else:
            self.sole, self._held = None, {self.sole: self._held, key: number}

    def __delitem__(self, key: K) -> None:
        if self.sole is not None:
            if key != self.sole:
                raise KeyError(key)
            self.sole, self._held = None, _NOTHING
            return
        if key not in self._held:
            raise KeyError(key)
        del self._held[key]
        if len(self._held) == 1:
            ((self.sole, self._held),) = self._held.items()

    def keys(self) -> KeysView[K]:
        """Of the entries as they are now; so is ``items``."""
        return self._entries().keys()

    def items(self) -> ItemsView[K, int]:
        return self._entries().items()

    def _entries(self) -> Mapping[K, int]:
        entries: Mapping[K, int] = self._held if self.sole is None else {self.sole: self._held}
        return entries
