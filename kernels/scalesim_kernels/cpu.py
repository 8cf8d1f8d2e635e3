"""The CPU kernel set: faster than the specification, and reproducible row by row.

Properties of the matrix library are tested before they are relied on (``cpu_rows``), for the
shapes, dtypes and numbers of threads that occur. If a property does not hold, the work is cut into
calls for which it does.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .contracts import ApplyLinear, KernelSet, PackWeight
from .cpu_logits import adjust_logits, log_probs
from .cpu_rows import HAS_NUMBA, linear, linear_product, pack_weight, steady_linear
from .float8 import as_bytes


def halved_where_exact(pack: PackWeight) -> PackWeight:
    """``pack``, but for matrices that bf16 holds without loss: those take half of the bytes."""
    if not HAS_NUMBA:
        return pack

    def pack_weight(weight: Tensor) -> Tensor:
        from .cpu_half_weights import as_halves

        halves = as_halves(weight)
        return pack(weight) if halves is None else halves

    return pack_weight


def also_halves(linear: ApplyLinear) -> ApplyLinear:
    """``linear`` that takes what ``halved_where_exact`` packs."""
    if not HAS_NUMBA:
        return linear

    def linear_of_either(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        from .cpu_half_weights import is_halves, linear_of_halves

        return (linear_of_halves if is_halves(weight) else linear)(x, weight, bias)

    return linear_of_either


def pack_and_ask(weight: Tensor) -> Tensor:
    """``pack_weight``, and which row counts agree: asked now, not in the first step."""
    packed = pack_weight(weight)
    linear_product(packed).ask(weight.shape[1], weight.dtype)
    return packed


def copy_pages(pool: Tensor, src: Tensor, dst: Tensor) -> None:
    pool = as_bytes(pool)
    pool.index_copy_(0, dst, pool.index_select(0, src))


def zero_pages(pool: Tensor, ids: Tensor) -> None:
    as_bytes(pool).index_fill_(0, ids, 0)


def cpu_kernels(reproducible: bool = True, compiled: bool = HAS_NUMBA) -> KernelSet:
    """``reproducible`` false: ``linear`` is the library's in one call, whatever the rows.

    compiled : by the kernels that numba compiles, which read pages in place; otherwise by torch's
        operations, on gathered pages.
    """
    return KernelSet(
        name="cpu",
        row_multiple=1,
        **(compiled_ops() if compiled else torch_ops()),
        pack_weight=halved_where_exact(pack_and_ask if reproducible else pack_weight),
        linear=also_halves(steady_linear if reproducible else linear),
        copy_pages=copy_pages,
        zero_pages=zero_pages,
        log_probs=log_probs,
        adjust_logits=adjust_logits,
    )


def compiled_ops() -> dict[str, Any]:
    """The ops that read pages in place, and the elementwise ones, by kernels that numba compiles:
    once for a processor, some seconds; then they come from numba's cache."""
    from . import cpu_paged
    from .cpu_compiled_lora import CompiledLora
    from .cpu_compiled_sampling import sample

    attention, lora = cpu_paged.InPlaceAttention(), CompiledLora()
    return {
        "plan": attention.plan,
        "qk_norm_rope_store": attention.rope,
        "paged_decode": attention.paged_decode,
        "paged_prefill": attention.paged_prefill,
        "rms_norm": cpu_paged.rms_norm,
        "silu_mul": cpu_paged.silu_mul,
        "gelu_mul": cpu_paged.gelu_mul,
        "lora_shrink": lora.shrink,
        "lora_expand": lora.expand,
        "sample": sample,
    }


def torch_ops() -> dict[str, Any]:
    """The same ops by torch's operations."""
    from . import cpu_elementwise
    from .cpu_attention import CpuAttention
    from .cpu_lora import CpuLora
    from .cpu_sampling import sample

    attention, lora = CpuAttention(), CpuLora()
    return {
        "plan": attention.plan,
        "qk_norm_rope_store": cpu_elementwise.CpuRope(attention),
        "paged_decode": attention.paged_decode,
        "paged_prefill": attention.paged_prefill,
        "rms_norm": cpu_elementwise.rms_norm,
        "silu_mul": cpu_elementwise.silu_mul,
        "gelu_mul": cpu_elementwise.gelu_mul,
        "lora_shrink": lora.shrink,
        "lora_expand": lora.expand,
        "sample": sample,
    }
