"""The runner of a CPU: computes a ``Batch`` with a model whose KV lies in the page pool.

The engine owns the pages; the runner keeps a copy of the block table, turns a ``Batch`` into the
kernels' ``PagedBatch``, and samples. A step is over when ``launch`` returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import xxhash
from scalesim_kernels import KernelSet
from torch import Tensor

from scalesim.batch import NO_TOKEN, Batch, LaunchedStep, StepOutput
from scalesim.batch_options import LogitsBatch
from scalesim.core import Bytes2D, Fence, Int32s, Int64s
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.links.link import Timeline
from scalesim.model.adapters.batch import lora_batch
from scalesim.model.adapters.layout import LayoutTable
from scalesim.model.layers.decoder import Decoder, ForwardContext, row_multiple
from scalesim.model.runner.arrange import arrange, paged_batch
from scalesim.model.runner.batch_parts import Finish
from scalesim.model.runner.extra_outputs import adjustments, hidden_sums, log_probs, not_finite
from scalesim.model.runner.pool_view import pool_view
from scalesim.model.runner.settings import RunnerSettings
from scalesim.model.runner.token_counts import TokenCounts


class ModelRunner:
    """A ``batch.Runner`` with one step in flight, which is complete when ``launch`` returns.

    pages : ``[num_pages, page_bytes]`` uint8, C-contiguous, 64-byte aligned; shared with the link,
        which may touch other pages while a step runs.
    model : its matrices in the form of these kernels (``Decoder.packed``).
    timeline : told of each step that is complete; the link waits on it.
    layouts : of the adapters that batches name; shared with whoever adds them.
    table : the block table, where it is another runner's, which applies its changes.
    """

    steps_in_flight = 1

    def __init__(
        self,
        model: Decoder,
        kernels: KernelSet,
        pages: Bytes2D,
        geometry: PageGeometry,
        settings: RunnerSettings,
        timeline: Timeline | None = None,
        layouts: LayoutTable | None = None,
        table: Int32s | None = None,
    ) -> None:
        max_len = settings.max_blocks_per_row * geometry.block_size
        model.reserve(min(model.config.max_position, max_len))
        self._model, self.vocab_size = model, model.config.vocab_size
        self._kernels = kernels
        self._pool = pool_view(pages, geometry, model.dtype)
        self._reproducible = settings.reproducible
        self._multiple = row_multiple(model, kernels) if settings.reproducible else 1
        self._digests = settings.digests
        self._timeline = timeline
        self._layouts = layouts or LayoutTable()
        if table is None:
            table = np.zeros((settings.max_num_rows, settings.max_blocks_per_row), np.int32)
        self.table = table
        self._last_token = np.zeros(settings.max_num_seqs, np.int32)
        self._counts = TokenCounts(settings.max_num_seqs, self.vocab_size)

    def launch(self, batch: Batch) -> LaunchedStep:
        return self.launch_with(batch, self.start)

    def use(self, model: Decoder) -> None:
        """``model`` is the same one with its weights elsewhere, from the next batch on."""
        self._model = model

    def launch_with(self, batch: Batch, start: Callable[[Batch], Finish]) -> LaunchedStep:
        """``launch``, where ``start`` computes the sequences, with tables and copies applied."""
        began_s = time.perf_counter()
        with torch.inference_mode():
            self._apply_tables(batch)
            output = replace(start(batch)(), compute_s=time.perf_counter() - began_s)
        if self._timeline is not None:
            self._timeline.reach(batch.step)
        return LaunchedStep(batch.step, Fence("compute", batch.step), output)

    def collect(self, step: LaunchedStep) -> StepOutput:
        output = step.handle
        assert isinstance(output, StepOutput)
        return output

    def _apply_tables(self, batch: Batch) -> None:
        self.table[batch.table_rows, batch.table_cols] = batch.table_pages
        if len(batch.page_copies):
            src, dst = batch.page_copies.astype(np.int64).T.copy()
            self._kernels.copy_pages(self._pool, torch.from_numpy(src), torch.from_numpy(dst))

    def start(self, batch: Batch) -> Finish:
        """Compute the sequences of ``batch``; its pages and block table are as they should be."""
        output = self._compute(batch)
        return lambda: output

    def _compute(self, batch: Batch) -> StepOutput:
        num_seqs = batch.num_seqs
        tokens = np.full(num_seqs, NO_TOKEN, np.int32)
        digests = np.zeros(num_seqs, np.uint64) if self._digests else None
        if num_seqs == 0:
            return StepOutput(batch.step, tokens, np.zeros(0, np.bool_), digests, 0.0)
        arranged = arrange(batch)
        token_ids, paged = paged_batch(batch, arranged, self.table, self._last_token, self._padded)
        model, kernels, pool = self._model, self._kernels, self._pool
        lora = None
        if batch.adapters is not None:
            lora = lora_batch(
                batch.adapters, arranged, paged.block_table, self._layouts, self._padded
            )
        context = ForwardContext.planned(model, kernels, pool, paged, self._reproducible, lora)
        hidden = model.forward(torch.from_numpy(token_ids), context)
        bad = np.empty(num_seqs, np.bool_)
        bad[arranged.order] = not_finite(hidden.index_select(0, torch.from_numpy(arranged.last)))
        seqs = arranged.sampling
        if len(seqs):
            logits = self._logits(hidden, arranged.last[arranged.picked])
            bad[seqs] |= not_finite(logits)
            if batch.logits is None:
                sampled = self._sample(logits, batch, seqs)
            else:
                sampled = self._sample_adjusted(logits, batch, batch.logits, seqs)
            tokens[seqs] = np.where(bad[seqs], NO_TOKEN, sampled)
            self._last_token[batch.slots[seqs]] = np.where(bad[seqs], 0, sampled)
            if digests is not None:
                digests[seqs] = [xxhash.xxh3_64_intdigest(row) for row in logits.numpy()]
        scores = sums = None
        if batch.logprobs is not None:
            rows = arranged.row_of[batch.logprobs.tokens]
            scores = log_probs(
                batch, batch.logprobs, rows, tokens, partial(self._logits, hidden), kernels
            )
        if batch.embeddings is not None:
            sums = hidden_sums(arranged.spans(batch.embeddings.spans), hidden)
        return StepOutput(batch.step, tokens, bad, digests, 0.0, scores, sums)

    def _padded(self, num_rows: int) -> int:
        return -(-num_rows // self._multiple) * self._multiple

    def _logits(self, hidden: Tensor, rows: Int64s) -> Tensor:
        padded = np.zeros(self._padded(len(rows)), np.int64)  # padding repeats row 0
        padded[: len(rows)] = rows
        few = hidden.index_select(0, torch.from_numpy(padded))
        return self._model.logits(few, self._kernels)[: len(rows)]

    def _sample(self, logits: Tensor, batch: Batch, seqs: Int64s) -> Int32s:
        sampling = batch.sampling
        positions = batch.positions[batch.query_start[seqs + 1] - 1] + np.int32(1)
        columns = (
            sampling.temperatures[seqs], sampling.top_ks[seqs], sampling.top_ps[seqs],
            sampling.keys[seqs].view(np.int64), positions,
        )  # fmt: skip
        result: Int32s = self._kernels.sample(logits, *map(torch.from_numpy, columns)).numpy()
        return result

    def _sample_adjusted(
        self, logits: Tensor, batch: Batch, adjust: LogitsBatch, seqs: Int64s
    ) -> Int32s:
        """As ``_sample``, the logits of some rows changed first."""
        row_of = np.empty(batch.num_seqs, np.int64)
        row_of[seqs] = np.arange(len(seqs))
        rows, slots = row_of[adjust.seqs], batch.slots[adjust.seqs]
        counts = self._counts.begin(adjust)
        changed = self._kernels.adjust_logits(logits, adjustments(batch, adjust, rows, counts))
        tokens = np.empty(len(seqs), np.int32)
        tokens[rows] = drawn = self._sample(changed, batch, adjust.seqs.astype(np.int64))
        others = np.ones(len(seqs), np.bool_)
        others[rows] = False
        if others.any():
            tokens[others] = self._sample(logits[others], batch, seqs[others])
        sound = drawn >= 0
        self._counts.add(slots[sound], drawn[sound])
        return tokens
