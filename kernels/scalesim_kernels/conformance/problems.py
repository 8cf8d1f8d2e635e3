"""A problem for each op: inputs with garbage in every unused byte, and a call of the op on them.

``PROBLEMS`` is the table of ops; a new op gets a line there: its factors, and a function that makes
a problem of one choice of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..contracts import Adjustments, KernelSet, LoraSite, PagedBatch
from ..float8 import FLOAT8, as_bytes
from .lora import lora_on, make_lora_case
from .paged import PagedCase, PagedShape, far_pages, garbage, make_case, same_bits, spread

Tensors = dict[str, Tensor]
SCALE, EPS = 0.3, 1e-5
# Of K in e4m3: an error of the last bit before rounding moves a few elements to the next number, by
# an eighth. Cutting off instead of rounding would be an error of 6e-2.
FLOAT8_LIMIT = 3e-2


@dataclass(frozen=True)
class Problem:
    """``call(kernels, tensors)`` runs the op once; it may overwrite ``tensors``.

    It returns results by name: those in ``exact`` are compared bit by bit with the reference's, the
    others by their relative error, of which ``limits`` says where it may be another than the
    dtype's. ``alone(results)`` are the rows of the results that must keep
    their bits when the inputs become ``disturbed``; ``None`` where rows are not independent.
    """

    tensors: Tensors
    call: Callable[[KernelSet, Tensors], Tensors]
    exact: frozenset[str] = frozenset()
    in_fp64: bool = True  # false where the specification moves bits, which fp64 would not keep
    disturbed: Tensors | None = None
    alone: Callable[[Tensors], list[Tensor]] | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    def results(self, kernels: KernelSet, disturbed: bool = False) -> Tensors:
        tensors = self.disturbed if disturbed else self.tensors
        assert tensors is not None
        return self.call(kernels, {name: value.clone() for name, value in tensors.items()})

    def truth(self, reference: KernelSet) -> Tensors:
        """The results of the specification in fp64; a pool in fp8 is one there too."""
        wide = {
            name: value.double() if self.in_fp64 and widens(value) else value.clone()
            for name, value in self.tensors.items()
        }
        return self.call(reference, wide)


def widens(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype != FLOAT8


@dataclass(frozen=True)
class OpCases:
    """``factors``: what varies, each with its awkward values. ``make(choice, dtype, seed)``."""

    factors: Mapping[str, Sequence[Any]]
    make: Callable[[Mapping[str, Any], torch.dtype, int], Problem]


def randn(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poison(x: Tensor, keep: Tensor, seed: int) -> Tensor:
    """``x`` with garbage in the rows that the bool mask ``keep`` leaves out."""
    mask = keep.view(-1, *[1] * (x.dim() - 1)).expand(x.shape)
    spoiled = garbage(tuple(x.shape), seed, x.dtype)
    return torch.where(mask, as_bytes(x), as_bytes(spoiled)).view(x.dtype)


# Paged ops ---------------------------------------------------------------------------------------

PAGED = {
    "group": (1, 4, 7, 12),
    "num_kv_heads": (1, 2),
    "head_dim": (16, 64, 80, 128),
    "block_size": (16, 32, 64),
    "padding": (0, 3),
    "far": (False, True),  # page offsets beyond 2**31 elements
    "apart": (False, True),  # pages longer than the model's KV
    "layer": (0, 1),
    "kv": ("model", "fp8"),  # the dtype of the pool
}
OPTIONS = {"window": (None, 5, 600), "soft_cap": (None, 3.0)}
DECODE_LENS = (
    ((1, 1), (16, 1), (17, 1)),
    ((63, 1), (65, 1)),
    ((512, 1), (513, 1)),
    ((1030, 1), (1025, 1)),
)
PREFILL_LENS = (
    ((7, 7), (16, 16)),
    ((40, 1), (33, 17), (70, 5)),
    ((530, 18), (3, 2)),
    ((66, 66),),
)


def paged_case(choice: Mapping[str, Any], dtype: torch.dtype, seed: int) -> PagedCase:
    padding = choice["padding"]
    shape = PagedShape(
        choice["group"], choice["num_kv_heads"], choice["head_dim"], choice["block_size"],
        choice["lens"], padded_seqs=padding, padded_tokens=padding, shared=choice.get("shared", 0),
    )  # fmt: skip
    return make_case(shape, seed, FLOAT8 if choice["kv"] == "fp8" else dtype)


def planned(
    kernels: KernelSet, batch: PagedBatch, pool: Tensor, num_heads: int, reproducible: bool,
    dtype: torch.dtype,
) -> Any:  # fmt: skip
    """The plan of a step whose Q is of ``dtype``."""
    options = {} if pool.dtype == dtype else {"dtype": dtype}
    return kernels.plan(batch, pool, num_heads, reproducible, **options)


def in_pool(
    case: PagedCase, far: bool, tensors: Tensors, run: Callable[[PagedBatch, Tensor], Any],
    apart: bool = False,
) -> Any:  # fmt: skip
    """``run`` on the case's batch and pool, the pool far apart or its pages longer than the KV if
    asked; writes come back."""
    pool = tensors["pool"]
    batch = on_device(case.batch, pool.device)
    wide = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    if apart and not far:
        longer = torch.cat([as_bytes(pool), as_bytes(pool)], dim=1).view(pool.dtype)
        mine = longer[:, : pool.shape[1]]
        result = run(batch, mine)
        as_bytes(pool).copy_(as_bytes(mine))
        return result
    if not far or wide:  # the specification has no offsets to overflow
        return run(batch, pool)
    ids = far_pages(len(pool), pool[0].numel())
    batch, large = spread(case.batch, pool, ids)
    result = run(on_device(batch, pool.device), large)
    as_bytes(pool).copy_(as_bytes(large)[ids.to(pool.device)])
    return result


def on_device(batch: PagedBatch, device: torch.device) -> PagedBatch:
    names = ("block_table", "positions", "token_rows", "seq_rows", "query_start", "context_lens")
    return replace(batch, **{name: getattr(batch, name).to(device) for name in names})


def others_poisoned(case: PagedCase, seq: int, q: Tensor) -> Tensors:
    """Inputs in which only sequence ``seq`` is as before; all other KV and rows are garbage."""
    row = case.batch.seq_rows[seq]
    tokens = case.batch.token_rows == row
    used = -(-int(case.batch.context_lens[seq]) // case.shape.block_size)
    pages = torch.zeros(len(case.pool), dtype=torch.bool)
    pages[case.batch.block_table[row, :used].long()] = True
    return {"q": poison(q, tokens, 5), "pool": poison(case.pool, pages, 6)}


def attention(op: str, choice: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Problem:
    case = paged_case(choice, dtype, seed)
    decodes = case.batch.num_decodes
    q = randn(seed + 1, case.num_tokens, case.num_heads, case.shape.head_dim, dtype=dtype)
    own = slice(0, decodes) if op == "paged_decode" else slice(decodes, case.num_tokens)
    valid = case.batch.token_rows != 0
    options = {name: choice[name] for name in OPTIONS if choice[name] is not None}

    def call(kernels: KernelSet, tensors: Tensors) -> Tensors:
        before = garbage(tuple(q.shape), seed + 2, dtype).to(tensors["q"])
        out = before.clone()

        def run(batch: PagedBatch, pool: Tensor) -> None:
            plan = planned(
                kernels, batch, pool, case.num_heads, choice["reproducible"], tensors["q"].dtype
            )
            attend = getattr(kernels, op)
            attend(tensors["q"], pool, choice["layer"], batch, plan, SCALE, out, **options)

        in_pool(case, choice["far"], tensors, run, choice["apart"])
        mine = torch.zeros(len(out), dtype=torch.bool)
        mine[own] = True
        changed = torch.tensor([not same_bits(a, b) for a, b in zip(out, before, strict=True)])
        return {"out": out[mine & valid], "other rows written": (changed & ~mine).int()}

    num_seqs = len(case.shape.lens)
    seq = num_seqs - 1 if op == "paged_prefill" else max(0, decodes - choice["padding"] - 1)
    rows = case.batch.token_rows[own][valid[own]] == case.batch.seq_rows[seq]
    return Problem(
        {"q": q, "pool": case.pool}, call, frozenset({"other rows written"}),
        disturbed=others_poisoned(case, seq, q), alone=lambda results: [results["out"][rows]],
    )  # fmt: skip


def rope_store(choice: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Problem:
    case = paged_case(choice, dtype, seed)
    head_dim, valid = case.shape.head_dim, case.batch.token_rows != 0
    width = (case.num_heads + 2 * case.shape.num_kv_heads) * head_dim
    qkv = randn(seed + 1, case.num_tokens, width, dtype=dtype)
    tensors = {"qkv": poison(qkv, valid, 7), "pool": case.pool}
    tensors["cos_sin"] = randn(seed + 2, 1200, head_dim, dtype=dtype).clamp(-1, 1)
    if choice["norm"]:
        tensors |= {n: 1 + randn(seed + 3, head_dim, dtype=dtype) / 4 for n in ("q_norm", "k_norm")}
    pages, slots = written_slots(case)
    fp8 = choice["kv"] == "fp8"

    def call(kernels: KernelSet, given: Tensors) -> Tensors:
        before = given["pool"].clone()

        def run(batch: PagedBatch, pool: Tensor) -> Tensor:
            plan = planned(kernels, batch, pool, case.num_heads, True, given["qkv"].dtype)
            return kernels.qk_norm_rope_store(
                given["qkv"], pool, choice["layer"], batch, plan, given["cos_sin"],
                given.get("q_norm"), given.get("k_norm"), EPS,
            )  # fmt: skip

        q = in_pool(case, choice["far"], given, run, choice["apart"])
        pool, was = as_bytes(given["pool"]), as_bytes(before)
        kv = pool[pages, choice["layer"], :, :, slots].view(before.dtype)
        pool[pages, choice["layer"], :, :, slots] = was[pages, choice["layer"], :, :, slots] = 0
        k, v = kv.float().unbind(1) if fp8 else kv.unbind(1)
        differs = torch.tensor([0 if same_bits(pool, was) else 1])
        return {"q": q[valid], "k": k, "v": v, "other slots written": differs}

    unused = torch.zeros(case.num_tokens, dtype=torch.bool)
    unused[case.num_valid - 1] = True
    exact = {"other slots written", "v"} if fp8 else {"other slots written"}
    return Problem(
        tensors, call, frozenset(exact), limits={"k": FLOAT8_LIMIT} if fp8 else {},
        disturbed={**tensors, "qkv": poison(qkv, unused, 8)},
        alone=lambda results: [results[name][-1] for name in ("q", "k", "v")],
    )  # fmt: skip


def written_slots(case: PagedCase) -> tuple[Tensor, Tensor]:
    """(page, slot in it) of every token that is not padding."""
    valid = case.batch.token_rows != 0
    rows, positions = case.batch.token_rows[valid].long(), case.batch.positions[valid].long()
    pages = case.batch.block_table[rows, positions // case.shape.block_size]
    return pages.long(), positions % case.shape.block_size


def move_pages(op: str, choice: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Problem:
    pool = garbage((9, 2, 2, 1, 16, choice["head_dim"]), seed, dtype)
    case = make_case(PagedShape(1, 1, choice["head_dim"], 16, ((1, 1),)), seed, dtype)
    src, dst = torch.tensor([7, 1, 7])[: choice["n"]], torch.tensor([2, 4, 8])[: choice["n"]]

    def call(kernels: KernelSet, tensors: Tensors) -> Tensors:
        def run(_: PagedBatch, large: Tensor) -> None:
            ids = far_pages(9, large[0].numel()) if choice["far"] else torch.arange(9)
            a, b = (ids[pages].to(large.device) for pages in (src, dst))
            if op == "copy_pages":
                kernels.copy_pages(large, a, b)
            else:
                kernels.zero_pages(large, b)

        in_pool(case, choice["far"], tensors, run)
        return {"pool": tensors["pool"]}

    return Problem({"pool": pool}, call, frozenset({"pool"}), in_fp64=False)


# Ops on rows -------------------------------------------------------------------------------------


def some_rows(tensors: Tensors, names: Sequence[str], last: int) -> Tensors:
    """Inputs whose rows before the ``last`` ones are garbage."""
    poisoned = {}
    for name in names:
        keep = torch.arange(len(tensors[name])) >= len(tensors[name]) - last
        poisoned[name] = poison(tensors[name], keep, 9)
    return {**tensors, **poisoned}


def rms_norm(choice: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Problem:
    num_rows, hidden = choice["rows"], choice["hidden"]
    tensors = {"x": randn(seed, num_rows, hidden, dtype=dtype)}
    tensors["weight"] = 1 + randn(seed + 1, hidden, dtype=dtype) / 4
    if choice["residual"]:
        tensors["residual"] = randn(seed + 2, num_rows, hidden, dtype=dtype)

    def call(kernels: KernelSet, given: Tensors) -> Tensors:
        out, total = kernels.rms_norm(given["x"], given["weight"], EPS, given.get("residual"))
        return {"out": out, "sum": total}

    rows = ["x", "residual"] if choice["residual"] else ["x"]
    return Problem(
        tensors, call, disturbed=some_rows(tensors, rows, 1),
        alone=lambda results: [results["out"][-1], results["sum"][-1]],
    )  # fmt: skip


def gated(op: str, choice: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Problem:
    tensors = {"gate_up": 3 * randn(seed, choice["rows"], 2 * choice["width"], dtype=dtype)}
    return Problem(
        tensors,
        lambda kernels, given: {"out": getattr(kernels, op)(given["gate_up"])},
        disturbed=some_rows(tensors, ["gate_up"], 1),
        alone=lambda results: [results["out"][-1]],
    )


def linear(choice: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Problem:
    width, num_out = choice["width"], choice["out"]
    tensors = {"x": randn(seed, choice["rows"], width, dtype=dtype)}
    tensors["weight"] = randn(seed + 1, num_out, width, dtype=dtype) * width**-0.5
    if choice["form"] == "packed bf16":  # that holds it without loss: a set may pack it smaller
        tensors["weight"] = tensors["weight"].bfloat16().to(dtype)
    if choice["bias"]:
        tensors["bias"] = randn(seed + 2, num_out, dtype=dtype)

    def call(kernels: KernelSet, given: Tensors) -> Tensors:
        weight = given["weight"]
        if choice["form"] != "plain":
            weight = kernels.pack_weight(weight)
        return {"out": kernels.linear(given["x"], weight, given.get("bias"))}

    # Fewer rows, the last ones at another place, with other neighbours: all in multiples of 16.
    fewer = some_rows(tensors, ["x"], 1)
    if choice["rows"] > 16:
        fewer["x"] = fewer["x"][16:].clone()
    return Problem(tensors, call, disturbed=fewer, alone=lambda results: [results["out"][-1]])


def sample(choice: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Problem:
    num_rows, vocab = 6, choice["vocab"]
    logits = randn(seed, num_rows, vocab, dtype=torch.float32) * choice["spread"]
    if choice["ties"]:
        logits = (logits * 2).round() / 2
    if choice["broken"]:
        logits[0, -1], logits[1, 0], logits[2, vocab // 2] = torch.nan, torch.inf, -torch.inf
    generator = torch.Generator().manual_seed(seed + 1)
    big = 2**63 - 1
    tensors = {
        "logits": logits.to(torch.float32),
        "keys": torch.randint(-big, big, (num_rows,), generator=generator),
        "positions": torch.randint(0, 2**31 - 1, (num_rows,), generator=generator).int(),
    }

    def call(kernels: KernelSet, given: Tensors) -> Tensors:
        device = given["logits"].device
        tokens = kernels.sample(
            given["logits"].float(),
            torch.full((num_rows,), choice["temperature"], device=device),
            torch.full((num_rows,), choice["top_k"], dtype=torch.int32, device=device),
            torch.full((num_rows,), choice["top_p"], device=device),
            given["keys"], given["positions"],
        )  # fmt: skip
        return {"tokens": tokens}

    return Problem(
        tensors, call, frozenset({"tokens"}), disturbed=some_rows(tensors, ["logits"], 1),
        alone=lambda results: [results["tokens"][-1:]],
    )  # fmt: skip


def adjust_logits(choice: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Problem:
    """Six rows of logits, of which four are changed."""
    vocab, picks = choice["vocab"], torch.tensor([4, 0, 2, 5], dtype=torch.int32)
    generator = torch.Generator().manual_seed(seed + 1)
    start = torch.tensor([0, 0, 7, 8, 8 + choice["biases"]], dtype=torch.int32)
    ids = [torch.randperm(vocab, generator=generator)[:count] for count in torch.diff(start)]
    biases = torch.randn(int(start[-1]), generator=generator) * 3
    biases[::3] = -torch.inf
    counts = torch.randint(0, 9, (3, vocab), generator=generator)
    counts[torch.rand(3, vocab, generator=generator) < 0.6] = 0
    words = torch.randint(-(2**31), 2**31, (2, -(-vocab // 32)), generator=generator)
    words[:, 0] |= 1  # something is allowed
    given = {
        "logits": randn(seed, 6, vocab, dtype=torch.float32) * choice["spread"],
        "rows": picks,
        "temperatures": torch.tensor([1.0, 0.0, 0.7, choice["temperature"]]),
        "min_ps": torch.tensor([0.0, 0.2, 0.01, choice["min_p"]]),
        "repetitions": torch.tensor([1.0, 1.3, 0.8, choice["repetition"]]),
        "presences": torch.tensor([0.0, 0.0, -1.1, choice["presence"]]),
        "frequencies": torch.tensor([0.0, 0.0, 0.3, choice["frequency"]]),
        "slots": torch.tensor([0, 2, 0, 1], dtype=torch.int32),
        "counts": counts.int(), "bias_start": start, "bias_ids": torch.cat(ids).int(),
        "biases": biases, "mask_rows": torch.tensor([-1, 0, -1, choice["mask"]]).int(),
        "masks": words.int(),
    }  # fmt: skip

    def call(kernels: KernelSet, given: Tensors) -> Tensors:
        fields = {name: value for name, value in given.items() if name != "logits"}
        return {"out": kernels.adjust_logits(given["logits"], Adjustments(**fields))}

    return Problem(
        given, call, frozenset({"out"}), in_fp64=False, disturbed=some_rows(given, ["logits"], 1),
        alone=lambda results: [results["out"][-1:]],
    )  # fmt: skip


def log_probs(choice: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Problem:
    num_rows, vocab, top_k = 5, choice["vocab"], choice["top_k"]
    logits = randn(seed, num_rows, vocab, dtype=torch.float32) * choice["spread"]
    if choice["ties"]:
        logits = (logits * 2).round() / 2
    generator = torch.Generator().manual_seed(seed + 1)
    targets = torch.randint(0, vocab, (num_rows,), generator=generator).int()
    tensors = {"logits": logits, "targets": targets}

    def call(kernels: KernelSet, given: Tensors) -> Tensors:
        chosen, ids, top = kernels.log_probs(given["logits"], given["targets"], top_k)
        return {"chosen": chosen, "ids": ids, "top": top}

    return Problem(
        tensors, call, frozenset({"ids"}), disturbed=some_rows(tensors, ["logits"], 1),
        alone=lambda results: [result[-1:] for result in results.values()],
    )  # fmt: skip


def lora(op: str, choice: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Problem:
    site = LoraSite(choice["first_slice"], choice["width"], choice["out_widths"])
    case = make_lora_case(choice["counts"], site=site, seed=seed, dtype=dtype)
    if choice["padding"]:
        case.lora.rows[-1] = 0
        case.lora.tiles[case.lora.tiles[:, 2] >= case.lora.starts[-2], 0] = 0
        case.specified[case.lora.starts[-2] :] = False
    h = randn(seed + 1, *case.specified.shape, dtype=torch.float32)
    h[~case.specified] = torch.nan
    tensors = {"x": case.x, "pool": case.pool, "h": h, "out": case.out}
    # of a model whose KV takes a part of each page
    num_layers = 1 if choice["apart"] else case.pool.shape[1]

    def call(kernels: KernelSet, given: Tensors) -> Tensors:
        batch, pool = lora_on(case.lora, given["pool"].device), given["pool"][:, :num_layers]
        if op == "lora_shrink":
            found = kernels.lora_shrink(given["x"], pool, 1, site, batch)
            parts = found.view(-1, *case.specified.shape)
            return {"h": parts.sum(0).masked_fill(~case.specified.to(found.device), 0)}
        kernels.lora_expand(given["h"], pool, 1, site, batch, given["out"])
        return {"out": given["out"], "base rows": given["out"][base_rows]}

    first, last = int(case.lora.starts[0]), int(case.lora.counts[0]) - 1
    token = int(case.lora.tokens[first + last])  # one of the first adapter's
    base = torch.ones(len(case.x), dtype=torch.bool)
    for group in range(len(case.lora.rows) - choice["padding"]):
        start = int(case.lora.starts[group])
        base[case.lora.tokens[start : start + int(case.lora.counts[group])].long()] = False
    base_rows = base.nonzero().flatten()
    keep = torch.arange(len(case.x)) == token
    kept_h = torch.arange(len(h)) == first + last
    disturbed = {**tensors, "x": poison(case.x, keep, 9), "h": poison(h, kept_h, 10),
                 "out": poison(case.out, keep, 11)}  # fmt: skip

    def alone(results: Tensors) -> list[Tensor]:
        return [results["h"][first + last]] if op == "lora_shrink" else [results["out"][token]]

    return Problem(tensors, call, frozenset({"base rows"}), disturbed=disturbed, alone=alone)


LORA = {
    "width": (64, 96, 200, 2100),
    "out_widths": ((64,), (40, 130), (128, 40, 40)),
    "first_slice": (0, 4),
    "counts": ((1, 4), (1, 1, 1, 1, 1, 1), (5, 17, 2, 40, 1, 16), (3, 1, 2, 33)),
    "padding": (0, 1),
    "apart": (False, True),
}

GATED = {"rows": (1, 33), "width": (8, 33, 1408)}

PROBLEMS: dict[str, OpCases] = {
    "paged_decode": OpCases(
        {**PAGED, **OPTIONS, "lens": DECODE_LENS, "shared": (0, 1024),
         "reproducible": (True, False)},
        lambda *args: attention("paged_decode", *args),
    ),
    "paged_prefill": OpCases(
        {**PAGED, **OPTIONS, "lens": PREFILL_LENS, "reproducible": (True, False)},
        lambda *args: attention("paged_prefill", *args),
    ),
    "qk_norm_rope_store": OpCases(
        {**PAGED, "lens": (DECODE_LENS[0], DECODE_LENS[2], PREFILL_LENS[1]), "norm": (True, False)},
        rope_store,
    ),
    "rms_norm": OpCases(
        {"rows": (1, 33), "hidden": (16, 100, 896, 4096), "residual": (True, False)}, rms_norm
    ),
    "silu_mul": OpCases(GATED, lambda *args: gated("silu_mul", *args)),
    "gelu_mul": OpCases(GATED, lambda *args: gated("gelu_mul", *args)),
    "linear": OpCases(
        {"rows": (16, 48, 80), "width": (48, 200, 1100), "out": (33, 96, 128),
         "bias": (True, False), "form": ("plain", "packed", "packed bf16")},
        linear,
    ),
    "lora_shrink": OpCases(LORA, lambda *args: lora("lora_shrink", *args)),
    "lora_expand": OpCases(LORA, lambda *args: lora("lora_expand", *args)),
    "sample": OpCases(
        {
            "vocab": (13, 1003), "temperature": (0.0, 0.7, 1.5), "top_k": (0, 1, 7, 5000),
            "top_p": (1.0, 0.9, 0.3), "ties": (False, True), "broken": (False, True),
            "spread": (0.5, 4.0),
        },
        sample,
    ),
    "adjust_logits": OpCases(
        {
            "vocab": (33, 1003), "spread": (0.5, 9.0), "biases": (0, 5), "temperature": (0.0, 1.5),
            "min_p": (0.0, 0.05, 1.0), "repetition": (1.0, 1.2), "presence": (0.0, 0.6),
            "frequency": (0.0, -0.4), "mask": (-1, 1),
        },
        adjust_logits,
    ),
    "log_probs": OpCases(
        {"vocab": (33, 1003), "top_k": (0, 1, 5, 20), "ties": (False, True), "spread": (0.5, 9.0)},
        log_probs,
    ),
    "copy_pages": OpCases(
        {"head_dim": (16, 80), "n": (0, 1, 3), "far": (False, True)},
        lambda *args: move_pages("copy_pages", *args),
    ),
    "zero_pages": OpCases(
        {"head_dim": (16, 80), "n": (0, 1, 3), "far": (False, True)},
        lambda *args: move_pages("zero_pages", *args),
    ),
}  # fmt: skip
