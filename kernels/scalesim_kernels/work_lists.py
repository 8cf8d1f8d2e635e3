"""Work lists of a step on the device: its (sequence, part) pairs, so that grids have static sizes.

A decode's parts are splits of its context, a prefill's parts are tiles of its query tokens. Both
begin at multiples of a fixed size in absolute positions. A list takes one launch per step, and no
value is read back to the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contracts import PagedBatch
from .launch import Launch

BUILD = Launch(tile=128, num_warps=1)
SMALL = ["seq_rows", "query_start", "context_lens", "first_item", "seqs", "parts"]


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


@triton.jit(do_not_specialize=["first_seq", "num_seqs"], do_not_specialize_on_alignment=SMALL)
def build_kernel(
    seq_rows, query_start, context_lens,  # [num_seqs of the batch] int32 (query_start: + 1)
    first_item, seqs, parts,  # outputs
    first_seq, num_seqs,
    PART: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid ``(num_seqs + 1,)``: a program writes the items of its sequence; the last, their number.

    Each adds up the numbers before its own again: a few hundred integers, and no second launch.
    """
    own = tl.program_id(0)
    num_before = tl.zeros([BLOCK], tl.int32)
    for first in range(0, own, BLOCK):
        seq = first + tl.arange(0, BLOCK)
        begin, end = first_and_last_part(
            seq_rows, query_start, context_lens, first_seq + seq, seq < own, PART, WHOLE
        )
        num_before += end - begin
    start = tl.sum(num_before, 0)
    tl.store(first_item + own, start)
    own_begin, own_end = first_and_last_part(
        seq_rows, query_start, context_lens, first_seq + own, own < num_seqs, PART, WHOLE
    )
    for item in range(0, own_end - own_begin, BLOCK):
        offset = item + tl.arange(0, BLOCK)
        mask = offset < own_end - own_begin
        tl.store(seqs + start + offset, first_seq + own + offset * 0, mask=mask)
        tl.store(parts + start + offset, own_begin + offset, mask=mask)


def build(
    batch: PagedBatch, first_seq: int, num_seqs: int, part: int, whole: bool, capacity: int
) -> WorkList:
    """``capacity``: an upper bound of the number of items, from static sizes."""
    device = batch.seq_rows.device
    first_item = torch.empty(num_seqs + 1, dtype=torch.int32, device=device)
    seqs, parts = (torch.empty(capacity, dtype=torch.int32, device=device) for _ in range(2))
    build_kernel[(num_seqs + 1,)](
        batch.seq_rows, batch.query_start, batch.context_lens, first_item, seqs, parts,
        first_seq, num_seqs, part, whole, BUILD.tile, **BUILD.options(),
    )  # fmt: skip
    return WorkList(first_item, seqs, parts, part)
