"""Images of memory: whatever state memory is in, its image fits into other pools, with the same
content under the same tokens."""

from __future__ import annotations

import random
from operator import attrgetter

import numpy as np
import pytest

from scalesim.core import Bytes2D
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.image import BlockRange, MemoryImage, Placed, image_of, put_image
from scalesim.memory.image_columns import from_columns, to_columns
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_access import ArrayPages, TensorPages
from scalesim.snapshot.values import decode, encode
from scalesim.testing.bed import OURS, Bed
from scalesim.testing.memory_walk import MemoryWalk
from scalesim.testing.memory_world import MAX_LEASES, MemoryWorld, WorldShape
from tests.device.hostile_device import HostileDevice

SHAPES = [
    WorldShape(16, 1.0, 4), WorldShape(12, 2.0, 2, "lru-swap"), WorldShape(24, 0.0, 4),
    WorldShape(16, 1.0, 4, adapters=3), WorldShape(9, 0.5, 1), WorldShape(12, 0.5, 2, disk=4.0),
    WorldShape(16, 0.75, 1, "lru-swap", disk=2.0),
]  # fmt: skip


def walked(seed: int) -> MemoryWorld:
    """Memory after a random walk, perhaps with leases and copies under way."""
    shape = SHAPES[seed % len(SHAPES)]
    walk = MemoryWalk(shape, seed, 120)
    world = walk.world()
    for name, arguments in walk.operations()[:-1]:  # all but the end, which lets go of everything
        if name not in ("quiesce", "forget_all"):
            attrgetter(name)(world)(*arguments)
    if any(segment.num_available for segment in world.manager.tree):
        return world
    return walked(seed + 100 * len(SHAPES))  # it ended with all agents forgotten


def fresh(shape: WorldShape, pages: int, host: int, disk: int) -> Bed:
    return Bed(
        OURS, pages=pages, host_pages=host, block_size=shape.block_size, policy=shape.policy,
        max_num_seqs=MAX_LEASES, max_blocks=pages + 1, steps_in_flight=2,
        disk_pages=disk,
    )  # fmt: skip


