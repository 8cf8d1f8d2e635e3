"""A hand-driven runner: sequences over scattered pages full of garbage, and no engine around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from scalesim_kernels import KernelSet, select

from scalesim.batch import NO_TOKEN, Batch, SamplingBatch
from scalesim.batch_options import AttachmentBatch
from scalesim.memory.geometry import PageGeometry
from scalesim.model.adapters.layout import LayoutTable
from scalesim.model.adapters.peft import PackedAdapter
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.dummy import dummy_tensors
from scalesim.model.checkpoint.weights import assemble
from scalesim.model.layers.decoder import Decoder
from scalesim.model.layers.native import NativeModel
from scalesim.model.layers.rope import RopeConfig
from scalesim.model.runner.cpu_runner import ModelRunner
from scalesim.model.runner.settings import RunnerSettings
from scalesim.sampling.params import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
MAX_ROWS = 96


@dataclass
class Sequence:
    row: int
    slot: int
    pages: list[int]
    params: SamplingParams
    key: int
    num_tokens: int = 0
    table_sent: int = 0
    adapter: str | None = None
    adapter_from: int = 0


@dataclass
class Work:
    """One sequence's part of a batch: the next tokens of ``name`` and whether to sample."""

    name: str
    tokens: list[int]
    sample: bool = True


@dataclass
class Driver:
    """Makes batches by hand. Pages are handed out in a scattered order; free ones hold NaN bits."""

    runner: ModelRunner
    model: RecordingModel
    pages: np.ndarray[Any, Any]
    geometry: PageGeometry
    logits: list[torch.Tensor]
    hidden: list[torch.Tensor]
    free: list[int]
    layouts: LayoutTable
    sequences: dict[str, Sequence] = field(default_factory=dict)
    adapters: dict[str, tuple[int, int]] = field(default_factory=dict)  # (row, layout)
    changes: list[tuple[int, int, int]] = field(default_factory=list)  # of the block table
    step: int = 0

    def add(
        self, name: str, num_tokens: int, *, shared: str | None = None, shared_blocks: int = 0,
        params: SamplingParams = GREEDY, key: int = 1,
        adapter: str | None = None, adapter_from: int = 0,
    ) -> Sequence:  # fmt: skip
        """A sequence with pages for ``num_tokens``; its first blocks may be another's pages."""
        number = len(self.sequences) + 1
        pages = self.sequences[shared].pages[:shared_blocks] if shared else []
        extra = self.geometry.blocks_for(num_tokens) - len(pages)
        pages = pages + [self.free.pop() for _ in range(extra)]
        sequence = Sequence(number, number - 1, pages, params, key)
        sequence.adapter, sequence.adapter_from = adapter, adapter_from
        sequence.num_tokens = shared_blocks * self.geometry.block_size
        self.sequences[name] = sequence
        return sequence

    def load(self, name: str, adapter: PackedAdapter) -> None:
        """Put an adapter into scattered pages, under a row of the block table."""
        row = MAX_ROWS - 1 - len(self.adapters)
        pages = [self.free.pop() for _ in adapter.pages]
        self.pages[pages] = adapter.pages
        self.changes += [(row, col, page) for col, page in enumerate(pages)]
        self.adapters[name] = (row, self.layouts.number(adapter.layout))

    def move(self, name: str) -> None:
        """Evict and return: bytes leave to a buffer, old pages rot, bytes come back elsewhere."""
        sequence = self.sequences[name]
        host = self.pages[sequence.pages].copy()
        self.pages[sequence.pages] = 0xFF
        fresh = [self.free.pop() for _ in sequence.pages]
        self.free[:0] = sequence.pages
        self.pages[fresh] = host
        sequence.pages, sequence.table_sent = fresh, 0

    def run(self, *works: Work, page_copies: list[tuple[int, int]] | None = None) -> list[int]:
        """Run one batch; the sampled tokens, in the order of ``works``."""
        seqs = [self.sequences[work.name] for work in works]
        changes = self.changes + [
            (s.row, col, s.pages[col]) for s in seqs for col in range(s.table_sent, len(s.pages))
        ]
        self.changes = []
        used = [self.adapters[s.adapter] if s.adapter else (0, 0) for s in seqs]
        columns = np.array(
            [(*u, s.adapter_from) for u, s in zip(used, seqs, strict=True)], np.int32
        )
        table = np.array(changes, np.int32).reshape(-1, 3)
        lens = [len(work.tokens) for work in works]
        positions = [
            np.arange(s.num_tokens, s.num_tokens + n) for s, n in zip(seqs, lens, strict=True)
        ]
        batch = Batch(
            step=self.step,
            token_ids=np.array([t for work in works for t in work.tokens], np.int32),
            positions=np.concatenate(positions).astype(np.int32),
            query_start=np.concatenate(([0], np.cumsum(lens))).astype(np.int32),
            rows=np.array([s.row for s in seqs], np.int32),
            slots=np.array([s.slot for s in seqs], np.int32),
            sample=np.array([work.sample for work in works]),
            sampling=SamplingBatch(
                np.array([s.params.temperature for s in seqs], np.float32),
                np.array([s.params.top_k for s in seqs], np.int32),
                np.array([s.params.top_p for s in seqs], np.float32),
                np.array([s.key for s in seqs], np.uint64),
            ),
            table_rows=table[:, 0].copy(),
            table_cols=table[:, 1].copy(),
            table_pages=table[:, 2].copy(),
            page_copies=np.array(page_copies or [], np.int32).reshape(-1, 2),
            adapters=AttachmentBatch(*columns.T) if columns[:, 0].any() else None,
        )
        for sequence, length in zip(seqs, lens, strict=True):
            sequence.num_tokens += length
            sequence.table_sent = len(sequence.pages)
        self.last_batch = batch
        self.output = self.runner.collect(self.runner.launch(batch))
        self.step += 1
        return [int(token) for token in self.output.token_ids]

    def feed(self, name: str, tokens: list[int], chunk: int | None = None) -> torch.Tensor:
        """Prefill in chunks; the logits of every token, ``[len(tokens), vocab]``."""
        chunk = chunk or len(tokens)
        parts = []
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            self.run(Work(name, part, sample=start + chunk >= len(tokens)))
            parts.append(self.all_logits()[: len(part)])
        return torch.cat(parts)

    def all_logits(self) -> torch.Tensor:
        """Logits of every token of the last batch (padding included), decodes first."""
        kernels = select("cpu")
        return self.model.logits(self.hidden[-1], kernels)

    def greedy(self, name: str, first: int, count: int) -> list[int]:
        """``count`` more tokens after ``first``, which is fed through the slot's last token."""
        tokens = [first]
        while len(tokens) < count:
            tokens += self.run(Work(name, [NO_TOKEN]))
        return tokens


