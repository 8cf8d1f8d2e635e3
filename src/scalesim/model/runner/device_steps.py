"""Steps of one model on a CUDA device: inputs are copied through pinned buffers, the device fills
in tokens of the step before, which the host has not seen yet, and the outcome is copied back.

Layers, sampling and arrangement are shared with the CPU's runner. ``CudaRunner`` has the steps of
the engine's own model, and ``CudaBranch`` those of a model whose weights lie in pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
import xxhash
from scalesim_kernels import KernelSet
from torch import Tensor

from scalesim.batch import NO_TOKEN, Batch, SamplingBatch, StepOutput
from scalesim.batch_options import EmbeddingBatch, LogitsBatch, LogprobsBatch, Scores
from scalesim.core import Bools, Floats, Int32s, UInt64s
from scalesim.device.staging import Staged, StagingRing
from scalesim.device.streams import Device, Event, Stream, Work
from scalesim.model.adapters.batch import Grouped, grouped
from scalesim.model.adapters.layout import LayoutTable
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.layers.decoder import Decoder, ForwardContext, row_multiple
from scalesim.model.runner.arrange import Arranged, arrange
from scalesim.model.runner.batch_parts import Finish
from scalesim.model.runner.device_embedding import DeviceEmbeddings
from scalesim.model.runner.device_logits import DeviceLogits
from scalesim.model.runner.device_logprobs import DeviceLogprobs, ScoredRows
from scalesim.model.runner.device_lora import DeviceLora
from scalesim.model.runner.device_table import DeviceTable
from scalesim.model.runner.graphs import StepGraphs, mixed_shapes, padded_sizes
from scalesim.model.runner.settings import RunnerSettings
from scalesim.model.runner.step_inputs import StepShape, pack, tensors

STEPS_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class _Submitted:
    """What is kept of a batch until its output can be read."""

    batch: Batch
    arranged: Arranged
    shape: StepShape
    outcome: Staged
    logits: Staged | None
    began: Event
    ended: Event
    scores: Callable[[], Scores] | None
    sums: Callable[[], Floats] | None


class DeviceSteps:
    """Steps of ``model`` over the page pool ``pool`` (layout as in the kernels' contracts), on
    ``stream``. They may be made, and warmed up, on any thread.

    The model's weights lie on ``device`` in the form of these kernels (``Decoder.packed``), and the
    model belongs to these steps alone. Graphs are captured on the stream ``captures``; ``mixed``
    says whether there are graphs of steps that have prompts beside decodes.

    layouts : the layouts of adapters that batches use; shared with the registry that adds them. The
        first step with an adapter prepares the graphs with adapters; a move of the buffers of
        ``DeviceLora`` prepares them again. Such a launch takes as long as ``warm_up``.
    """

    def __init__(
        self,
        model: Decoder,
        kernels: KernelSet,
        pool: Tensor,
        device: Device,
        settings: RunnerSettings,
        layouts: LayoutTable | None,
        device_table: DeviceTable,
        stream: Stream,
        captures: Stream,
        *,
        mixed: bool,
    ) -> None:
        max_num_seqs, block_size = settings.max_num_seqs, pool.shape[4]
        max_len = settings.max_blocks_per_row * block_size
        model.reserve(min(model.config.max_position, max_len))
        self._model, self._kernels, self._pool = model, kernels, pool
        self.vocab_size = vocab = model.config.vocab_size
        self._device, self._stream, self.device_table = device, stream, device_table
        self._multiple = row_multiple(model, kernels) if settings.reproducible else 1
        self._reproducible, self._digests = settings.reproducible, settings.digests
        self._max_num_tokens = max(settings.max_num_tokens, max_num_seqs)
        self._max_num_seqs = max_num_seqs
        buffers = STEPS_IN_FLIGHT + 1
        self._directory = DeviceLora(
            device, stream, layouts or LayoutTable(), model.config.num_layers
        )
        takes_graphs = settings.graphs and model.takes_graphs
        sizes = padded_sizes(max_num_seqs, self._multiple) if takes_graphs else ()
        shapes = mixed_shapes(sizes, settings.max_num_tokens, self._multiple) if mixed else []
        self.graphs = StepGraphs(sizes, shapes, partial(device.capture, captures), self._work)
        samples = self._pad(max_num_seqs)
        num_tokens = max([self._pad(self._max_num_tokens), *(shape.num_tokens for shape in shapes)])
        seqs = max([samples, *(shape.num_seqs for shape in shapes)])
        largest = StepShape(num_tokens, seqs, 0, samples)
        # each group is padded by less than a multiple
        entries = self._max_num_tokens + max_num_seqs * self._multiple
        words = largest.with_adapters(entries, samples).num_words
        self._staging = StagingRing(device, buffers, words)
        self._outcomes = StagingRing(device, buffers, samples + seqs)
        self._inputs = self._int32s(words)
        self._outcome = self._int32s(samples + seqs)
        self._last_token = self._int32s(max_num_seqs + 1)  # the last entry is padding's
        self._dummy_slot = max_num_seqs
        # the newest step's logits in fp32, for logits processors and digests
        self._logits = stream.zeros(samples, vocab, dtype=torch.float32)
        if self._digests:
            self._logits_ring = StagingRing(device, buffers, samples * vocab)

    def warm_up(self, token_counts: Sequence[int]) -> None:
        """Compile every kernel and make every buffer by running steps of padding, then prepare the
        graphs. Call before the first launch. ``token_counts`` (each at least 2) are sizes of
        prefill steps to run."""
        self._device.settle()  # the model's weights and tables
        captured = self.graphs.shapes
        uncaptured = [StepShape.decode(self._pad(size)) for size in (1, self._max_num_seqs)]
        for shape in captured or uncaptured:
            self._run_padding(shape)
        for count in sorted({min(count, self._max_num_tokens) for count in token_counts}):
            for num_decodes in (0, 1):
                seqs = num_decodes + 1
                samples = self._pad(seqs)
                tokens = self._pad(count)
                self._run_padding(StepShape(tokens, seqs, num_decodes, samples))
        if isinstance(self._model.config, ModelConfig):  # others take no adapters
            self._directory.reserve()
            for groups in sorted({1, self._max_num_seqs}):
                rows = self._pad(groups)
                step = StepShape(rows, rows, rows, rows)
                self._run_padding(step.with_adapters(groups * self._multiple, groups))
        self._prepare_graphs(captured)
        finish = self._submit(asking_for_all(self._dummy_slot, self.vocab_size))
        self._stream.record().synchronize()
        finish()

    def start(self, batch: Batch) -> Finish:
        """Submit the sequences of ``batch``; its block table and pages are as they should be once
        what the compute stream was given has run."""
        return self._submit(batch)

    def _prepare_graphs(self, shapes: Sequence[StepShape]) -> None:
        """Capture ``shapes``, of which steps were run; none is running."""
        self.graphs.capture(shapes)

    def _graph(self, shape: StepShape) -> Work | None:
        """The graph of a step of this shape, if it is to run as one."""
        return self.graphs.replay(shape)

    # -- the two halves of a step -------------------------------------------------------------

    def _submit(self, batch: Batch) -> Finish:
        arranged = arrange(batch)
        lora = self._grouped(batch, arranged)
        shape = self._shape(batch, arranged, lora)
        self._send(batch, arranged, shape, lora)
        began = self._stream.record(timed=True)
        changes = None
        if batch.logits is not None:
            changes = self._adjust.send(batch, batch.logits, arranged)
        scored = self._send_scores(batch, arranged)
        spans = [] if batch.embeddings is None else arranged.spans(batch.embeddings.spans)
        # a graph keeps no hidden states, which logprobs and embeddings need
        captured = None if scored or spans else self._graph(shape)
        if captured is None:
            self._stream.submit(self._work(shape, changes, scored, spans))
        else:
            self._stream.submit(captured)
            if changes is not None:
                self._stream.submit(partial(self._sample_again, shape.num_samples, changes))
        outcome = self._outcomes.fetch(
            self._stream, self._outcome, shape.num_samples + shape.num_seqs
        )
        logits = None
        if self._digests:
            count = len(arranged.picked) * self._logits.shape[1]
            logits = self._logits_ring.fetch(self._stream, self._logits, count)
        scores = self._scores.fetch(scored) if scored else None
        sums = self._embeddings.fetch(len(spans)) if spans else None
        ended = self._stream.record(timed=True)
        return partial(
            self._finish,
            _Submitted(batch, arranged, shape, outcome, logits, began, ended, scores, sums),
        )

    def _finish(self, done: _Submitted) -> StepOutput:
        tokens, bad = self._read(done)
        seconds = done.ended.elapsed_s(done.began)
        scores = None if done.scores is None else done.scores()
        sums = None if done.sums is None else done.sums()
        return StepOutput(done.batch.step, tokens, bad, self._hash(done), seconds, scores, sums)

    # -- on the host --------------------------------------------------------------------------

    def _grouped(self, batch: Batch, arranged: Arranged) -> Grouped | None:
        """The tokens of each adapter; ``None`` if the batch uses no adapter. Their layouts are on
        the device afterwards."""
        if batch.adapters is None:
            return None
        lora = grouped(batch.adapters, arranged, self._pad)
        if lora is not None and self._directory.update():
            self._capture_with_adapters()
        return lora

    def _shape(self, batch: Batch, arranged: Arranged, lora: Grouped | None) -> StepShape:
        """The step's shape: a captured one if it is short enough, unless it asks for what graphs do
        not keep."""
        tokens, samples = self._pad(batch.num_tokens), self._pad(int(batch.sample.sum()))
        captured = None
        if batch.logprobs is None and batch.embeddings is None:
            captured = self._captured(batch, arranged)
        if captured is None:
            shape = StepShape(tokens, batch.num_seqs, arranged.num_decodes, samples)
            return shape.with_adapters(len(lora.tokens), self._max_num_seqs) if lora else shape
        return self._with_adapters(captured) if lora else captured

    def _captured(self, batch: Batch, arranged: Arranged) -> StepShape | None:
        decodes = arranged.num_decodes
        if decodes == batch.num_seqs and batch.sample.all():
            size = self.graphs.size_for(decodes)
            return None if size is None else StepShape.decode(size)
        return self.graphs.mixed_for(decodes, batch.num_tokens - decodes, batch.num_seqs - decodes)

    def _with_adapters(self, shape: StepShape) -> StepShape:
        """A captured shape with room for one adapter per sequence, each a padded group."""
        groups = min(shape.num_seqs, self._max_num_seqs)
        others = shape.num_tokens - shape.num_decodes
        return shape.with_adapters(self._pad(others) + groups * self._multiple, groups)

    def _send(
        self, batch: Batch, arranged: Arranged, shape: StepShape, lora: Grouped | None = None
    ) -> None:
        assert shape.num_words <= self._staging.capacity, (shape, self._staging.capacity)
        buffer = self._staging.take()
        pack(batch, arranged, shape, self._dummy_slot, buffer.array, lora)
        self._staging.send(self._stream, buffer, self._inputs, shape.num_words)

    @cached_property
    def _adjust(self) -> DeviceLogits:
        num_slots, buffers = self._dummy_slot + 1, STEPS_IN_FLIGHT + 1
        return DeviceLogits(self._device, self._stream, buffers, num_slots, self.vocab_size)

    @cached_property
    def _scores(self) -> DeviceLogprobs:
        max_rows = self._pad(self._max_num_tokens)
        return DeviceLogprobs(self._device, self._stream, STEPS_IN_FLIGHT + 1, max_rows)

    @cached_property
    def _embeddings(self) -> DeviceEmbeddings:
        width = self._model.config.hidden_size
        return DeviceEmbeddings(
            self._device, self._stream, STEPS_IN_FLIGHT + 1, self._dummy_slot, width
        )

    def _send_scores(self, batch: Batch, arranged: Arranged) -> ScoredRows | None:
        if batch.logprobs is None:
            return None
        padded = self._pad(len(batch.logprobs.tokens))
        return self._scores.send(batch, arranged, batch.logprobs, padded)

    def _read(self, flight: _Submitted) -> tuple[Int32s, Bools]:
        arranged, found = flight.arranged, flight.outcome.array
        num_seqs, first = flight.batch.num_seqs, flight.shape.num_samples
        bad = np.zeros(num_seqs, np.bool_)
        decodes, count = arranged.num_decodes, flight.shape.num_seqs
        ends = found[first : first + count]
        others = ends[flight.shape.num_decodes :][: num_seqs - decodes]
        bad[arranged.order] = np.concatenate((ends[:decodes], others)) != 0
        tokens = np.full(num_seqs, NO_TOKEN, np.int32)
        seqs = arranged.sampling
        sampled = found[: len(seqs)]
        bad[seqs] |= sampled < 0
        tokens[seqs] = np.where(bad[seqs], NO_TOKEN, sampled)
        return tokens, bad

    def _hash(self, flight: _Submitted) -> UInt64s | None:
        if flight.logits is None:
            return None
        digests = np.zeros(flight.batch.num_seqs, np.uint64)
        seqs = flight.arranged.sampling
        vocab = self._logits.shape[1]
        rows = flight.logits.array[: len(seqs) * vocab].reshape(len(seqs), vocab)
        digests[seqs] = [xxhash.xxh3_64_intdigest(row.tobytes()) for row in rows]
        return digests

    def _pad(self, count: int) -> int:
        return -(-count // self._multiple) * self._multiple

    def _int32s(self, count: int) -> Tensor:
        zeros: Tensor = self._stream.zeros(count, dtype=torch.int32)
        return zeros

    # -- on the device ------------------------------------------------------------------------

    def _work(
        self,
        shape: StepShape,
        changes: tuple[Tensor, ...] | None = None,
        scored: ScoredRows | None = None,
        spans: Sequence[slice] = (),
    ) -> Work:
        """A step of ``shape`` with the weights where they are now."""
        return partial(self._compute, self._model, shape, changes, scored, spans)

    def _compute(
        self,
        model: Decoder,
        shape: StepShape,
        changes: tuple[Tensor, ...] | None,
        scored: ScoredRows | None,
        spans: Sequence[slice],
    ) -> None:
        """Compute a step of ``shape`` over the fixed buffers. No value is read back to the host, so
        that the work can be captured."""
        step = tensors(shape, self._inputs, self.device_table.entries, self._directory.tensors)
        kernels = self._kernels
        in_flight = self._last_token.index_select(0, step.token_slots)
        token_ids = torch.where(step.token_ids == NO_TOKEN, in_flight, step.token_ids)
        context = ForwardContext.planned(
            model, kernels, self._pool, step.paged, self._reproducible, step.lora
        )
        hidden = model.forward(token_ids, context)
        ends = hidden.index_select(0, step.last)
        finite = torch.isfinite(ends.sum(-1, dtype=torch.float32))
        samples = shape.num_samples
        self._outcome[samples : samples + shape.num_seqs] = (~finite).int()
        if samples:
            rows = hidden.index_select(0, step.sample_rows)
            logits = model.logits(rows, kernels, self._logits[:samples])
            tokens = kernels.sample(
                logits, step.temperatures, step.top_ks, step.top_ps, step.keys,
                step.sample_positions,
            )  # fmt: skip
            self._outcome[:samples] = tokens
            self._last_token.index_copy_(0, step.sample_slots.long(), tokens.clamp(min=0))
        if changes is not None:
            self._sample_again(samples, changes)
        if scored is not None:
            self._scores.compute(scored, hidden, self._outcome, model, kernels)
        if spans:
            self._embeddings.compute(spans, hidden)

    def _sample_again(self, num_samples: int, changes: tuple[Tensor, ...]) -> None:
        """Replace the samples of the rows that have a logits processor."""
        logits, outcome = self._logits[:num_samples], self._outcome[:num_samples]
        self._adjust.compute(changes, logits, outcome, self._last_token, self._kernels)

    def _run_padding(self, shape: StepShape) -> None:
        """Run a step of padding alone, whose tokens are dropped."""
        batch = padding_batch(shape, self._dummy_slot)
        self._send(batch, arrange(batch), shape)
        self._stream.submit(self._work(shape))
        self._stream.record().synchronize()

    def _capture_with_adapters(self) -> None:
        """``warm_up`` for steps that use adapters."""
        shapes = [self._with_adapters(shape) for shape in self.graphs.shapes]
        tokens, row = self._pad(2), self._pad(1)
        prefill = StepShape(tokens, 1, 0, row).with_adapters(tokens, self._max_num_seqs)
        for shape in (*shapes, prefill):
            self._run_padding(shape)
        self._prepare_graphs(shapes)


def padding_batch(shape: StepShape, slot: int) -> Batch:
    """A batch of sequences in row 0, the dummy: ``num_decodes`` with one token each, then one with
    all other tokens of ``shape``, if there are any. ``slot`` gets their samples."""
    others = shape.num_tokens - shape.num_decodes
    counts = np.array([1] * shape.num_decodes + [others] * (others > 0), np.int32)
    sample = np.arange(len(counts)) < shape.num_samples
    count = int(counts.sum())
    none = np.zeros(0, np.int32)
    zeros = np.zeros(len(counts), np.int32)
    return Batch(
        step=-1,
        token_ids=np.zeros(count, np.int32),
        positions=np.zeros(count, np.int32),
        query_start=np.concatenate(([0], np.cumsum(counts))).astype(np.int32),
        rows=zeros,
        slots=zeros + slot,
        sample=sample,
        sampling=SamplingBatch(
            zeros.astype(np.float32), zeros, zeros.astype(np.float32) + 1, zeros.astype(np.uint64)
        ),
        table_rows=none,
        table_cols=none,
        table_pages=none,
        page_copies=none.reshape(0, 2),
    )


def asking_for_all(slot: int, vocab_size: int) -> Batch:
    """A padding batch of one decode that asks for all that a batch may ask for."""
    one, zero = np.ones(1, np.int32), np.zeros(1, np.int32)
    floats, none = zero.astype(np.float32), np.zeros(0, np.int32)
    words = np.full((1, -(-vocab_size // 32)), -1, np.int32)
    batch = padding_batch(StepShape.decode(1), slot)
    return replace(
        batch,
        sampling=replace(batch.sampling, temperatures=floats + 1, top_ks=one, top_ps=floats + 0.5),
        logits=LogitsBatch(
            zero, floats + 0.5, floats + 1.5, floats, floats, np.array([0, 1], np.int32), zero,
            floats, zero, words, ((slot, none, 0),),
        ),
        logprobs=LogprobsBatch(zero, zero, 1),
        embeddings=EmbeddingBatch(np.array([[0, 1]], np.int32)),
    )  # fmt: skip
