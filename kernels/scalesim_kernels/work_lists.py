"""The step's plan on the device: which (sequence, part) pairs there are, for launches whose grids
depend on static sizes only.

A decode's parts are splits of its context; a prefill's parts, tiles of its query tokens. Both begin
at multiples of a fixed size in absolute positions. One launch a list, once a step; no value comes
back to the host.
"""

# ruff: noqa: N803
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contracts import PagedBatch
from .launch import Launch, next_power_of_2

BUILD = Launch(tile=64, num_warps=1)


@dataclass(frozen=True, slots=True)
class WorkList:
    """Work for sequences ``first_seq:first_seq + num_seqs``, in their order.

    ``first_item[i]`` is where sequence ``i``'s items begin, its last entry their number; entries of
    ``seqs`` and ``parts`` from there on are arbitrary.
    """

    first_item: Tensor  # [num_seqs + 1] int32
    seqs: Tensor  # [capacity] int32, indices into the batch's sequences
    parts: Tensor  # [capacity] int32: the item's first position is ``parts * part_size``
    part_size: int

    @property
    def capacity(self) -> int:
        return len(self.seqs)

    @property
    def num_seqs(self) -> int:
        return len(self.first_item) - 1


@triton.jit
def first_and_last_part(seq_rows, query_start, context_lens, seq, valid, PART, WHOLE: tl.constexpr):
    """The half-open range of a sequence's parts: of its context (WHOLE) or its query tokens."""
    valid = valid & (tl.load(seq_rows + seq, mask=valid, other=0) != 0)
    context = tl.load(context_lens + seq, mask=valid, other=0)
    begin = context * 0
    if not WHOLE:
        tokens = tl.load(query_start + seq + 1, mask=valid, other=0)
        begin = context - (tokens - tl.load(query_start + seq, mask=valid, other=0))
    return begin // PART, (context + PART - 1) // PART


@triton.jit(do_not_specialize=["first_seq", "num_seqs"])
def build_kernel(
    seq_rows, query_start, context_lens,  # [num_seqs of the batch] int32 (query_start: + 1)
    first_item, seqs, parts,  # outputs
    first_seq, num_seqs,
    PART: tl.constexpr, WHOLE: tl.constexpr, ALL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid ``(num_seqs + 1,)``: a program writes the items of its sequence; the last, their number.

    Each adds up the numbers before its own again: a few hundred integers, and no second launch.
    """
    own = tl.program_id(0)
    index = tl.arange(0, ALL)
    before = (index < own) & (index < num_seqs)
    begin, end = first_and_last_part(
        seq_rows, query_start, context_lens, first_seq + index, before, PART, WHOLE
    )
    start = tl.sum(end - begin, 0)
    tl.store(first_item + own, start)
    begin, end = first_and_last_part(
        seq_rows, query_start, context_lens, first_seq + own, own < num_seqs, PART, WHOLE
    )
    for item in range(0, end - begin, BLOCK):
        offset = item + tl.arange(0, BLOCK)
        mask = offset < end - begin
        tl.store(seqs + start + offset, first_seq + own + offset * 0, mask=mask)
        tl.store(parts + start + offset, begin + offset, mask=mask)


def build(
    batch: PagedBatch, first_seq: int, num_seqs: int, part: int, whole: bool, capacity: int
) -> WorkList:
    """``capacity``: an upper bound of the number of items, from static sizes."""
    device = batch.seq_rows.device
    first_item = torch.empty(num_seqs + 1, dtype=torch.int32, device=device)
    seqs, parts = (torch.empty(capacity, dtype=torch.int32, device=device) for _ in range(2))
    build_kernel[(num_seqs + 1,)](
        batch.seq_rows, batch.query_start, batch.context_lens, first_item, seqs, parts,
        first_seq, num_seqs, part, whole, max(16, next_power_of_2(num_seqs)), BUILD.tile,
        **BUILD.options(),
    )  # fmt: skip
    return WorkList(first_item, seqs, parts, part)
