"""The GPU's runner without a GPU: inputs packed and unpacked, tokens filled in on the device,
graphs chosen and captured once."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scalesim_kernels import LoraDirectory, select
from scalesim_kernels.lora_tiles import LORA_TILE

from scalesim.batch import NO_TOKEN, Batch, SamplingBatch
from scalesim.batch_options import AttachmentBatch
from scalesim.device.streams import Fences
from scalesim.errors import ConfigError
from scalesim.memory.geometry import PageGeometry
from scalesim.model.adapters.batch import grouped
from scalesim.model.layers.native import NativeModel
from scalesim.model.paged_weights import PagedModel, WeightLayout
from scalesim.model.runner.arrange import arrange
from scalesim.model.runner.cpu_runner import ModelRunner
from scalesim.model.runner.cuda_branch import CudaBranch
from scalesim.model.runner.cuda_runner import CudaRunner, check_dtype
from scalesim.model.runner.device_table import last_of_each
from scalesim.model.runner.graphs import StepGraphs, mixed_shapes, padded_sizes
from scalesim.model.runner.pool_view import kv_dtype, pool_view
from scalesim.model.runner.settings import RunnerSettings
from scalesim.model.runner.several_models import ModelRunners
from scalesim.model.runner.step_inputs import StepShape, layout, pack, tensors
from tests.device.world import hostile

SLOTS = 12


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Prefill chunks and decodes mixed; a decode may wait for its token, a chunk may not sample."""
    counts = draw(st.lists(st.sampled_from([1, 1, 1, 2, 5]), min_size=1, max_size=SLOTS))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    n, starts = len(counts), rng.integers(0, 90, len(counts))
    positions = [np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)]
    sample = np.array([c == 1 or bool(rng.integers(2)) for c in counts])
    token_ids = rng.integers(0, 199, sum(counts)).astype(np.int32)
    query_start = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    for index, count in enumerate(counts):
        if count == 1 and rng.integers(2):
            token_ids[query_start[index]] = NO_TOKEN
    changes = rng.integers(0, 5, (3, 6)).astype(np.int32)
    return Batch(
        step=0, token_ids=token_ids, positions=np.concatenate(positions).astype(np.int32),
        query_start=query_start, rows=np.arange(1, n + 1, dtype=np.int32),
        slots=rng.permutation(SLOTS)[:n].astype(np.int32), sample=sample,
        sampling=SamplingBatch(
            rng.random(n).astype(np.float32), rng.integers(0, 9, n).astype(np.int32),
            rng.random(n).astype(np.float32), rng.integers(0, 2**63, n).astype(np.uint64),
        ),
        table_rows=changes[0], table_cols=changes[1], table_pages=changes[2],
        page_copies=rng.integers(1, 9, (int(rng.integers(3)), 2)).astype(np.int32),
    )  # fmt: skip


@given(batches(), st.integers(0, 5), st.integers(0, 5))
def test_the_device_sees_what_was_packed(batch: Batch, tokens: int, samples: int) -> None:
    arranged = arrange(batch)
    num_samples = int(batch.sample.sum()) + (samples if batch.sample.any() else 0)
    shape = StepShape(batch.num_tokens + tokens, batch.num_seqs, arranged.num_decodes, num_samples)
    flat = np.full(shape.num_words + 7, -77, np.int32)
    pack(batch, arranged, shape, SLOTS, flat)
    assert (flat[shape.num_words :] == -77).all()
    step = tensors(shape, torch.from_numpy(flat), torch.zeros((20, 4), dtype=torch.int32))
    paged, order = step.paged, arranged.order
    for i, seq in enumerate(order.tolist()):
        own = slice(int(batch.query_start[seq]), int(batch.query_start[seq + 1]))
        mine = slice(int(paged.query_start[i]), int(paged.query_start[i + 1]))
        assert step.token_ids[mine].tolist() == batch.token_ids[own].tolist()
        assert paged.positions[mine].tolist() == batch.positions[own].tolist()
        assert set(paged.token_rows[mine].tolist()) == {int(batch.rows[seq])}
        assert set(step.token_slots[mine].tolist()) == {int(batch.slots[seq])}
        assert int(step.last[i]) == mine.stop - 1
        assert int(paged.context_lens[i]) == int(batch.positions[own][-1]) + 1
    assert (paged.token_rows[batch.num_tokens :] == 0).all()
    assert (torch.diff(paged.query_start)[: paged.num_decodes] == 1).all()
    for i, seq in enumerate(arranged.sampling.tolist()):
        sampling = batch.sampling
        assert int(step.sample_slots[i]) == int(batch.slots[seq])
        assert float(step.temperatures[i]) == float(sampling.temperatures[seq])
        assert float(step.top_ps[i]) == float(sampling.top_ps[seq])
        assert int(step.keys[i]) == int(sampling.keys[seq])
        last = int(batch.positions[batch.query_start[seq + 1] - 1])
        assert int(step.sample_positions[i]) == last + 1
    assert (step.sample_slots[len(arranged.picked) :] == SLOTS).all()


