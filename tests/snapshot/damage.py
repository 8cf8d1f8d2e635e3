"""Snapshots that were damaged on the disk: a bit flipped, or the end cut off, in any file."""

from __future__ import annotations

import random
import shutil
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from scalesim.engine.engine import Engine
from scalesim.errors import SnapshotError, SnapshotWarning
from scalesim.memory.audit.integrity import check_integrity
from scalesim.snapshot.page_file import HEADER_BYTES
from tests.snapshot.village import Village, parts

TEXTS_EVERY = 16  # so often the village plays on; the books are compared each time


@cache
def sound() -> tuple[Path, dict[int, list[list[list[int]]]]]:
    """A folder with two generations, and what the village says next, by generation."""
    folder, village = (
        Path(mkdtemp(prefix="scalesim-damage-")),
        Village(agents=6, seed=2, keeps=True),
    )
    with Engine(parts()) as engine:
        village.play(engine, 2)
        first = engine.snapshot(folder, data=village.data())
        one = village.copy()
        village.play(engine)
        second = engine.snapshot(folder, data=village.data())
    with Engine(parts()) as engine:
        later = Village(agents=6, seed=2, keeps=True).play(engine, 6)
    assert one.tick == 2
    return folder, {first.generation: later[2:4], second.generation: later[3:5]}


def run(seed: int) -> Counter[str]:
    """Damage a copy of ``sound`` once or twice; what is restored is right, or nothing is."""
    rng = random.Random(seed)
    original, expected = sound()
    found: Counter[str] = Counter(damages=1)
    with TemporaryDirectory() as root:
        folder = Path(root, "s")
        shutil.copytree(original, folder)
        files = [path for path in sorted(folder.iterdir()) if path.name != "lock"]
        matters = [damage(rng.choice(files), rng) for _ in range(rng.choice([1, 1, 1, 3]))]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", SnapshotWarning)
            try:
                engine = Engine.restore(folder, parts())
            except SnapshotError as error:
                assert "no snapshot that can be restored" in str(error)
                found["refused"] += 1
                return found
        with engine:
            restored = engine.restored
            assert restored is not None
            check_integrity(engine.parts.memory)  # nothing runs yet
            if told:
                found["warned"] += 1
            newest = restored.generation == max(expected)
            hit = [name for name, does in matters if does and f"-{max(expected):08d}" in name]
            assert told or not any(name.startswith("snapshot") for name in hit), matters
            assert told or (newest and not restored.num_damaged), matters
            village = Village.of(restored.data)
            found["values"] += village.check_values(engine)
            if seed % TEXTS_EVERY == 0:
                said = village.play(engine, 2)
                assert said == expected[restored.generation], (seed, matters)
                found["texts"] += 1
    return found


def damage(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Damage ``path``; its name, and whether anything that is read was hit. The end of a page
    file's header is not read."""
    raw = bytearray(path.read_bytes())
    if not raw:
        return path.name, True  # nothing is left of it since it was damaged before
    at = rng.randrange(len(raw))
    if rng.random() < 0.3:
        del raw[at:]
    else:
        raw[at] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    return path.name, not path.name.startswith("pages") or at >= HEADER_BYTES
