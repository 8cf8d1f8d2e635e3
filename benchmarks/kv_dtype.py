"""What KV in fp8 does to a model's log-probabilities, and what scales would change.

Every arm scores the same windows of a text, a token after the other: the log-probability that the
model gives to the token that stands there. ``fp8`` is an engine with ``kv_dtype="fp8"``; the arms
with scales, and the one of bfloat16, round K and V in a pool of the model's dtype to what such a
form would keep. Compare the arms of one run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scalesim_kernels import KernelSet, PagedBatch, select
from scalesim_kernels.float8 import FLOAT8, LARGEST, narrowed
from torch import Tensor

from benchmarks.report import Report, table
from scalesim.config import EngineConfig
from scalesim.core import Floats
from scalesim.engine.build import parts_for, text_of
from scalesim.engine.engine import Engine
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.loader import LoadedModel, load_model
from scalesim.model.layers.rope import RopeConfig
from scalesim.requests.reply import Reply
from tests.model_folders import write_dummy_model

TEXT = Path(__file__).parents[1] / "docs" / "concepts.md"
POOL_BYTES = 1 << 30
Keep = Callable[[int, Tensor], Tensor]
"""A function from a layer and K and V, ``[num_tokens, 2, num_kv_heads, head_dim]``, to what a pool
would keep of them, in the same dtype."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", help="a folder or an id; without one, a small model of random weights")
    add("--text", type=Path, default=TEXT, help="a text to score")
    add("--tokens", type=int, default=4096, help="most tokens of it")
    add("--window", type=int, default=512, help="tokens that are scored together")
    add("--threads", type=int, default=1, help="of torch")


@dataclass(slots=True)
class Range:
    """The largest |K| and |V| of each layer, and how many elements were beyond e4m3's largest."""

    largest: dict[int, Tensor] = field(default_factory=dict)  # [2, num_kv_heads]
    beyond: int = 0
    elements: int = 0

    def __call__(self, layer: int, kv: Tensor) -> Tensor:
        found = kv.abs().amax(dim=(0, 3))
        have = self.largest.get(layer)
        self.largest[layer] = found if have is None else torch.maximum(have, found)
        self.beyond += int((kv.abs() > LARGEST).sum())
        self.elements += kv.numel()
        return kv


def to_bfloat16(layer: int, kv: Tensor) -> Tensor:
    return kv.bfloat16().to(kv.dtype)


def scaled(kv: Tensor, largest: Tensor) -> Tensor:
    """``kv`` kept in e4m3 with scales that bring ``largest`` to e4m3's largest."""
    scale = (largest / LARGEST).clamp(min=1e-12)
    return narrowed(kv / scale, FLOAT8).to(kv.dtype) * scale


def scale_of_token_and_head(layer: int, kv: Tensor) -> Tensor:
    return scaled(kv, kv.abs().amax(dim=3, keepdim=True))


def scale_of_layer(known: Range) -> Keep:
    """A scale for K and one for V of each layer, from this very text: no calibration is better."""
    return lambda layer, kv: scaled(kv, known.largest[layer].amax(1)[:, None, None])


