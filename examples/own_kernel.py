"""A kernel of one's own, in PyTorch: attention of decodes over pages, and an engine that runs on
it.

    python examples/own_kernel.py
    cd examples && python -m scalesim_kernels check own_kernel:paged_decode --op paged_decode

``docs/examples/my_kernel.py`` is the same in Triton.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scalesim_kernels import select
from small_model import write_small_model
from torch import Tensor

import scalesim
from scalesim.config import EngineConfig
from scalesim.engine.build import build_parts


def paged_decode(
    q: Tensor, pool: Tensor, layer: int, batch: Any, plan: Any, scale: float, out: Tensor,
    window: int | None = None, soft_cap: float | None = None,
) -> None:  # fmt: skip
    """The contract is ``scalesim_kernels.contracts.PagedAttention``. ``q`` and ``out`` are
    ``[num_tokens, num_heads, head_dim]``, ``pool`` is
    ``[num_pages, num_layers, 2, num_kv_heads, block_size, head_dim]``."""
    num_kv_heads, block_size, head_dim = pool.shape[3:]
    group = q.shape[1] // num_kv_heads
    for sequence in range(batch.num_decodes):
        row, context = int(batch.seq_rows[sequence]), int(batch.context_lens[sequence])
        if row == 0:  # padding
            continue
        oldest = 0 if window is None else max(context - window, 0)
        pages = batch.block_table[row, : -(-context // block_size)].long()
        held = pool[pages, layer].float().permute(1, 2, 0, 3, 4)
        k, v = held.reshape(2, num_kv_heads, -1, head_dim)[:, :, oldest:context]
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        score = (k * q[sequence].float()[:, None]).sum(-1) * scale
        if soft_cap is not None:
            score = soft_cap * torch.tanh(score / soft_cap)
        weights = torch.softmax(score, -1)
        out[sequence] = (weights[..., None] * v).sum(1).to(out.dtype)


def main() -> None:
    texts = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_small_model(Path(folder))
        config = EngineConfig(device="cpu", device_memory="16MB", host_memory=0)
        own = replace(select("cpu"), paged_decode=paged_decode)
        for kernels in (select("cpu"), own):
            parts = build_parts(model, config, dummy_weights=True, kernels=kernels)
            with scalesim.Engine(parts) as engine:
                reply = engine.agent("ada").generate("Hello", max_tokens=16, ignore_eos=True)
            texts.append(reply.token_ids)
    same = sum(ours == theirs for ours, theirs in zip(*texts, strict=True))
    print(f"{same} of {len(texts[0])} tokens are the built-in kernel's")


if __name__ == "__main__":
    main()
