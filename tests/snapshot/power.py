"""A disk that loses power: what a folder holds then, at every moment of a snapshot.

Only what was synced is on the disk for sure. Two worst cases are looked at: all names are there,
with the content that each file had when it was last synced; and the names are those of the last
time that the folder was synced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

Image = dict[str, bytes]


class PowerLoss:
    """Watches ``folder`` in its block; ``images`` are what is left of it, in order."""

    def __init__(self, folder: Path) -> None:
        self.images: list[Image] = []
        self._folder = folder
        self._synced: dict[int, bytes] = {}  # by inode: the content when it was synced
        self._names: dict[str, int] = {}  # when the folder was synced
        if folder.exists():
            self._sync_all()

    @contextmanager
    def watching(self) -> Iterator[None]:
        with (
            mock.patch("os.fsync", self._around(os.fsync, self._sync)),
            mock.patch("os.replace", self._around(os.replace)),
            mock.patch("os.unlink", self._around(os.unlink)),
        ):
            yield
        self._look()

    def _around(self, call: Any, then: Callable[[int], None] | None = None) -> Any:
        def watched(*arguments: Any, **more: Any) -> Any:
            self._look()
            result = call(*arguments, **more)
            if then is not None:
                then(arguments[0])
            self._look()
            return result

        return watched

    def _look(self) -> None:
        now = {name: self._synced.get(inode, b"") for name, inode in self._inodes().items()}
        then = {name: self._synced.get(inode, b"") for name, inode in self._names.items()}
        self.images += [image for image in (now, then) if image not in self.images[-2:]]

    def _sync(self, number: int) -> None:
        inode = os.fstat(number).st_ino
        if inode == self._folder.stat().st_ino:
            self._names = self._inodes()
        for name, found in self._inodes().items():
            if found == inode:
                self._synced[inode] = (self._folder / name).read_bytes()

    def _sync_all(self) -> None:
        self._names = self._inodes()
        for name, inode in self._names.items():
            self._synced[inode] = (self._folder / name).read_bytes()

    def _inodes(self) -> dict[str, int]:
        found = os.scandir(self._folder) if self._folder.exists() else []
        return {entry.name: entry.inode() for entry in found}


@contextmanager
def left_of(image: Image) -> Iterator[Path]:
    """A folder that holds ``image``."""
    with TemporaryDirectory() as root:
        for name, content in image.items():
            Path(root, name).write_bytes(content)
        yield Path(root)
