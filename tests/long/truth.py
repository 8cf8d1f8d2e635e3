"""What the tiny model says, by transformers, and by an engine whose pool holds everything.

transformers judges a text in one forward pass over it: each token that was taken greedily has the
largest logit, up to rounding. What is drawn, and what goes through adapters or masks, is asked for
again from an engine that never moves a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

from scalesim.core import Floats
from scalesim.engine.engine import Engine
from scalesim.model.checkpoint.loader import LoadedModel, load_model
from scalesim.requests.prepare import Intake
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from tests.engine.world import SHAPE, tiny_engine
from tests.inside import part
from tests.model.adapter_folders import write_adapter
from tests.model_folders import write_dummy_model

NEAR = 2e-3
"""Logits of two implementations differ by less; such a tie goes either way."""
ADAPTERS = ("warm", "cold", "odd")


@cache
def folder() -> Path:
    path = Path(mkdtemp(prefix="scalesim-hostile-"))
    write_dummy_model(path / "model", SHAPE, seed=5)
    for seed, name in enumerate(ADAPTERS):
        write_adapter(path / name, SHAPE, rank=2 + seed, seed=seed)
    return path


@cache
def model() -> LoadedModel:
    return load_model(folder() / "model")


@cache
def oracle() -> Any:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder() / "model", dtype=torch.float32, attn_implementation="eager"
    )
    return loaded.eval()


@torch.no_grad()
def logits(tokens: Sequence[int]) -> Floats:
    """``[len(tokens), vocab]`` by transformers."""
    found: Floats = oracle()(torch.tensor([list(tokens)])).logits[0].float().numpy()
    return found


@torch.no_grad()
def hidden(tokens: Sequence[int]) -> Floats:
    """``[hidden]``: the final hidden state of the last token, of length 1."""
    state = oracle().model(torch.tensor([list(tokens)])).last_hidden_state[0, -1].float().numpy()
    found: Floats = state / np.linalg.norm(state)
    return found


def log_softmax(rows: Floats) -> Floats:
    shifted = rows - rows.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def check_greedy(prompt: Sequence[int], output: Sequence[int]) -> None:
    """Each token of ``output`` is the likeliest behind what stands before it."""
    rows = logits([*prompt, *output])[len(prompt) - 1 : -1]
    short = rows.max(axis=1) - rows[np.arange(len(output)), list(output)]
    wrong = (short > NEAR).nonzero()[0]
    assert not len(wrong), (
        f"token {int(wrong[0])} of {list(output)} behind {list(prompt)} is no likeliest one, by "
        f"{float(short.max()):.3g}"
    )


def check_scores(tokens: Sequence[int], values: Floats) -> None:
    """``values`` are the log-probabilities of all ``tokens`` but the first."""
    want = log_softmax(logits(tokens))[np.arange(len(tokens) - 1), list(tokens[1:])]
    assert np.abs(want - values).max() < NEAR, (tokens, want, values)


class Resident:
    """An engine with room for everything, asked for one text at a time."""

    def __init__(self) -> None:
        self.engine: Engine = tiny_engine(
            model=model(), device_pages=300, host_pages=0, policy="resident"
        )
        for name in ADAPTERS:
            self.engine.adapters.add(name, folder() / name)

    def texts(self, request: Request, adapter: str | None) -> list[tuple[int, ...]]:
        """What ``request`` says, by whatever agent: its draws are fixed by its seed. One that has
        an adapter takes no part in the others' cache."""
        assert request.params.seed is not None or request.params.temperature == 0.0
        name = "nobody" if adapter is None else f"under {adapter}"
        agent = self.engine.agent(name)
        if adapter is not None and agent.adapter is None:
            self.engine.agent(name, adapter=adapter)
        asked = replace(request, agent=name, timeout=None, deadline=None, priority=0)
        reply = self.engine.generate(asked)
        return [each.token_ids for each in reply.samples]

    def numbered(self, request: Request, count: int) -> list[list[tuple[int, ...]]]:
        """What an agent whom nobody has seen says to ``count`` equal requests."""
        agent = self.engine.agent(request.agent)  # type: ignore[arg-type]
        try:
            return [outputs(self.engine.generate(request)) for _ in range(count)]
        finally:
            agent.forget()

    def forget(self) -> None:
        """Keep nothing from one program to the next."""
        self.engine.forget(list(part(self.engine, Intake).agents))


@cache
def resident() -> Resident:
    return Resident()


def outputs(reply: Reply) -> list[tuple[int, ...]]:
    return [each.token_ids for each in reply.samples]
