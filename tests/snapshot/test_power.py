"""Power that fails at any moment of a snapshot leaves the generation before or the new one."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from scalesim.engine.engine import Engine
from scalesim.errors import SnapshotWarning
from tests.snapshot.power import PowerLoss, left_of
from tests.snapshot.village import Village, parts


def test_generation_g_or_the_one_before(tmp_path: Path) -> None:
    village = Village(agents=4)
    with Engine(parts()) as engine:
        for _ in range(3):
            village.play(engine)
            engine.snapshot(tmp_path, data=village.data())
        power = PowerLoss(tmp_path)
        village.play(engine)
        with power.watching():
            taken = engine.snapshot(tmp_path, data=village.data())
    assert len(power.images) >= 6
    generations = []
    for image in power.images:
        with left_of(image) as folder, warnings.catch_warnings():
            warnings.simplefilter("error", SnapshotWarning)  # nothing is torn
            with Engine.restore(folder, parts()) as engine:
                restored = engine.restored
                assert restored is not None and restored.num_missing == 0
                assert Village.of(restored.data).tick == restored.generation == engine.clock.now
                generations.append(restored.generation)
    assert set(generations) == {taken.generation - 1, taken.generation}
    assert generations[-1] == taken.generation
    assert not any(name.endswith(".part") for name in os.listdir(tmp_path))
