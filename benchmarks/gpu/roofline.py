"""Rooflines by arithmetic: how long each main kernel should take on an H200-class GPU, from bytes,
operations, waves of programs and latencies. No measurement: ``decode`` and ``micro`` print what
they measure beside it.

The machine's figures are what others measured on H200s (copies, half-precision products), not data
sheets' peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scalesim_kernels.matmul import FEW_ROWS, segment_of
from scalesim_kernels.occupancy import HOPPER
from scalesim_kernels.paged_decode import MIN_ROWS, SPLIT
from scalesim_kernels.paged_lora import COLUMNS, part_of

from benchmarks.gpu.bench import Bench

COPY = 4.3e12  # bytes a second that large copies read and write, together
CACHE = 5.5e12  # of the second-level cache
FLOPS = 700e12  # of the vendor's half-precision products
LAUNCH_S = 1.5e-6  # from the end of a kernel in a graph to the next's first load
LOAD_S = 0.8e-6  # of one load from memory that nothing hides
# Registers a thread, shared bytes and warps a program: compiled, sm_90.
DECODE, SHRINK, EXPAND = (96, 37888, 4), (48, 32768, 4), (64, 27136, 4)
KEY_TILE = 32
SHRINK_FLIGHT, EXPAND_FLIGHT = 3 * 16 * 128 * 2, 2 * 16 * 128 * 2  # bytes a program, on their way
QKV = (4096, 1024, 1024)
ADAPTERS, PROMPTS = (1, 32, 64, 256), (512, 2048, 8192)
LINEARS = {"qkv": (4096, 6144), "o": (4096, 4096), "gate_up": (4096, 28672), "down": (14336, 4096)}
VOCAB, SAMPLE_TILE = 128256, 1024
ROWS = (1, 16, 64, 256, 2048, 8192)
DECODES = [(batch, context) for batch in (1, 16, 64, 256) for context in (512, 4096, 32768)]
PREFIXES = ((16, 4096, 0), (64, 4096, 0), (64, 4096, 2048), (256, 4096, 0), (256, 4096, 2048))


@dataclass(frozen=True, slots=True)
class Expected:
    """``seconds`` of a kernel, and the least that its bytes or operations need."""

    seconds: float
    bound_s: float

    @property
    def share(self) -> float:
        return self.bound_s / self.seconds


def decode(
    num_seqs: int, context: int, *, num_heads: int = 32, num_kv_heads: int = 8, head_dim: int = 128,
    split: int = SPLIT, itemsize: int = 2, shared: int = 0,
) -> Expected:  # fmt: skip
    """One layer. Programs take items in waves; the last wave may leave processors without work. A
    program alone on a processor reads no faster than its two tiles in flight allow. itemsize : of
    KV. shared : positions of a prefix that all sequences have in the same pages; a tile holds some
    sequences, and reads its splits once for them."""
    splits = -(-context // split)
    seats = MIN_ROWS * num_kv_heads // num_heads
    saved = min(shared // split, splits - 1) * (num_seqs - -(-num_seqs // seats))
    items = (num_seqs * splits - saved) * num_kv_heads
    slots = HOPPER.programs(*DECODE)
    num_bytes = (num_seqs * context - saved * split) * 2 * itemsize * num_kv_heads * head_dim
    item_bytes = 2 * itemsize * min(split, context) * head_dim
    in_flight = 2 * 2 * KEY_TILE * head_dim * itemsize  # two tiles of K and V
    slot_rate = min(COPY / min(slots, items), in_flight / LOAD_S)
    waves = -(-items // slots)
    seconds = LAUNCH_S + 2 * LOAD_S + waves * item_bytes / slot_rate
    if splits > 1:  # partial results, written and read; the reduce has four in flight
        partial = 2 * 4 * num_seqs * splits * num_heads * head_dim
        seconds += partial / CACHE + LAUNCH_S + (splits / 4 + 2) * LOAD_S
    return Expected(seconds, num_bytes / COPY)


def streamed(num_bytes: float, programs: int, slots: int, in_flight: int) -> float:
    """Seconds of ``programs`` that read as many bytes each, ``slots`` of them at once."""
    rate = min(COPY / min(slots, programs), in_flight / LOAD_S)
    return -(-programs // slots) * num_bytes / programs / rate


def adapters(
    count: int, rank: int = 16, width: int = 4096, out_widths: Sequence[int] = QKV
) -> Expected:
    """Shrink and expand of one site, a token for each of ``count`` adapters of at most 16 rank
    rows. Three loads, each through the last, stand before a program's first weights."""
    parts = -(-width // part_of(width))
    blocks = sum(-(-out // COLUMNS) for out in out_widths)
    a, b = (2 * count * rank * n for n in (width * len(out_widths), sum(out_widths)))
    found = 2 * (LAUNCH_S + 4 * LOAD_S)
    found += streamed(a, count * len(out_widths) * parts, HOPPER.programs(*SHRINK), SHRINK_FLIGHT)
    found += streamed(b, count * blocks, HOPPER.programs(*EXPAND), EXPAND_FLIGHT)
    return Expected(found, (a + b) / COPY)


def prefill(
    num_tokens: int, tiles: int, *, num_heads: int = 32, num_kv_heads: int = 8, head_dim: int = 128
) -> Expected:
    """The reproducible prefill of a prompt, one layer, ``tiles`` of 16 rows a program: K and V
    come through the cache for each program, over half of the prompt on average."""
    tokens = 16 * tiles * num_kv_heads // num_heads
    programs = -(-num_tokens // tokens) * num_kv_heads
    num_bytes = programs * num_tokens / 2 * 4 * head_dim
    bound = 4 * num_heads * head_dim * num_tokens * num_tokens / 2 / FLOPS
    return Expected(LAUNCH_S + max(num_bytes / CACHE, bound), bound)


def linear(num_rows: int, width: int, num_out: int, itemsize: int = 2) -> Expected:
    """The reproducible product: weights once, and each tile's operands through the cache."""
    weights = width * num_out * itemsize
    flops = 2.0 * num_rows * width * num_out
    bound = max(weights / COPY, flops / FLOPS)
    segments = -(-width // segment_of(width, num_out))
    if num_rows <= FEW_ROWS:
        tiles = -(-num_out // 64) * segments
        x_bytes = num_rows * width * itemsize * -(-num_out // 64)
        fill = min(1.0, tiles / HOPPER.count)
        seconds = max(weights / (COPY * fill), (weights + x_bytes) / CACHE) + 2 * LAUNCH_S
        if segments > 1:
            seconds += 2 * 4 * segments * num_rows * num_out / CACHE + LAUNCH_S
        return Expected(seconds, bound)
    columns = 256 if segments == 1 else 128
    tiles = -(-num_rows // 128) * -(-num_out // columns)
    waves = -(-tiles // HOPPER.count)
    operand_bytes = tiles * width * (128 + columns) * itemsize
    tile_s = max(
        2.0 * 128 * columns * width / (FLOPS / HOPPER.count),
        operand_bytes / CACHE / (tiles / HOPPER.count),
    )
    return Expected(waves * tile_s + LAUNCH_S, bound)


def sample(num_rows: int, passes: int, searches: int) -> Expected:
    """``passes`` over the vocabulary and ``searches`` over a list of about a thousand tokens, by
    one program a row."""
    tiles = -(-VOCAB // SAMPLE_TILE)
    waves = -(-num_rows // (2 * HOPPER.count))
    pass_s = tiles * LOAD_S / 2  # two tiles in flight
    search_s = 11 * 2 * (LOAD_S / 2)  # ten digits and what is above, two blocks each
    seconds = LAUNCH_S + waves * (passes * pass_s + searches * search_s)
    return Expected(seconds, 4 * num_rows * VOCAB / COPY)


def run(bench: Bench) -> None:
    """The tables. Needs no GPU, and times nothing."""
    table = bench.report.table(
        "Expected: decode, one layer of Llama-8B", ["batch", "context", "µs", "of copy",
                                                    "of copy, splits of 256"],
    )  # fmt: skip
    for num_seqs, context in DECODES:
        expected = decode(num_seqs, context)
        finer = decode(num_seqs, context, split=256)
        table.add(num_seqs, context, 1e6 * expected.seconds, expected.share, finer.share)
    table = bench.report.table(
        "Expected: decode with KV in fp8, and with a prefix that all sequences share",
        ["batch", "context", "shared", "µs", "µs, fp8"],
    )
    for num_seqs, context, shared in PREFIXES:
        both = (decode(num_seqs, context, itemsize=size, shared=shared) for size in (2, 1))
        table.add(num_seqs, context, shared, *(1e6 * expected.seconds for expected in both))
    table = bench.report.table(
        "Expected: reproducible linear layers of Llama-8B", ["layer", "rows", "µs", "of the bound"]
    )
    for name, shape in LINEARS.items():
        for rows in ROWS:
            expected = linear(rows, *shape)
            table.add(name, rows, 1e6 * expected.seconds, expected.share)
    table = bench.report.table(
        "Expected: reproducible prefill of a prompt, one layer of Llama-8B",
        ["tokens", "µs, a tile a program", "µs, two that share K and V"],
    )
    for tokens in PROMPTS:
        table.add(tokens, *(1e6 * prefill(tokens, tiles).seconds for tiles in (1, 2)))
    table = bench.report.table(
        "Expected: adapters of rank 16, q, k and v of one layer, a token each",
        ["adapters", "µs", "of copy"],
    )
    for count in ADAPTERS:
        expected = adapters(count)
        table.add(count, 1e6 * expected.seconds, expected.share)
    table = bench.report.table("Expected: sampling, a vocabulary of 128 k", ["what", "rows", "µs"])
    for what, passes, searches in SAMPLED:
        for rows in (16, 64, 256):
            table.add(what, rows, 1e6 * sample(rows, passes, searches).seconds)


SAMPLED = (("greedy", 1, 0), ("temperature", 3, 0), ("top-p", 2, 1), ("top-k and top-p", 2, 2))