@given(batches(), st.sampled_from([1, 16]), st.integers(0, 5), st.integers(0, 9))
def test_groups_of_adapters_arrive_with_their_padding(
    batch: Batch, multiple: int, extra: int, seed: int
) -> None:
    """Each token in force once, in the group of its sequence's adapter; what is left is padding."""
    rng = np.random.default_rng(seed)
    n, arranged = batch.num_seqs, arrange(batch)
    rows = rng.choice([0, 21, 22, 23], n).astype(np.int32)
    adapters = AttachmentBatch(rows, rows % 7, rng.integers(0, 95, n).astype(np.int32))
    found = grouped(adapters, arranged, lambda c: -(-c // multiple) * multiple)
    wanted = {
        int(token): int(rows[seq])
        for token, seq in enumerate(arranged.seq)
        if rows[seq] and arranged.positions[token] >= adapters.starts[seq]
    }
    assert (found is None) == (not wanted)
    entries = multiple * SLOTS + batch.num_tokens
    shape = StepShape(
        batch.num_tokens, n, arranged.num_decodes, int(batch.sample.sum())
    ).with_adapters(entries, 3 + extra)
    flat = np.full(shape.num_words, -77, np.int32)
    pack(batch, arranged, shape, SLOTS, flat, found)
    directory = LoraDirectory(*(torch.zeros(1) for _ in range(4)))
    lora = tensors(shape, torch.from_numpy(flat), torch.zeros((20, 4)), directory).lora
    assert lora is not None and lora.starts.tolist() == sorted(lora.starts.tolist())
    held: dict[int, int] = {}
    for group, (count, row) in enumerate(zip(lora.counts, lora.rows.tolist(), strict=True)):
        start, end = lora.starts[group : group + 2].tolist()
        mine = lora.tokens[start : start + int(count)].tolist()
        assert (row == 0) == (not mine) and (end - start) % multiple == 0
        assert set(lora.tokens[start:end].tolist()) == set(mine)
        assert row == 0 or int(lora.layouts[group]) == row % 7
        held |= dict.fromkeys(mine, row)
    assert held == wanted and int(lora.counts.sum()) == len(wanted)
    tiled = [
        (row, layout, int(lora.tokens[first + i]))
        for row, layout, first, count in lora.tiles.tolist()
        for i in range(count if row else 0)
    ]
    assert sorted(tiled) == sorted((row, row % 7, token) for token, row in wanted.items())
    assert int(lora.tiles[:, 3].max()) <= LORA_TILE
    assert bool((lora.tokens >= 0).all())


@given(st.integers(1, 30), st.integers(0, 40))
def test_decodes_of_padding_have_no_tokens(count: int, extra: int) -> None:
    shape = StepShape.decode(count + extra)
    positions = np.arange(count, dtype=np.int32)
    zeros = np.zeros(count, np.int32)
    batch = Batch(
        0, zeros, positions, np.arange(count + 1, dtype=np.int32), zeros + 1, zeros,
        np.ones(count, np.bool_),
        SamplingBatch(
            zeros.astype(np.float32), zeros, zeros.astype(np.float32), zeros.astype(np.uint64)
        ),
        zeros[:0], zeros[:0], zeros[:0], zeros[:0].reshape(0, 2),
    )  # fmt: skip
    flat = np.full(shape.num_words, -77, np.int32)
    pack(batch, arrange(batch), shape, 5, flat)
    step = tensors(shape, torch.from_numpy(flat), torch.zeros((2, 4), dtype=torch.int32))
    assert step.paged.query_start.tolist() == [*range(count), *[count] * (extra + 1)]
    assert step.paged.seq_rows.tolist() == [1] * count + [0] * extra
    assert step.paged.context_lens.tolist() == [p + 1 for p in positions] + [0] * extra
    assert (step.top_ps[count:] == 1).all() and (step.temperatures[count:] == 0).all()


@given(st.integers(0, 300), st.integers(0, 9), st.integers(0, 9))
def test_fields_lie_apart_and_aligned(tokens: int, seqs: int, samples: int) -> None:
    shape = StepShape(tokens, seqs, 0, samples)
    places = list(layout(shape).values())
    assert all(place.start % 64 == 0 for place in places)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(places))
    assert places[-1].stop == shape.num_words


@given(st.integers(1, 600), st.sampled_from([1, 2, 16, 64]))
def test_padded_sizes_serve_every_batch_at_little_loss(most: int, multiple: int) -> None:
    sizes = padded_sizes(most, multiple)
    assert list(sizes) == sorted(set(sizes)) and all(size % multiple == 0 for size in sizes)
    assert most <= sizes[-1] < most + multiple and len(sizes) <= 40
    for count in range(1, most + 1):
        size = next(size for size in sizes if size >= count)
        assert size - count <= max(7, count // 8 + 1) + multiple


@given(batches(), st.integers(0, 5), st.integers(0, 9), st.integers(0, 3))
def test_decodes_of_padding_stand_between(batch: Batch, extra: int, tokens: int, seqs: int) -> None:
    """What the device reads of a step that is padded to a mixed shape is what the batch has."""
    arranged = arrange(batch)
    decodes, others = arranged.num_decodes, batch.num_seqs - arranged.num_decodes
    shape = StepShape.mixed(
        decodes + extra, batch.num_tokens - decodes + tokens, others + seqs, batch.num_seqs
    )
    flat = np.full(shape.num_words, -77, np.int32)
    pack(batch, arranged, shape, SLOTS, flat)
    step = tensors(shape, torch.from_numpy(flat), torch.zeros((20, 4), dtype=torch.int32))
    paged, starts = step.paged, step.paged.query_start.tolist()
    assert (torch.diff(paged.query_start)[:decodes] == 1).all()
    assert starts[:decodes] == list(range(decodes))
    assert starts == sorted(starts) and starts[-1] <= shape.num_tokens
    for i, seq in enumerate(arranged.order.tolist()):
        there = i if i < decodes else i + extra
        own = slice(int(batch.query_start[seq]), int(batch.query_start[seq + 1]))
        mine = slice(starts[there], starts[there + 1])
        assert step.token_ids[mine].tolist() == batch.token_ids[own].tolist()
        assert paged.positions[mine].tolist() == batch.positions[own].tolist()
        assert set(paged.token_rows[mine].tolist()) == {int(batch.rows[seq])}
        assert int(paged.seq_rows[there]) == int(batch.rows[seq])
        assert int(paged.context_lens[there]) == int(batch.positions[own][-1]) + 1
        assert int(step.last[there]) == mine.stop - 1
    assert int((paged.seq_rows != 0).sum()) == batch.num_seqs
    assert int((paged.token_rows != 0).sum()) == batch.num_tokens
    ends = arranged.last[arranged.picked]
    assert step.sample_rows[: len(ends)].tolist() == ends.tolist()


def test_mixed_shapes_serve_short_chunks_beside_decodes() -> None:
    shapes = mixed_shapes(padded_sizes(64), 8192)
    graphs = StepGraphs(padded_sizes(64), shapes, lambda work: work, lambda shape: None)
    for decodes, tokens, others in ((0, 2, 1), (16, 32, 1), (40, 200, 9), (64, 512, 16)):
        shape = graphs.mixed_for(decodes, tokens, others)
        assert shape is not None and shape.num_samples <= 64
        assert shape.num_decodes >= decodes and shape.num_tokens - shape.num_decodes >= tokens
        assert shape.num_seqs - shape.num_decodes >= others
        assert shape.num_tokens - shape.num_decodes <= max(32, 2 * tokens)
    for decodes, tokens, others in ((8, 513, 1), (8, 32, 17)):
        assert graphs.mixed_for(decodes, tokens, others) is None
    assert mixed_shapes((), 8192) == [] and len(mixed_shapes((1, 2, 4), 100)) == 2


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), max_size=30))
def test_the_last_change_of_an_entry_wins(changes: list[tuple[int, int]]) -> None:
    places, values = np.array(changes, np.int64).reshape(-1, 2).T
    kept, newest = last_of_each(places, values.astype(np.int32))
    assert dict(zip(kept.tolist(), newest.tolist(), strict=True)) == dict(changes)
    assert len(set(kept.tolist())) == len(kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_supported_dtypes(dtype: torch.dtype) -> None:
    check_dtype(dtype)
    with pytest.raises(ConfigError, match="float64 on a GPU: supported are float16, bfloat16"):
        check_dtype(torch.float64)


def one_step(step: int, start: int, tokens: list[int], *, sample: bool = True) -> Batch:
    count, none = len(tokens), np.zeros(0, np.int32)
    first = step == 0
    return Batch(
        step, np.array(tokens, np.int32), np.arange(start, start + count, dtype=np.int32),
        np.array([0, count], np.int32), np.array([1], np.int32), np.array([3], np.int32),
        np.array([sample]),
        SamplingBatch(np.array([0.8], np.float32), np.array([0], np.int32),
                      np.array([0.9], np.float32), np.array([5], np.uint64)),
        np.ones(4 * first, np.int32), np.arange(4 * first, dtype=np.int32),
        np.arange(1, 4 * first + 1, dtype=np.int32), none.reshape(0, 2),
    )  # fmt: skip


@pytest.mark.parametrize("order", ["eager", "lazy", "random"])
@pytest.mark.parametrize(("graphs", "kv_bytes"), [(True, 4), (False, 4), (False, 1)])
def test_two_steps_in_flight_say_what_the_cpu_runner_says(
    tiny_model: NativeModel, order: str, graphs: bool, kv_bytes: int
) -> None:
    config = tiny_model.config
    geometry = PageGeometry(config.num_layers, config.num_kv_heads, config.head_dim, 16, kv_bytes)
    settings = RunnerSettings(4, 32, 3, 4, graphs=graphs)
    prompt = list(range(1, 20))
    pages = np.zeros((6, geometry.page_bytes), np.uint8)
    simple = ModelRunner(tiny_model, select("cpu"), pages, geometry, settings)
    expected = []
    for step in range(12):
        tokens, start = ([NO_TOKEN], 18 + step) if step else (prompt, 0)
        output = simple.collect(simple.launch(one_step(step, start, tokens)))
        expected.append(int(output.token_ids[0]))

    device, fences = hostile(order=order), Fences()
    pool = torch.zeros((6, *geometry.shape), dtype=kv_dtype(geometry, tiny_model.dtype))
    runner = CudaRunner(tiny_model, select("cpu"), pool, device, fences, settings)
    runner.warm_up((2, 32))
    captures = runner.graphs.num_captures
    assert captures == len(runner.graphs.shapes)
    assert list(runner.graphs.sizes) == [1, 2, 4] * graphs and len(runner.graphs.mixed) == graphs
    said, flights = [], []
    for step in range(12):
        tokens, start = ([NO_TOKEN], 18 + step) if step else (prompt, 0)
        flights.append(runner.launch(one_step(step, start, tokens)))
        assert fences.event(flights[-1].fence) is not None
        if len(flights) == 2:
            said.append(int(runner.collect(flights.pop(0)).token_ids[0]))
    said.append(int(runner.collect(flights.pop(0)).token_ids[0]))
    assert said == expected and runner.num_waits == 0
    assert runner.graphs.num_captures == captures


def test_a_bad_sequence_is_marked_and_its_neighbours_are_not(tiny_model: NativeModel) -> None:
    config = tiny_model.config
    geometry = PageGeometry(config.num_layers, config.num_kv_heads, config.head_dim, 16, 4)
    pool = torch.zeros((6, *geometry.shape))
    runner = CudaRunner(
        tiny_model, select("cpu"), pool, hostile(order="lazy"), Fences(), RunnerSettings(4, 8, 3, 2)
    )  # fmt: skip
    runner.warm_up(())
    pool[1] = float("nan")
    one = np.ones(2, np.int32)
    batch = Batch(
        0, one, one * 5, np.array([0, 1, 2], np.int32), np.array([1, 2], np.int32),
        np.array([0, 1], np.int32), np.array([True, True]),
        SamplingBatch(
            one.astype(np.float32) * 0, one * 0, one.astype(np.float32), one.astype(np.uint64)
        ),
        np.array([1, 2], np.int32), np.array([0, 0], np.int32), np.array([1, 2], np.int32),
        np.zeros((0, 2), np.int32),
    )  # fmt: skip
    output = runner.collect(runner.launch(batch))
    assert output.bad.tolist() == [True, False]
    assert int(output.token_ids[0]) == NO_TOKEN and int(output.token_ids[1]) >= 0


@pytest.mark.parametrize("is_stale", [False, True])
def test_weights_in_pages_are_read_where_they_lie_now(
    tiny_model: NativeModel, is_stale: bool
) -> None:
    """Also by graphs: those of the place before are dropped; one that is kept is seen."""
    config = tiny_model.config
    geometry = PageGeometry(config.num_layers, config.num_kv_heads, config.head_dim, 16, 4)
    layout = WeightLayout(config, tiny_model.dtype, geometry.page_bytes)
    content = torch.from_numpy(layout.pack(tiny_model.weights))
    pages = torch.zeros((8 + 2 * len(content), geometry.page_bytes), dtype=torch.uint8)
    first, second = 8, 8 + len(content)
    device, settings = hostile(order="eager"), RunnerSettings(4, 32, 3, 4 + len(layout.runs))
    pool, fences = pool_view(pages, geometry, tiny_model.dtype), Fences()
    own = CudaRunner(tiny_model, select("cpu"), pool, device, fences, settings)
    own.warm_up((2, 32))
    paged, runners = PagedModel(layout, pages), ModelRunners(own)
    runner = CudaBranch(paged.model, select("cpu"), pool, device, settings, own.device_table)
    runner.warm_up((2, 32))
    runners.add(1, runner, paged)

    def say(step: int, head: int | None) -> int:
        tokens, start = ([5 + step], 10 + step) if step else (list(range(1, 12)), 0)
        batch = one_step(step, start, tokens)
        if head is not None:
            heads = np.cumsum([head, *layout.runs[:-1]]).astype(np.int32)
            columns, one = np.arange(len(heads), dtype=np.int32), np.ones(1, np.int32)
            batch = replace(
                batch, weights=AttachmentBatch(2 * one, one, one * 0),
                table_rows=np.concatenate((batch.table_rows, np.full(len(heads), 2, np.int32))),
                table_cols=np.concatenate((batch.table_cols, columns)),
                table_pages=np.concatenate((batch.table_pages, heads)),
            )  # fmt: skip
        return int(runners.collect(runners.launch(batch)).token_ids[0])

    expected = [say(step, None) for step in range(6)]
    pages[first:second] = content
    found = [say(step, first) for step in range(3)]
    assert found == expected[:3] and runner.graphs.num_captures == 1
    if is_stale:
        runner.graphs.forget = lambda: None  # type: ignore[method-assign]
    pages[second:], pages[first:second] = content, 0
    found += [say(step, second) for step in range(3, 6)]
    assert (found == expected) != is_stale
    assert runner.graphs.num_captures == 2 - is_stale