class RecordingModel:
    """A model that keeps the hidden states of its last batches."""

    def __init__(self, model: Decoder) -> None:
        self._model, self.seen = model, list[torch.Tensor]()

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = self._model.forward(*args, **kwargs)
        self.seen.append(hidden)
        return hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


MakeDriver = Callable[..., Driver]


@pytest.fixture
def make_driver() -> MakeDriver:
    """``make_driver(model, *, block_size=None, num_pages=64, kernels=None, reproducible=True)``."""

    def make(
        model: Decoder, *, block_size: int | None = None, num_pages: int = 64,
        kernels: KernelSet | None = None, reproducible: bool = True,
    ) -> Driver:  # fmt: skip
        config = model.config
        geometry = PageGeometry.choose(
            config.num_layers,
            config.num_kv_heads,
            config.head_dim,
            model.dtype.itemsize,
            block_size,
        )
        pages = np.full((num_pages, geometry.page_bytes), 0xFF, np.uint8)
        kernels = kernels or select("cpu")
        recording = RecordingModel(model.packed(kernels))
        logits: list[torch.Tensor] = []

        def sample(rows: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
            logits.append(rows.clone())
            return base(rows, *args)

        base, layouts = kernels.sample, LayoutTable()
        runner = ModelRunner(
            recording, replace(kernels, sample=sample), pages, geometry,
            RunnerSettings(48, 512, MAX_ROWS, 512, reproducible=reproducible, digests=True),
            layouts=layouts,
        )  # fmt: skip
        free = [int(p) for p in np.random.default_rng(0).permutation(np.arange(1, num_pages))]
        return Driver(runner, recording, pages, geometry, logits, recording.seen, free, layouts)

    return make


TINY = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=199,
    hidden_size=64,
    intermediate_size=160,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position=512,
    rms_eps=1e-6,
    rope=RopeConfig(),
)


@pytest.fixture
def tiny_config() -> ModelConfig:
    return TINY


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> NativeModel:
    return NativeModel(
        tiny_config, assemble(tiny_config, dummy_tensors(tiny_config, 0, torch.float32).pop)
    )
