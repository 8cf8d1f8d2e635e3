"""Training: a run that was cut off goes on as if it had not been, and what it ends with loads."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from scalesim import Engine
from tools.village import train
from tools.village.tokens import save_tokenizer, train_tokenizer
from tools.village.train import Recipe, Run, batch, save_model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(0, 100)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROWS": 2, "ROW_LEN": 48, "EVERY": 2, "WARMUP": 1}.items():
        monkeypatch.setattr(train, name, value)
    config = train.model_config()
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 64, 96, 1
    config.num_attention_heads = config.num_key_value_heads = 2
    config.layer_types = None
    monkeypatch.setattr(train, "model_config", lambda: config)


def weights(run: Run) -> list[torch.Tensor]:
    return [each.detach().clone() for each in run.model.parameters()]


def test_steps_decide_and_not_the_cuts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = Run(Recipe(4), tokenizer)
    whole.train(tmp_path / "whole.pt")
    cut = Run(Recipe(4), tokenizer)
    cut.steps = 4
    for _ in range(2):
        cut.one_step()
    cut.save(tmp_path / "cut.pt")
    rest = Run(Recipe(4), tokenizer)
    rest.train(tmp_path / "cut.pt")
    assert rest.losses == whole.losses and len(rest.losses) == 4
    assert all(map(torch.equal, weights(rest), weights(whole)))


def test_a_run_ends_when_its_time_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """It then has the steps that it says, and the same steps give the same model."""
    short = Run(Recipe(10_000, stop_at=time.time()), tokenizer)
    short.train(tmp_path / "short.pt")
    assert short.step == short.steps < 10
    again = Run(Recipe(short.steps), tokenizer)
    again.train(tmp_path / "again.pt")
    assert all(map(torch.equal, weights(short), weights(again)))


def test_batches_follow_from_seed_and_step(tokenizer: Tokenizer) -> None:
    assert torch.equal(batch(tokenizer, 0, 3), batch(tokenizer, 0, 3))
    assert not torch.equal(batch(tokenizer, 0, 3), batch(tokenizer, 0, 4))
    assert not torch.equal(batch(tokenizer, 0, 3), batch(tokenizer, 1, 3))
    assert batch(tokenizer, 0, 3).shape == (2, 48)


def test_the_engine_loads_what_training_writes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = Run(Recipe(1), tokenizer)
    save_tokenizer(tokenizer, tmp_path)
    save_model(run.model, tmp_path)
    with Engine(tmp_path, device="cpu", device_memory="64MB", host_memory=0) as engine:
        messages = [{"role": "user", "content": "Tell a story."}]
        reply = engine.generate(engine.agent("ada").request(messages, max_tokens=4))
    assert reply.usage.output_tokens == 4
