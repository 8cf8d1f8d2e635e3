"""Hot updates under load: random agents call, switch adapters and get new weights, in any order.

Everything is handed in on one thread, so which weights a call must use is known: those of its
agent's adapter at the moment of the hand-in. What it says is compared with an engine of its own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalesim.engine.engine import Engine
from scalesim.memory.tree.branches import digest_in, weights_in
from scalesim.model.runner.several_models import ModelRunners
from scalesim.requests.call import Call
from tests.inside import part

MAX_OPEN = 24
Said = tuple[tuple[int, ...], int]
Truth = Callable[[list[tuple[list[int], "int | None"]]], list[Said]]
"""What prompts get said under the weights of a number (``None``: the base model's), each alone."""


@dataclass
class Storm:
    """``weights(n)`` are the tensors of number ``n``; all differ. Adapters begin as ``folder``,
    which has the weights of number 0."""

    engine: Engine
    folder: Path | str
    weights: Callable[[int], Any]
    num_agents: int
    seed: int = 0
    prompt_len: int = 40
    output_len: int = 5
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.agents = [self.engine.agent(index) for index in range(self.num_agents)]
        self.numbers = [0] * len(self)  # by adapter: the weights that it has
        self.uses: list[int | None] = list(range(len(self)))  # by agent: its adapter
        self.prompts = [self.tokens(self.prompt_len) for _ in self.agents]
        self.open: list[tuple[Call, list[int], int | None]] = []
        self.ended: list[tuple[Call, list[int], int | None]] = []
        for index in range(len(self)):
            self.begin(index)
            self.assign(index, index)

    def begin(self, which: int) -> None:
        self.engine.adapters.add(f"{which}", self.folder)

    def put(self, which: int, number: int) -> None:
        self.engine.adapters[f"{which}"].update(self.weights(number))

    def assign(self, who: int, which: int | None) -> None:
        self.agents[who].adapter = None if which is None else f"{which}"

    def __len__(self) -> int:
        return self.num_agents

    def tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(256) for _ in range(count)]

    def play(self, num_updates: int) -> None:
        """Until so many updates were made; then all calls end."""
        acts = {self.call: 8, self.update: 4, self.switch: 1, self.hint: 2, self.step: 10}
        while self.counts["updates"] < num_updates:
            [act] = self.rng.choices(list(acts), list(acts.values()))
            act()
            self.counts[act.__name__ + "s"] += 1
        while self.open:
            self.step()

    def call(self) -> None:
        while len(self.open) >= MAX_OPEN:
            self.step()
        who = self.rng.randrange(len(self))
        prompt = self.prompts[who] = [*self.prompts[who], *self.tokens(2)][-2 * self.prompt_len :]
        uses = self.uses[who]
        request = self.agents[who].request(
            prompt, max_tokens=self.output_len, ignore_eos=True, temperature=0.0
        )
        number = None if uses is None else self.numbers[uses]
        self.open.append((self.engine.submit(request), prompt, number))

    def update(self) -> None:
        which = self.rng.randrange(len(self))
        self.numbers[which] = 1 + self.counts["updates"]
        self.put(which, self.numbers[which])

    def switch(self) -> None:
        who, which = self.rng.randrange(len(self)), self.rng.randrange(len(self))
        self.uses[who] = self.rng.choice([which, who, None])
        self.assign(who, self.uses[who])

    def hint(self) -> None:
        self.engine.expect({who: self.rng.randrange(9) for who in range(0, len(self), 3)})
        self.engine.tick()

    def step(self) -> None:
        self.engine.step()
        self.ended += [entry for entry in self.open if entry[0].done]
        self.open = [entry for entry in self.open if not entry[0].done]

    def check_texts(self, truth: Truth) -> None:
        """Each call said what the weights of its hand-in say, to the last bit of the logits."""
        distinct = list({(tuple(prompt), number) for _, prompt, number in self.ended})
        told = truth([(list(prompt), number) for prompt, number in distinct])
        right = dict(zip(distinct, told, strict=True))
        for call, prompt, number in self.ended:
            reply = call.result()
            assert (reply.token_ids, reply.digest) == right[tuple(prompt), number], number

    def check_pages(self) -> None:
        """Memory has the adapters that there are now and KV of no other; once agents and adapters
        are gone, every page is free."""
        memory, adapters = self.engine.parts.memory, self.engine.adapters
        self.settle()
        there = {bytes.fromhex(info.digest) for info in adapters.list()}
        assert len(memory.adapters) == len(there)
        assert {digest_in(each.mark) for each in memory.tree if each.tokens and each.mark} <= there
        self.engine.forget([agent.id for agent in self.agents], wait=False)
        for info in adapters.list():
            adapters.remove(info.name)
        self.check_empty()

    def settle(self) -> None:
        while self.engine.step() or self.engine.parts.memory.is_moving:
            pass

    def check_empty(self) -> None:
        self.settle()
        for tier in self.engine.parts.memory.tiers:
            assert tier.pool.num_used == 0, tier.name


class ModelStorm(Storm):
    """The same with models in place of adapters: ``weights(n)`` is the folder of number ``n``."""

    def begin(self, which: int) -> None:
        self.engine.add_model(f"{which}", self.folder)

    def put(self, which: int, number: int) -> None:
        self.engine.add_model(f"{which}", self.weights(number), replace=True)

    def assign(self, who: int, which: int | None) -> None:
        self.agents[who].model = None if which is None else f"{which}"

    def check_pages(self) -> None:
        """Memory has the weights of the models that there are now and KV of no other; once agents
        and models are gone, every page is free, and the runner knows one model."""
        engine = self.engine
        memory, runner = engine.parts.memory, part(engine, ModelRunners)
        self.settle()
        there = {found.weights.digest for found in engine.models.all()}
        assert len(memory.weights) == len(there)
        assert {weights_in(each.mark) for each in memory.tree if each.tokens} <= {b"", *there}
        assert len(runner) == 1 + len(engine.models)
        engine.forget([agent.id for agent in self.agents], wait=False)
        for name in [found.name for found in engine.models.list()]:
            engine.remove_model(name)
        self.check_empty()
        assert len(runner) == 1
