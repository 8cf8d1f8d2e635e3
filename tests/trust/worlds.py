"""Machines that look at snapshots and forked worlds, and parts of these that are broken."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest

from scalesim.core import AgentId, Bytes2D
from scalesim.engine.engine import Engine
from scalesim.errors import SnapshotError, SnapshotWarning
from scalesim.memory.disk.slot_store import SlotStore
from scalesim.memory.manager import MemoryManager
from scalesim.snapshot.generations import Generations
from scalesim.snapshot.page_file import PageFileReader, PageFileWriter, PagePlace
from scalesim.testing.bed import OURS
from scalesim.testing.memory_world import AGENTS, MemoryWorld, WorldShape
from scalesim.testing.tag_parts import THREAD_LINK
from tests.snapshot import damage
from tests.snapshot.dying import Dying, emptied
from tests.snapshot.power import PowerLoss, left_of
from tests.snapshot.village import Village, parts

FORKED_TICKS = 3


# -- machines -------------------------------------------------------------------------------------


def power_fails(generations: type[Generations]) -> str | None:
    """Power fails at any moment of a snapshot: what is left must be sound, and a generation."""
    village = Village(agents=4)
    with (
        TemporaryDirectory() as root,
        mock.patch("scalesim.engine.snapshots.Generations", generations),
    ):
        path = Path(root)
        with Engine(parts()) as engine:
            for _ in range(3):
                village.play(engine)
                engine.snapshot(path, data=village.data())
            village.play(engine)
            power = PowerLoss(path)
            with power.watching():
                engine.snapshot(path, data=village.data())
        for image in power.images:
            with left_of(image) as left, warnings.catch_warnings():
                warnings.simplefilter("error", SnapshotWarning)
                try:
                    Engine.restore(left, parts()).close()
                except (SnapshotError, SnapshotWarning) as error:
                    return repr(error)
    return None


def store_dies(generations: type[Generations]) -> str | None:
    """An object store stops answering at any moment of a snapshot: as ``power_fails``."""
    url, village = "memory://bucket/world", Village(agents=4)
    with (
        emptied(),
        mock.patch("scalesim.engine.snapshots.Generations", generations),
        Engine(parts()) as engine,
    ):
        village.play(engine)
        engine.snapshot(url, data=village.data())
        for calls in range(12):
            village.play(engine)
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore", SnapshotWarning)  # old objects that could not go
                Dying(calls, patch)
                with suppress(SnapshotError):
                    engine.snapshot(url, data=village.data())
            with warnings.catch_warnings():
                warnings.simplefilter("error", SnapshotWarning)
                try:
                    Engine.restore(url, parts()).close()
                except (SnapshotError, SnapshotWarning) as error:
                    return repr(error)
    return None


def disk_errs(reader: type[PageFileReader]) -> str | None:
    """Bits flip on the disk: no text may change."""
    damage.sound()
    with mock.patch("scalesim.snapshot.generations.PageFileReader", reader):
        for seed in range(0, 40 * damage.TEXTS_EVERY, damage.TEXTS_EVERY):
            try:
                damage.run(seed)
            except Exception as error:
                return repr(error)
    return None


def slots_turn_over(store: Callable[[Bytes2D], SlotStore]) -> str | None:
    """Between the look at a disk and its reading, all slots become others': a world that goes on
    from the snapshot must have nothing of these."""
    for seed in range(4):
        shape = WorldShape(12, 0.5, 2, seed=seed, disk=2.0)
        world = MemoryWorld(shape, replace(OURS, store=store))
        try:
            for agent in range(AGENTS):
                world.request(agent, "own", 3, 8, 0)
                world.idle(6)
            world.look()
            world.copy_blocks(1000)
            world.turn_over(20)
            world.restart()
            world.check()
        except AssertionError as error:
            return repr(error)
    return None


@cache
def control(seed: int) -> list[list[list[int]]]:
    """What a village says that nobody forks."""
    with Engine(parts()) as engine:
        return Village(seed=seed).play(engine, 2 + FORKED_TICKS)[2:]


def worlds_part(memory: Callable[..., MemoryManager]) -> str | None:
    """A fork and its origin take turns: both must say what they would say alone."""
    for seed in range(3):
        factories = replace(THREAD_LINK, memory=memory)
        try:
            with Engine(parts(factories=factories, device_pages=90)) as engine:
                village = Village(seed=seed)
                village.play(engine, 2)
                other, mine, theirs = village.copy(), [], []
                with engine.fork_world() as fork:
                    for _ in range(FORKED_TICKS):
                        mine += village.play(engine)
                        theirs += other.play(fork)
                engine.forget(sorted({view.id for view in engine.memory.census().agents}, key=str))
                engine.memory.census()
                free = [tier.num_free - tier.num_pages for tier in engine.memory.tiers.values()]
        except Exception as error:
            return repr(error)
        if mine != control(seed) or theirs != control(seed):
            return "other texts"
        if any(free):
            return f"{free} pages are not free"
    return None


# -- what is broken -------------------------------------------------------------------------------


class ManifestBeforeItsPages(Generations):
    """The pages are brought to the disk when the manifest is there already."""

    def new_pages(self, number: int, page_bytes: int) -> PageFileWriter:
        writer = super().new_pages(number, page_bytes)
        self.later, writer.finish = writer.finish, lambda: None  # type: ignore[method-assign]
        return writer

    def commit(self, number: int, manifest: Mapping[str, Any]) -> None:
        super().commit(number, manifest)
        self.later()


class ForgetsWhoElseRefers(Generations):
    """Page files of earlier generations go, to which the newest one still refers."""

    def clean(self, page_files: Mapping[int, set[int]]) -> None:
        super().clean({number: {number} for number in page_files})


class TakesEveryPage(PageFileReader):
    """What the disk gives is taken for what was written."""

    def read(self, places: Sequence[PagePlace]) -> tuple[Bytes2D, list[bool]]:
        rows, _ = super().read(places)
        return rows, [True] * len(places)


class SharesTheTail(MemoryManager):
    """A fork has the same last block as its origin, and both take it for their own."""

    def fork(self, parent: AgentId, child: AgentId) -> None:
        super().fork(parent, child)
        for segment in list(self.tree):
            if (tail := segment.partials.get(parent)) is not None:
                segment.partials.setdefault(child, tail)


class KeepsWhatAForkOwned(MemoryManager):
    """Who is forgotten leaves the pages that a fork of it had as well."""

    def fork(self, parent: AgentId, child: AgentId) -> None:
        super().fork(parent, child)
        super().fork(parent, f"ghost of {child!r}")
