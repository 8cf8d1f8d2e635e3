"""The compute ops of ScaleSim as a replaceable record of functions.

``select(device)`` gives a ``KernelSet``; swap one op with ``dataclasses.replace(kernels,
paged_decode=mine)``. What an op must do stands in ``contracts``; what it means, in ``reference``.
This package never imports ``scalesim``. Importing it loads no torch; ``select`` does.
"""

from __future__ import annotations

from .contracts import KernelSet, LoraBatch, LoraDirectory, LoraSite, PagedBatch

__all__ = ["KernelSet", "LoraBatch", "LoraDirectory", "LoraSite", "PagedBatch", "select"]

NAMES = ("auto", "cpu", "reference")


def select(device: str = "auto") -> KernelSet:
    """The kernel set for ``device``: ``"cpu"``, ``"reference"``, or ``"auto"`` (now: cpu).

    Each call makes a set with scratch buffers of its own; a set is for one thread at a time.
    Raises ``ValueError`` for an unknown name and ``NotImplementedError`` for ``"cuda"``.
    """
    if device in ("auto", "cpu"):
        from .cpu import cpu_kernels

        return cpu_kernels()
    if device == "reference":
        from .reference import reference_kernels

        return reference_kernels()
    if device.split(":")[0] == "cuda":
        raise NotImplementedError(
            f"device {device!r}: the Triton kernels come with the GPU path; use device='cpu'"
        )
    raise ValueError(f"device {device!r}: known are {', '.join(NAMES)}")
