"""The compile gate: the resources of every kernel on GPUs that are not present, against a committed
table.

``python -m scalesim_kernels compile --targets sm_80,sm_90,gfx942`` compiles the variants below,
reads registers, spills, shared memory, asynchronous copies and tensor-core instructions from the
binaries, and the software pipeline from Triton's GPU dialect. It fails on a spill, on a kernel that
should have asynchronous copies or tensor-core instructions and has none, or fewer of either than
the table's by half, and on a pipeline that has fewer buffers or waits for more copies than the
table's. Other changes are printed. A new op needs a line in ``NEEDS`` only if it should have any of
these, and a call in ``warm_up.calls``.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import triton

from .compile_only import Compiled, Target, compiled
from .contracts import KernelSet
from .triton_set import triton_kernels
from .warm_up import WarmUpShape, calls


@dataclass(frozen=True, slots=True)
class Variant:
    """A model's shape and a mode. ``ops``: which to compile; all of them where empty."""

    name: str
    shape: WarmUpShape
    reproducible: bool
    ops: tuple[str, ...] = ()


ATTENTION = ("paged_decode", "paged_prefill")
PAGED = ("qk_norm_rope_store", *ATTENTION)
LLAMA = WarmUpShape(
    32, 8, 128, 16, 4096, 14336, 128256, torch.bfloat16, linears=((4096, 6144, False),)
)
QWEN3 = replace(LLAMA, num_heads=16, hidden=1024, intermediate=3072, vocab=151936, qk_norm=True)
QWEN = WarmUpShape(
    14, 2, 64, 32, 896, 4864, 151936, torch.float16, linears=((896, 1152, True), (4864, 896, False))
)
GEMMA2 = replace(
    LLAMA, num_heads=16, head_dim=256, hidden=3584, vocab=256000, window=4096, soft_cap=50.0,
    gelu=True,
)  # fmt: skip
MISTRAL = replace(LLAMA, window=4096)
VARIANTS = (
    Variant("llama-8b bf16", LLAMA, True),
    Variant("llama-8b bf16 wide", LLAMA, False, ("paged_prefill",)),
    Variant("llama-8b bf16 fp8 kv", replace(LLAMA, fp8=True), True, PAGED),
    Variant("llama-8b bf16 fp8 kv wide", replace(LLAMA, fp8=True), False, ("paged_prefill",)),
    Variant("llama-8b bf16 block 64", replace(LLAMA, block_size=64), True, ATTENTION),
    Variant("qwen3-0.6b bf16", QWEN3, True, ("qk_norm_rope_store", "sample", *ATTENTION)),
    Variant("qwen2.5-0.5b fp16", QWEN, True),
    Variant("qwen2.5-0.5b fp16 fp8 kv", replace(QWEN, fp8=True), True, PAGED),
    Variant("qwen2.5-0.5b fp16 wide", QWEN, False, ("paged_prefill",)),
    Variant("head 80 bf16", replace(LLAMA, head_dim=80), False, ATTENTION),
    Variant("head 256 bf16", replace(LLAMA, num_heads=8, head_dim=256), False, ATTENTION),
    Variant("gemma-2-9b bf16", GEMMA2, True, ("gelu_mul", *ATTENTION)),
    Variant("gemma-2-9b bf16 wide", GEMMA2, False, ("paged_prefill",)),
    Variant("mistral-7b bf16", MISTRAL, True, ATTENTION),
    Variant("mistral-7b bf16 fp8 kv", replace(MISTRAL, fp8=True), True, ATTENTION),
    Variant("mistral-7b bf16 fp8 kv wide", replace(MISTRAL, fp8=True), False, ("paged_prefill",)),
    Variant("mistral-7b bf16 wide", MISTRAL, False, ("paged_prefill",)),
    Variant("llama-8b fp32", replace(LLAMA, dtype=torch.float32), True, (*ATTENTION, "linear")),
    Variant("llama-8b fp32 wide", replace(LLAMA, dtype=torch.float32), False, ("paged_prefill",)),
)

