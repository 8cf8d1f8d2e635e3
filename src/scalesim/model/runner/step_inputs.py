"""The inputs of a step as one flat array: packed on the host, copied in one piece, and read on the
device through views.

The views of a shape lie at fixed places, where a graph captured for that shape finds them. Packing
is index arithmetic in numpy, once per step. Decodes come before prefills. Used by ``DeviceSteps``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scalesim_kernels import LoraBatch, LoraDirectory, PagedBatch
from scalesim_kernels.lora_tiles import tile_capacity
from torch import Tensor

from scalesim.batch import Batch
from scalesim.core import Int32s
from scalesim.model.adapters.batch import Grouped
from scalesim.model.runner.arrange import Arranged

_NONE = np.zeros(0, np.int32)
_NO_GROUPS = Grouped(_NONE, np.zeros(1, np.int32), _NONE, _NONE, _NONE, _NONE)
_PAGED = ("positions", "token_rows", "seq_rows", "query_start", "context_lens")
_LORA = ("lora_tokens", "lora_starts", "lora_counts", "lora_rows", "lora_layouts", "lora_tiles")
_DTYPES = dict.fromkeys(("temperatures", "top_ps"), torch.float32)
_DTYPES |= {"keys": torch.int64}
_ALIGN = 64  # int32s: keeps vector loads and 8-byte fields aligned


@dataclass(frozen=True, slots=True)
class StepShape:
    """The sizes of a step, padding included. Equal shapes have equal layouts.

    ``num_groups`` is the number of adapters, used by ``num_entries`` entries of tokens; both are 0
    if no token uses an adapter. Where there are more decodes than a batch has, those of padding
    stand behind the batch's and before the other sequences, and have no tokens.
    """

    num_tokens: int
    num_seqs: int
    num_decodes: int
    num_samples: int
    num_entries: int = 0
    num_groups: int = 0

    @staticmethod
    def decode(num_seqs: int) -> StepShape:
        """The shape of a decode step: one token and one sample per sequence."""
        return StepShape(num_seqs, num_seqs, num_seqs, num_seqs)

    @staticmethod
    def mixed(num_decodes: int, num_tokens: int, num_others: int, num_samples: int) -> StepShape:
        """The shape of a step of decodes and ``num_others`` other sequences with ``num_tokens``
        tokens together."""
        tokens, seqs = num_decodes + num_tokens, num_decodes + num_others
        return StepShape(tokens, seqs, num_decodes, num_samples)

    def with_adapters(self, num_entries: int, num_groups: int) -> StepShape:
        """The same shape with these sizes for adapters."""
        return replace(self, num_entries=num_entries, num_groups=num_groups)

    @property
    def num_words(self) -> int:
        """Size of all fields, in int32s."""
        return int(layout(self)["keys"].stop)


@lru_cache(maxsize=1024)
def layout(shape: StepShape) -> Mapping[str, slice]:
    """The range of each field in the flat array, in int32s."""
    tokens, seqs, samples = shape.num_tokens, shape.num_seqs, shape.num_samples
    sizes = dict.fromkeys(("token_ids", "token_slots", "positions", "token_rows"), tokens)
    sizes |= {"seq_rows": seqs, "query_start": seqs + 1, "context_lens": seqs, "last": seqs}
    names = ("sample_rows", "sample_slots", "sample_positions", "temperatures", "top_ks", "top_ps")
    sizes |= dict.fromkeys(names, samples)
    groups = shape.num_groups
    sizes |= {"lora_tokens": shape.num_entries, "lora_starts": groups + 1 if groups else 0}
    sizes |= dict.fromkeys(("lora_counts", "lora_rows", "lora_layouts"), groups)
    sizes["lora_tiles"] = 4 * tile_capacity(shape.num_entries, groups)
    sizes |= {"keys": 2 * samples}  # int64
    places, start = {}, 0
    for name, size in sizes.items():
        places[name] = slice(start, start + size)
        start += -(-size // _ALIGN) * _ALIGN
    return places


def pack(
    batch: Batch,
    arranged: Arranged,
    shape: StepShape,
    dummy_slot: int,
    out: Int32s,
    lora: Grouped | None = None,
) -> None:
    """Write ``batch`` into ``out`` in the layout of ``shape``; what the batch does not fill is
    padding.

    dummy_slot : the slot for the samples of padding. lora : ``None`` if no token uses an adapter;
    then all groups of ``shape`` are padding.
    """
    place = layout(shape)
    positions, last = arranged.positions, arranged.last
    seq_rows = batch.rows[arranged.order]
    picked, seqs = arranged.picked, arranged.sampling

    decodes, num_seqs = arranged.num_decodes, batch.num_seqs
    extra = shape.num_decodes - decodes  # decodes of padding

    def put(name: str, values: np.ndarray[Any, Any], padding: int = 0) -> None:
        field = out[place[name]]
        field[: len(values)] = values
        field[len(values) :] = padding

    def spread(name: str, values: np.ndarray[Any, Any]) -> None:
        """``put`` for a value a sequence, with room for decodes of padding."""
        field = out[place[name]]
        field[:decodes] = values[:decodes]
        field[decodes : decodes + extra] = 0
        field[decodes + extra : num_seqs + extra] = values[decodes:]
        field[num_seqs + extra :] = 0

    put("token_ids", batch.token_ids[arranged.source])
    put("token_slots", batch.slots[arranged.seq], dummy_slot)
    put("positions", positions)
    put("token_rows", batch.rows[arranged.seq])
    spread("seq_rows", seq_rows)
    query_start = out[place["query_start"]]
    query_start[:decodes] = arranged.query_start[:decodes]
    query_start[decodes : decodes + extra] = decodes
    query_start[decodes + extra : num_seqs + extra] = arranged.query_start[decodes:-1]
    query_start[num_seqs + extra :] = len(arranged.source)
    spread("context_lens", np.where(seq_rows == 0, 0, positions[last] + 1))
    spread("last", last)
    put("sample_rows", last[picked], int(last[picked[0]]) if len(picked) else 0)
    put("sample_slots", batch.slots[seqs], dummy_slot)
    put("sample_positions", positions[last[picked]] + 1)
    sampling, temperatures = batch.sampling, batch.sampling.temperatures[seqs]
    if batch.logits is not None:  # rows that are sampled again, adjusted: the largest will do
        temperatures[np.isin(seqs, batch.logits.seqs)] = 0.0
    put("temperatures", temperatures.view(np.int32))
    put("top_ks", sampling.top_ks[seqs])
    put("top_ps", sampling.top_ps[seqs].view(np.int32), _bits(1.0))
    put("keys", sampling.keys[seqs].view(np.int32))
    if shape.num_groups:
        used = lora or _NO_GROUPS
        put("lora_tokens", used.tokens)
        put("lora_starts", used.starts, int(used.starts[-1]))
        put("lora_counts", used.counts)
        put("lora_rows", used.rows)  # row 0 marks a group of padding
        put("lora_layouts", used.layouts)
        put("lora_tiles", used.tiles.ravel())


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))


@dataclass(frozen=True, slots=True)
class StepTensors:
    """The fields that ``pack`` wrote, as tensors on the device: views, no copies."""

    token_ids: Tensor  # NO_TOKEN stands for the slot's newest token
    token_slots: Tensor
    paged: PagedBatch
    last: Tensor
    sample_rows: Tensor
    sample_slots: Tensor
    sample_positions: Tensor
    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    keys: Tensor
    lora: LoraBatch | None


def tensors(
    shape: StepShape, flat: Tensor, block_table: Tensor, directory: LoraDirectory | None = None
) -> StepTensors:
    """Views of ``flat`` (int32, on the device) in the layout of ``shape``. directory : the layouts
    of adapters; required if ``shape`` has groups."""
    fields = {
        name: flat[place].view(_DTYPES.get(name, torch.int32))
        for name, place in layout(shape).items()
    }
    fields["lora_tiles"] = fields["lora_tiles"].view(-1, 4)
    paged = {name: fields.pop(name) for name in _PAGED}
    groups = [fields.pop(name) for name in _LORA]
    lora = None
    if shape.num_groups:
        assert directory is not None, shape
        lora = LoraBatch(directory, block_table, *groups)
    paged_batch = PagedBatch(block_table=block_table, num_decodes=shape.num_decodes, **paged)
    return StepTensors(paged=paged_batch, lora=lora, **fields)
