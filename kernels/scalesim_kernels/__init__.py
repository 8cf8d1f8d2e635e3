"""The compute ops of ScaleSim as a replaceable record of functions.

``select(device)`` gives a ``KernelSet``; swap one op with ``dataclasses.replace(kernels,
paged_decode=mine)``. What an op must do stands in ``contracts``; what it means, in ``reference``.
This package never imports ``scalesim``. Importing it loads no torch; ``select`` does.
"""

from __future__ import annotations

from .contracts import Adjustments, KernelSet, LoraBatch, LoraDirectory, LoraSite, PagedBatch

__all__ = [
    "Adjustments",
    "KernelSet",
    "LoraBatch",
    "LoraDirectory",
    "LoraSite",
    "PagedBatch",
    "select",
]

NAMES = ("auto", "cpu", "cuda", "triton", "reference")


def select(device: str = "auto", reproducible: bool = True) -> KernelSet:
    """The kernel set for ``device``: ``"cpu"``, ``"cuda"`` (or ``"cuda:0"``), ``"reference"``, or
    ``"auto"`` (cuda where there is one). ``"triton"`` is the set of ``"cuda"`` without a look for a
    GPU: for CPU tensors in Triton's interpreter, which ``TRITON_INTERPRET=1`` turns on.

    ``reproducible`` false: ``linear`` is the vendor's in one call, faster where that must be cut or
    replaced, and does not keep its promise about rows. Each call makes a set with scratch buffers
    of its own; a set is for one thread at a time. Raises ``ValueError`` for an unknown name or
    where there is no GPU.
    """
    name = device.split(":")[0]
    if name in ("auto", "cuda"):
        from torch.cuda import is_available

        if name == "cuda" and not is_available():
            raise ValueError(f"device {device!r}: torch finds no CUDA device; use device='cpu'")
        name = "cuda" if is_available() else "cpu"
    if name == "cpu":
        from .cpu import cpu_kernels

        return cpu_kernels(reproducible)
    if name in ("cuda", "triton"):
        from .triton_set import triton_kernels

        return triton_kernels(reproducible)
    if name == "reference":
        from .reference import reference_kernels

        return reference_kernels()
    raise ValueError(f"device {device!r}: known are {', '.join(NAMES)}")