# Kernels that must have asynchronous copies and tensor-core instructions in half precision. (fp32
# products are exact ones, which NVIDIA's tensor cores do not have.)
NEEDS = frozenset(
    {"decode_kernel", "prefill_kernel", "prefill_pair_kernel", "linear_kernel", "shrink_kernel",
     "expand_kernel"}
)  # fmt: skip
# Of these, the kernels that must have a software pipeline: at least two buffers, on NVIDIA's GPUs.
PIPELINED = frozenset({"decode_kernel", "linear_kernel", "shrink_kernel", "expand_kernel"})
# One register, stored once and loaded once: so ptxas keeps a value for after the main loop, where
# one register less lets another program run at once.
SPARE_SPILLS = 2


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one binary. Counts are of instructions in the code, not of executions."""

    registers: int
    spills: int  # loads and stores of spilled registers (CUDA); spilled registers (AMD)
    shared_bytes: int
    async_copies: int  # global to shared memory without registers between
    tensor_core: int
    buffers: int  # of the tile that the main loop holds most often, for copies ahead of their use
    in_flight: int  # copies that the main loop leaves under way when it waits for a tile

    def text(self) -> str:
        return (
            f"{self.registers:4d} {self.spills:6d} {self.shared_bytes:7d} "
            f"{self.async_copies:6d} {self.tensor_core:6d} {self.buffers:4d} {self.in_flight:6d}"
        )


def figures(kernel: Compiled) -> Figures:
    if "cubin" in kernel.files:
        return cuda_figures(kernel)
    return amd_figures(kernel)


def pipeline(kernel: Compiled) -> tuple[int, int]:
    """(buffers, copies in flight), from Triton's GPU dialect: a pipelined tile is an allocation in
    shared memory with one dimension more than the tile, and a wait names how many copies may still
    be under way."""
    text = kernel.files["ttgir"].read_text()
    buffers = re.findall(r"local_alloc\b[^\n]*!ttg\.memdesc<(\d+)x\d+x\d+x", text)
    waits = re.findall(r"async_wait\b[^\n]*\bnum = (\d+)", text)
    return max(map(int, buffers), default=0), max(map(int, waits), default=0)


def cuda_figures(kernel: Compiled) -> Figures:
    """From the SASS and the resource usage that Triton's own ``cuobjdump`` prints."""
    tool, cubin = triton.knobs.nvidia.cuobjdump.path, str(kernel.files["cubin"])

    def dump(what: str) -> str:
        return subprocess.run(
            [tool, what, cubin], check=True, capture_output=True, text=True
        ).stdout

    usage, sass = dump("-res-usage"), dump("-sass")
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage
    return Figures(
        int(registers[1]),
        len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        kernel.shared_bytes,
        len(re.findall(r"\b(?:LDGSTS|UTMALDG|UBLKCP)\b", sass)),
        len(re.findall(r"\b(?:HMMA|HGMMA|IMMA|QGMMA)\b", sass)),
        *pipeline(kernel),
    )


def amd_figures(kernel: Compiled) -> Figures:
    """From the assembly and the metadata at its end."""
    text = kernel.files["amdgcn"].read_text()

    def number(field: str) -> int:
        found = re.search(rf"\.{field}:\s+(\d+)", text)
        assert found is not None, field
        return int(found[1])

    return Figures(
        number("vgpr_count"),
        number("vgpr_spill_count") + number("sgpr_spill_count"),
        kernel.shared_bytes,
        len(re.findall(r"(?:buffer|global)_load_(?:lds_)?dword\S*.*\blds\b", text)),
        text.count("v_mfma"),
        *pipeline(kernel),
    )


def measure(
    target: Target, variants: tuple[Variant, ...] = VARIANTS, kernels: KernelSet | None = None
) -> Iterator[tuple[str, Figures]]:
    """(variant / op / kernel, its figures) of what the calls of each variant compile; a kernel's
    second form and those that follow are numbered."""
    seen, forms = set(), Counter[str]()
    for variant in variants:
        ops = kernels or triton_kernels(variant.reproducible)
        reached: dict[str, list[Compiled]] = {}
        with compiled(target) as found:
            for op, call in calls(ops, variant.shape, "cpu", variant.reproducible):
                if not variant.ops or op in variant.ops:
                    call()
                    reached.setdefault(op, []).extend(found)
                found.clear()
        for op, own in reached.items():
            for kernel in own:
                if kernel.hash not in seen:
                    seen.add(kernel.hash)
                    name = f"{variant.name} / {op} / {kernel.name}"
                    forms[name] += 1
                    yield name + f" {forms[name]}" * (forms[name] > 1), figures(kernel)


def table_path() -> Path:
    """The committed table of this version of Triton (of its first two numbers)."""
    version = ".".join(triton.__version__.split(".")[:2])
    return Path(__file__).with_name("compiled") / f"triton-{version}.json"


def read_table() -> dict[str, dict[str, Figures]]:
    path = table_path()
    if not path.exists():
        return {}
    raw = json.loads(path.read_text())
    return {
        target: {name: Figures(**values) for name, values in rows.items()}
        for target, rows in raw.items()
    }


def write_table(table: dict[str, dict[str, Figures]]) -> None:
    raw = {t: {name: asdict(f) for name, f in rows.items()} for t, rows in table.items()}
    table_path().parent.mkdir(exist_ok=True)
    table_path().write_text(json.dumps(raw, indent=1) + "\n")


def faults(name: str, target: Target, now: Figures, before: Figures | None) -> list[str]:
    """Why these figures fail. ``before``: the committed ones, ``None`` if there are none."""
    found = []
    if now.spills > SPARE_SPILLS:
        found.append(f"{now.spills} spills")
    half = "fp32" not in name
    cuda = target.gpu.backend == "cuda"
    kernel = name.rsplit(" / ", 1)[1].split()[0]
    if kernel in NEEDS:
        if cuda and now.async_copies == 0:
            found.append("no asynchronous copy")
        if half and now.tensor_core == 0:
            found.append("no tensor-core instruction")
    if kernel in PIPELINED and cuda and half and now.buffers < 2:
        found.append("no software pipeline")
    if before is None:
        found.append("not in the table; run with --update")
        return found
    for field, word in (("async_copies", "asynchronous copies"), ("tensor_core", "tensor-core")):
        was, is_now = getattr(before, field), getattr(now, field)
        if 2 * is_now < was:
            found.append(f"{word}: {is_now}, {was} before")
    for field, word in (("buffers", "buffers"), ("in_flight", "copies in flight")):
        was, is_now = getattr(before, field), getattr(now, field)
        if is_now < was:
            found.append(f"{word}: {is_now}, {was} before")
    return found
