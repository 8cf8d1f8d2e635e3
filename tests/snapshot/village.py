"""A small village over tags, whose program goes on from any tick."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scalesim.core import Int32s
from scalesim.engine.engine import Engine
from scalesim.engine.parts import EngineParts
from scalesim.engine.world import AgentWorld
from scalesim.requests.reply import Reply
from scalesim.testing.tag_parts import tag_parts

VOCAB = 512


def parts(*, device_pages: int = 48, host_pages: int = 64, **more: Any) -> EngineParts:
    """Parts whose runner verifies every tag that it reads; the state of a village does not fit on
    the device."""
    return tag_parts(
        device_pages=device_pages,
        host_pages=host_pages,
        **{"block_size": 4, "vocab_size": VOCAB, "max_num_seqs": 8, **more},
    )


@dataclass
class Village:
    """``agents`` who speak in turns; each prompt is what the agent has heard and said so far, or
    now and then a template, whose equal requests draw other tokens each time. With ``keeps``, each
    agent keeps what it has heard and said as a value of its state as well."""

    agents: int = 8
    seed: int = 0
    tick: int = 0
    texts: list[list[int]] = field(default_factory=list)  # by agent
    keeps: bool = False

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        if not self.texts:
            self.texts = [
                [rng.randrange(VOCAB) for _ in range(18 + agent)] for agent in range(self.agents)
            ]

    def play(self, world: AgentWorld, ticks: int = 1) -> list[list[list[int]]]:
        """What was said, by tick and call."""
        return [self._play_tick(world) for _ in range(ticks)]

    def _play_tick(self, world: AgentWorld) -> list[list[int]]:
        rng = random.Random(f"{self.seed} {self.tick}")
        speakers = rng.sample(range(self.agents), max(2, self.agents // 2))
        said = []
        for round in range(2):
            requests = []
            for agent in speakers:
                if len(self.texts[agent]) > 80:  # a summary
                    self.texts[agent] = self.texts[agent][:20]
                self.texts[agent] += [rng.randrange(VOCAB) for _ in range(2)]
                prompt = self.texts[agent] if round == 0 else [7, 8, 9]
                requests.append(
                    world.agent(f"a{agent}").request(list(prompt), max_tokens=4, temperature=1.0)
                )
            for agent, reply in zip(speakers, world.run(requests), strict=True):
                assert isinstance(reply, Reply)
                self.texts[agent] += reply.token_ids
                said.append(list(reply.token_ids))
        if self.keeps:
            for agent in range(self.agents):
                world.agent(f"a{agent}").state["heard"] = self._heard(agent)
        for agent in range(self.agents):
            world.agent(f"a{agent}").expect(rng.randrange(6))
        world.tick()
        self.tick += 1
        return said

    def check_values(self, world: AgentWorld) -> int:
        """Compare the values that agents keep with what they have heard and said, once a tick was
        played; how many."""
        for agent in range(self.agents):
            found = world.agent(f"a{agent}").state["heard"]
            assert np.array_equal(found, self._heard(agent)), (self.tick, agent, found)
        return self.agents

    def _heard(self, agent: int) -> Int32s:
        return np.array(self.texts[agent], np.int32)

    def copy(self) -> Village:
        return Village.of(self.data())

    def data(self) -> bytes:
        """All that the program needs to go on."""
        return json.dumps([self.agents, self.seed, self.tick, self.texts, self.keeps]).encode()

    @staticmethod
    def of(data: bytes) -> Village:
        return Village(*json.loads(data))


def settled(engine: Engine) -> float:
    """The clock, once everything that was said has been heard."""
    return engine.memory.census().tick