def keeping(kernels: KernelSet, keep: Keep) -> KernelSet:
    """``kernels`` whose store keeps what ``keep`` makes of K and V."""

    def store(qkv: Tensor, pool: Tensor, layer: int, batch: PagedBatch, *rest: Any) -> Tensor:
        q = kernels.qk_norm_rope_store(qkv, pool, layer, batch, *rest)
        valid = batch.token_rows != 0
        rows, positions = batch.token_rows[valid].long(), batch.positions[valid].long()
        pages = batch.block_table[rows, positions // pool.shape[4]].long()
        slots = positions % pool.shape[4]
        pool[pages, layer, :, :, slots] = keep(layer, pool[pages, layer, :, :, slots])
        return q

    return replace(kernels, qk_norm_rope_store=store)


@dataclass(frozen=True, slots=True)
class Scores:
    """Of every scored token: its log-probability, and the id of the likeliest in its place."""

    logprobs: Floats
    likeliest: Floats

    def beside(self, other: Scores) -> dict[str, float]:
        gap = np.abs(self.logprobs - other.logprobs)
        return {
            "nll": float(-self.logprobs.mean()),
            "nll_change": float(other.logprobs.mean() - self.logprobs.mean()),
            "mean_gap": float(gap.mean()),
            "p99_gap": float(np.quantile(gap, 0.99)),
            "largest_gap": float(gap.max()),
            "same_first": float((self.likeliest == other.likeliest).mean()),
        }


def score(loaded: LoadedModel, kernels: KernelSet, windows: list[list[int]], kv: str) -> Scores:
    config = EngineConfig(
        device_memory=POOL_BYTES, host_memory=0, kv_dtype=kv, generation_config=False
    )
    with Engine(parts_for(loaded, config, kernels)) as engine:
        requests = [
            engine.agent(number).request(window, max_tokens=0, prompt_logprobs=1)
            for number, window in enumerate(windows)
        ]
        replies = engine.run(requests)
    found = [scores_of(reply) for reply in replies]
    return Scores(*(np.concatenate(column) for column in zip(*found, strict=True)))


def scores_of(reply: Reply | Any) -> tuple[Floats, Floats]:
    found = reply.prompt_logprobs
    return found.logprobs.astype(np.float64), found.top_ids[:, 0].astype(np.float64)


def windows_of(loaded: LoadedModel, text: Path, most: int, width: int) -> list[list[int]]:
    """The text's tokens; bytes where the folder has no tokenizer."""
    tokenizer, written = text_of(loaded.folder), text.read_text(encoding="utf-8")
    vocab = loaded.config.vocab_size
    tokens = list(written.encode()) if tokenizer is None else list(tokenizer.encode(written))
    tokens = [token % vocab for token in tokens[:most]]
    cut = [tokens[start : start + width] for start in range(0, len(tokens), width)]
    return [window for window in cut if len(window) > 1]


def run(options: argparse.Namespace) -> Report:
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(options.model or random_model(Path(folder)))
        if options.quick:
            options.tokens, options.window = 96, 48
        windows = windows_of(loaded, options.text, options.tokens, options.window)
        return compared(loaded, windows)


def compared(loaded: LoadedModel, windows: list[list[int]]) -> Report:
    report, kernels, seen = Report("kv-dtype"), select("cpu"), Range()
    base = score(loaded, keeping(kernels, seen), windows, "auto")
    rows = []
    for name, found in arms(loaded, kernels, windows, seen):
        figures = found.beside(base)
        report.figures[name] = figures
        rows.append([
            name, f"{figures['nll']:.4f}", f"{figures['nll_change']:+.4f}",
            f"{figures['mean_gap']:.4f}", f"{figures['p99_gap']:.3f}",
            f"{figures['largest_gap']:.2f}", f"{100 * figures['same_first']:.2f}",
        ])  # fmt: skip
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    columns = [
        "KV", "nats a token", "change", "mean gap", "99 % below", "largest gap", "same first, %",
    ]  # fmt: skip
    title = f"{len(base.logprobs)} tokens of {loaded.config.architecture}, beside KV in {dtype}"
    report.tables.append(table(title, columns, rows))
    largest = torch.stack([seen.largest[layer] for layer in sorted(seen.largest)]).amax(2)
    report.figures["largest"] = largest.tolist()
    report.notes.append(
        f"{dtype} itself: {-base.logprobs.mean():.4f} nats a token; largest |K| "
        f"{largest[:, 0].max():.1f}, largest |V| {largest[:, 1].max():.1f} of all layers; "
        f"{seen.beyond} of {seen.elements} elements beyond {LARGEST:.0f}"
    )
    report.notes.append("gaps are of log-probabilities, in nats, without sign")
    return report


def arms(
    loaded: LoadedModel, kernels: KernelSet, windows: list[list[int]], seen: Range
) -> Iterator[tuple[str, Scores]]:
    yield "bfloat16", score(loaded, keeping(kernels, to_bfloat16), windows, "auto")
    yield "fp8", score(loaded, kernels, windows, "fp8")
    per_layer = keeping(kernels, scale_of_layer(seen))
    yield "fp8, a scale a layer", score(loaded, per_layer, windows, "auto")
    finest = keeping(kernels, scale_of_token_and_head)
    yield "fp8, a scale a token and head", score(loaded, finest, windows, "auto")


def random_model(folder: Path) -> Path:
    shape = ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=256, hidden_size=64, intermediate_size=128,
        num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, max_position=1024, rms_eps=1e-5,
        rope=RopeConfig(),
    )  # fmt: skip
    return write_dummy_model(folder, shape)