def blocks_of(image: MemoryImage, pages: list[Bytes2D]) -> dict[tuple[bytes, ...], bytes]:
    """The content of each block of an image by all that it was computed from."""
    found: dict[tuple[bytes, ...], bytes] = {}
    paths: list[tuple[bytes, ...]] = []
    size = image.block_size * 4
    for segment, rows in zip(image.segments, pages, strict=True):
        path = paths[segment.parent] if segment.parent >= 0 else ()
        mark = segment.mark
        for at in range(0, len(segment.tokens), size):
            path, mark = (*path, mark, segment.tokens[at : at + size]), b""
            if at // size < len(rows):
                found[path] = rows[at // size].tobytes()
        paths.append(path)
    return found


def taken(memory: MemoryManager, bed: Bed) -> tuple[MemoryImage, list[Bytes2D]]:
    """An image and all of its pages."""
    image, live = image_of(memory, lambda id: True)
    ranges = [BlockRange(at, 0, found.num_content) for at, found in enumerate(image.segments)]
    access = ArrayPages(bed.device, bed.host)
    pages = live.copy(ranges, access, bed.store).read()
    assert [len(rows) for rows in pages] == [found.num_content for found in image.segments]
    return image, pages


def put(image: MemoryImage, pages: list[Bytes2D], bed: Bed) -> Placed:
    access = ArrayPages(bed.device, bed.host)
    return put_image(bed.memory, image, lambda at, count: pages[at][:count], access, bed.store)


@pytest.mark.parametrize("seed", range(28))
def test_an_image_goes_into_other_pools(seed: int) -> None:
    world = walked(seed)
    image, pages = taken(world.manager, world.bed)
    image = from_columns(decode(encode(to_columns(image))))
    rng = random.Random(seed)
    shape = world.shape
    most = 2 * len(pages) + sum(map(len, pages)) + 1
    num_pages, num_host = rng.choice([most, 4, 8]), rng.choice([0, 3, most])
    bed = fresh(shape, num_pages, num_host, rng.choice([0, 3, most]))
    placed = put(image, pages, bed)
    check_integrity(bed.memory)
    again, copies = taken(bed.memory, bed)
    before, after = blocks_of(image, pages), blocks_of(again, copies)
    assert {path: after[path] for path in after} == {path: before[path] for path in after}
    assert placed.num_pages == len(after) and placed.num_left_out == len(before) - len(after)
    if num_pages == most and num_host in (0, most):
        assert after == before
    owned = {agent.id: agent.statistics for agent in image.agents}
    assert {agent.id: agent.statistics for agent in again.agents} == owned
    for agent in list(owned):
        bed.memory.forget(agent)
    bed.memory.clear()
    check_integrity(bed.memory)
    assert bed.memory.num_free_pages == bed.memory.num_pages


def test_what_was_dropped_meanwhile_is_left_out() -> None:
    world = walked(0)
    image, live = image_of(world.manager, lambda id: True)
    ranges = [BlockRange(at, 0, found.num_content) for at, found in enumerate(image.segments)]
    access = ArrayPages(world.bed.device, world.bed.host)
    before = live.copy(ranges, access, world.bed.store).read()
    for agent in range(5):
        world.manager.forget(agent)
    world.manager.clear()
    after = live.copy(ranges, access, world.bed.store).read()
    assert sum(map(len, after)) < sum(map(len, before))
    for old, new in zip(before, after, strict=True):
        assert not len(new) or np.array_equal(old[: len(new)], new)


def test_nothing_is_read_of_a_memory_that_began_anew() -> None:
    """Its old segments name pages that are others' by then."""
    world = walked(0)
    image, live = image_of(world.manager, lambda id: True)
    ranges = [BlockRange(at, 0, found.num_content) for at, found in enumerate(image.segments)]
    world.manager.reset()
    access = ArrayPages(world.bed.device, world.bed.host)
    copied = live.copy(ranges, access, world.bed.store)
    assert sum(map(len, copied.read())) == 0


def test_columns_of_others_are_refused() -> None:
    world = walked(0)
    image, _ = taken(world.manager, world.bed)
    columns = to_columns(image)
    for change in (
        lambda c: c["segments"]["parent"].__setitem__(0, 5),
        lambda c: c["segments"]["num_content"].__setitem__(0, 999),
        lambda c: c["segments"]["partial_of"].__setitem__(0, 999),
        lambda c: c["agents"]["newest_end"].__setitem__(0, 10**6),
        lambda c: c["paths"].__setitem__((0, 0), -7),
        lambda c: c["segments"].pop("parent"),
        lambda c: c["ids"].pop(),
    ):
        wrong = decode(encode(columns))
        change(wrong)
        with pytest.raises((IndexError, ValueError, KeyError)):
            from_columns(wrong)


def test_pages_of_a_device() -> None:
    torch = pytest.importorskip("torch")
    rows = np.arange(60, dtype=np.uint8).reshape(6, 10)
    pages = torch.zeros((6, 10), dtype=torch.uint8)
    access = TensorPages(pages, np.zeros((6, 10), np.uint8), HostileDevice(order="lazy"))
    for place in ("device", "host"):
        access.write(place, [5, 0, 2], rows[:3])
        assert np.array_equal(access.read(place, [0, 2, 5]), rows[[1, 2, 0]])
        access.write(place, [], rows[:0])
        assert access.read(place, []).shape == (0, 10)
    access.move([5, 0], [3, 4])
    assert np.array_equal(access.read("device", [3, 4, 2]), rows[:3])


@pytest.mark.parametrize("seed", range(20))
def test_pools_of_the_same_sizes_hold_everything(seed: int) -> None:
    world = walked(seed)
    image, pages = taken(world.manager, world.bed)
    shape = world.shape
    host, disk = int(shape.pages * shape.host), int(shape.pages * shape.disk)
    bed = fresh(shape, shape.pages, host, disk)
    assert put(image, pages, bed) == Placed(sum(map(len, pages)), 0)
    check_integrity(bed.memory)
