"""Trains the village's model from random weights. The steps decide the result, not the time.

Each step's batch follows from the seed and the step alone, and the checkpoint holds all else, so a
run that was cut off goes on as if it had not been. The learning rate is constant, and falls to zero
over the last steps. A run with ``stop_at`` begins that fall when the time is near; given the steps
that it came to as ``steps``, another run gives the same model.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tools.village.corpus import documents
from tools.village.tokens import MAX_LEN, VOCAB_SIZE, rendered

ROW_LEN = 768
ROWS = 4
WARMUP = 40
DECAY_SHARE = 0.3
"""Of all steps: those over which the learning rate falls."""
EVERY = 25
"""Steps from a checkpoint to the next."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """``stop_at``: seconds of ``time.time()`` at which the run must have ended, or ``None``."""

    steps: int
    seed: int = 0
    matrix_rate: float = 0.02
    other_rate: float = 4e-3
    stop_at: float | None = None


def model_config() -> LlamaConfig:
    """3.3 M parameters, grouped-query attention, the embedding also the head."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_LEN,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )


def rows(tokenizer: Tokenizer, seed: int, number: int, row_len: int) -> Tensor:
    """``[number, row_len]`` int64: each row begins with a document; further ones fill it."""
    source = documents(seed)
    found = []
    for _ in range(number):
        row: list[int] = []
        while len(row) < row_len:
            row += tokenizer.encode(rendered(next(source))).ids
        found.append(row[:row_len])
    return torch.tensor(found)


def batch(tokenizer: Tokenizer, seed: int, step: int) -> Tensor:
    """The rows of a step; the seeds of the held-out text are below all of these."""
    return rows(
        tokenizer, random.Random(f"{seed} {step}").getrandbits(48) + (1 << 32), ROWS, ROW_LEN
    )


class Run:
    """The model, its optimizers and the step that they have come to."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.tokenizer = recipe, tokenizer
        self.model = LlamaForCausalLM(model_config())
        matrices = [
            p for name, p in self.model.named_parameters() if "layers" in name and p.ndim == 2
        ]
        others = [
            p for name, p in self.model.named_parameters() if "layers" not in name or p.ndim < 2
        ]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, lr=recipe.matrix_rate, weight_decay=0.01, adjust_lr_fn="original"
            ),
            torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = (recipe.matrix_rate, recipe.other_rate)
        self.step, self.steps = 0, recipe.steps
        self.losses: list[float] = []

    def train(self, checkpoint: Path) -> None:
        """Run to the last step, with a checkpoint now and then; goes on from one that is there."""
        if checkpoint.exists():
            self.load(checkpoint)
        begin, first = time.monotonic(), self.step
        while self.step < self.steps:
            self.one_step()
            if self.step % EVERY == 0:
                self.save(checkpoint)
                step_s = (time.monotonic() - begin) / (self.step - first)
                recent = sum(self.losses[-EVERY:]) / EVERY
                print(
                    f"step {self.step} of {self.steps}, loss {recent:.3f}, {step_s:.2f} s a step",
                    flush=True,
                )
                self._end_in_time(step_s)
        self.save(checkpoint)

    def _end_in_time(self, step_s: float) -> None:
        """Have the fall of the learning rate end before ``stop_at``."""
        if self.recipe.stop_at is None:
            return
        left = max(int((self.recipe.stop_at - time.time()) / step_s), 1)
        if self.step >= self.steps * (1 - DECAY_SHARE):  # the fall has begun: its steps are fixed
            return
        total_if_begun_now = int(self.step / (1 - DECAY_SHARE))
        if total_if_begun_now + EVERY / (1 - DECAY_SHARE) > self.step + left:
            self.steps = total_if_begun_now

    def one_step(self) -> None:
        share = min(
            (self.step + 1) / WARMUP, (self.steps - self.step) / (self.steps * DECAY_SHARE), 1.0
        )
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        tokens = batch(self.tokenizer, self.recipe.seed, self.step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.losses.append(float(loss.detach()))
        self.step += 1

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "steps": self.steps,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        fresh = path.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(path)

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.step, self.steps, self.losses = state["step"], state["steps"], state["losses"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config and bf16 weights into ``folder``, and how the demo samples."""
    model.to(torch.bfloat16).save_pretrained(folder)
    generation = {"eos_token_id": 0, "temperature": 0.7, "top_p": 0.95, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
