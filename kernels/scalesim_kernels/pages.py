"""Copies and zeroes whole pages of the pool, as 32-bit words: every bit, whatever it means.

For copy-on-write within the pool; moves between device and host are the engine's links' work.
References: ``reference.copy_pages`` and ``reference.zero_pages``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch

PAGES = Launch(tile=4096, num_warps=4)


@triton.jit(do_not_specialize_on_alignment=["src", "dst"])
def copy_kernel(
    words,  # [num_pages, page_words] int32
    page_words,
    src, dst,  # [n] int64
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid ``(n, ceil(page_words / BLOCK))``."""
    index = tl.program_id(0)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < page_words
    source = words + tl.load(src + index) * page_words + offset
    target = words + tl.load(dst + index) * page_words + offset
    tl.store(target, tl.load(source, mask=inside), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["ids"])
def zero_kernel(words, page_words, ids, BLOCK: tl.constexpr):
    """Grid ``(n, ceil(page_words / BLOCK))``; arguments as in ``copy_kernel``."""
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    target = words + tl.load(ids + tl.program_id(0)) * page_words + offset
    tl.store(target, tl.zeros([BLOCK], tl.int32), mask=offset < page_words)


def page_words(pool: Tensor) -> Tensor:
    """The pool as ``[num_pages, 32-bit words]``; shares memory."""
    return pool.view(len(pool), -1).view(torch.int32)


def copy_pages(pool: Tensor, src: Tensor, dst: Tensor) -> None:
    words = page_words(pool)
    grid = (len(src), -(-words.shape[1] // PAGES.tile))
    copy_kernel[grid](words, words.shape[1], src, dst, PAGES.tile, **PAGES.options())


def zero_pages(pool: Tensor, ids: Tensor) -> None:
    words = page_words(pool)
    grid = (len(ids), -(-words.shape[1] // PAGES.tile))
    zero_kernel[grid](words, words.shape[1], ids, PAGES.tile, **PAGES.options())
