"""A village in Concordia on ScaleSim: six people and a game master, on a pool too small for all.

    pip install . gdm-concordia
    python examples/concordia_village.py [MODEL]

Runs the same simulation twice, without hints and with those of Concordia's own fixed order, and
prints how often an agent's state was on the device when it was needed.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
from concordia.environment.engines import sequential
from concordia.prefabs.entity import minimal
from concordia.prefabs.game_master import dialogic
from concordia.prefabs.simulation import generic
from concordia.typing import prefab

from scalesim.integrations.concordia import AgentModel, announce, own_models

sys.path.insert(0, str(Path(__file__).parent))
from hit_rate import HitRate, hit_rate
from small_model import open_engine

PEOPLE = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn")
RULES = "conversation rules"
STEPS = 18


def village(steps: int) -> prefab.Config:
    prefabs = own_models({"person": minimal.Entity(), RULES: dialogic.GameMaster()}, ["person"])
    people = [
        prefab.InstanceConfig(
            prefab="person",
            role=prefab.Role.ENTITY,
            params={"name": name, "goal": f"{name} wants to win the baking prize. " * 12},
        )
        for name in PEOPLE
    ]
    master = prefab.InstanceConfig(
        prefab=RULES,
        role=prefab.Role.GAME_MASTER,
        params={
            "name": RULES,
            "next_game_master_name": RULES,
            "acting_order": "fixed",
            "can_terminate_simulation": False,
        },
    )
    return prefab.Config(
        default_premise="It is market day in the village.",
        default_max_steps=steps,
        prefabs=prefabs,
        instances=[*people, master],
    )


def play(chosen: str | None, *, hints: bool, steps: int = STEPS) -> HitRate:
    with open_engine(chosen, device_memory="3MB") as engine:
        model = AgentModel(engine, RULES, max_tokens=8, stays_near=hints)
        turns = sequential.Sequential()
        simulation = generic.Simulation(
            config=village(steps),
            model=model,
            embedder=lambda text: np.ones(3),
            engine=announce(turns, model) if hints else turns,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # Concordia tells the whole story
            simulation.play()
        return hit_rate(engine)


def main() -> None:
    chosen = sys.argv[1] if len(sys.argv) > 1 else None
    for hints in (False, True):
        print(f"{'with' if hints else 'without'} hints: {play(chosen, hints=hints)}", flush=True)


if __name__ == "__main__":
    main()
