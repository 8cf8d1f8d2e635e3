"""LoRA of the CPU set: one matrix product for each adapter and side, on views of the pages.

The rank rows of a site lie one behind the other, so A of q, k and v together is one view of a page,
or one view of each page where pages end. Views are made once and kept while their adapter is in the
batch, so a step makes no small tensors but its results. Products use row counts that agree
(``cpu_rows``), so a token's result does not depend on the other tokens; where 4, 8 and 12 rows
agree with 16, a decode costs a quarter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .contracts import LoraBatch, LoraDirectory, LoraSite
from .cpu_rows import ALIGNMENT, BASE, RowProduct

_ALIGN = 64  # offsets, and so the strides between rank rows, are multiples of this
_FEW = 4  # below ``BASE``, row counts are multiples of this

Products: TypeAlias = tuple[RowProduct, ...]


@dataclass(frozen=True, slots=True)
class RankRows:
    """``count`` rank rows of ``width`` elements each, ``stride`` elements apart, from element
    ``offset`` of block ``block`` on."""

    block: int
    offset: int
    count: int
    width: int
    stride: int


@dataclass(frozen=True, slots=True)
class Slice:
    """One projection of a site: its index there, its ``rank``, ``first_rank``, the place of its A
    among the rank rows of the site, and the runs of its B."""

    index: int
    first_rank: int
    rank: int
    b_runs: tuple[RankRows, ...]


@dataclass(frozen=True, slots=True)
class SiteLayout:
    """Where one site of one layer lies, in one layout. ``slices`` has the projections with a rank;
    ``rank`` is their common rank, or ``None`` where ranks differ or a projection has none;
    ``scales`` has one entry for each rank row of A."""

    a_runs: tuple[RankRows, ...]
    slices: tuple[Slice, ...]
    rank: int | None
    scales: Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """The tokens of one adapter: rows of h from ``start`` on. ``count`` rows are real and ``rows``
    are computed, from the step's gathered inputs at ``first``. ``token`` is the first token if the
    tokens are consecutive, else ``None``."""

    start: int
    count: int
    rows: int
    first: int
    layout: int
    weights: AdapterProducts
    token: int | None
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class LoraStep:
    """The groups of one step, and the tokens of all their rows (``inputs``, int64)."""

    lora: LoraBatch
    inputs: Tensor  # int64: the tokens of all groups' rows
    groups: list[Group]


class AdapterProducts:
    """The products with the rank rows of one adapter, by site: with A transposed, and with B of
    each slice. Their matrices are views of the pool."""

    def __init__(self, flat: Tensor, pages: tuple[int, ...]) -> None:
        self._flat, self._pages = flat, pages
        self._sites: dict[tuple[int, int], tuple[Products, list[Products]]] = {}

    def site(self, key: tuple[int, int], layout: SiteLayout) -> tuple[Products, list[Products]]:
        """The products of a site: those with A, one for each run, and those with B, for each
        slice."""
        found = self._sites.get(key)
        if found is None:
            a = tuple(product(view.t()) for view in self._views(layout.a_runs))
            b = [tuple(map(product, self._views(part.b_runs))) for part in layout.slices]
            found = self._sites[key] = (a, b)
        return found

    def _views(self, runs: tuple[RankRows, ...]) -> tuple[Tensor, ...]:
        flat = self._flat
        return tuple(
            flat.as_strided(
                (run.count, run.width),
                (run.stride, 1),
                self._pages[run.block] * flat.stride(0) + run.offset + flat.storage_offset(),
            )
            for run in runs
        )


class CpuLora:
    """``shrink`` and ``expand`` of the CPU set. Keeps the groups of the newest step, the views of
    their adapters, and the layouts of sites."""

    def __init__(self) -> None:
        self._step: LoraStep | None = None
        self._directory: LoraDirectory | None = None
        self._pool = (0, torch.Size())
        self._sites: dict[tuple[int, int, int], SiteLayout] = {}
        self._weights: dict[tuple[int, tuple[int, ...]], AdapterProducts] = {}

    def shrink(
        self, x: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch
    ) -> Tensor:
        """See ``contracts.LoraShrink``."""
        step = self._plan(lora, pool)
        max_rank = lora.directory.a_offsets.shape[3]
        h = torch.empty((len(lora.tokens), site.num_slices, max_rank))
        used = list(self._used(step, layer, site, pool))
        inputs = x.index_select(0, step.inputs).to(h.dtype) if used else x
        for group, layout, (a, _) in used:
            rows = rows_of(inputs, group.first, group.rows, site.in_width)
            parts = [multiply(rows) for multiply in a]
            shrunk = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            mine = h[group.start : group.start + group.rows]
            if layout.rank is not None:
                shape = (group.rows, site.num_slices, layout.rank)
                torch.mul(
                    shrunk.view(shape), layout.scales.view(shape[1:]), out=mine[..., : layout.rank]
                )
                continue
            shrunk.mul_(layout.scales)
            for part in layout.slices:
                chosen = shrunk[:, part.first_rank : part.first_rank + part.rank]
                mine[:, part.index, : part.rank].copy_(chosen)
        return h

    def expand(
        self, h: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch, out: Tensor
    ) -> None:
        """See ``contracts.LoraExpand``."""
        step = self._plan(lora, pool)
        columns = torch.split(out, list(site.out_widths), dim=1)
        ranks = h.unbind(1)
        for group, layout, (_, b) in self._used(step, layer, site, pool):
            for part, runs in zip(layout.slices, b, strict=True):
                mine = rows_of(ranks[part.index], group.start, group.rows, part.rank)
                add_rows(columns[part.index], group, grown(mine, part.b_runs, runs))

    def _plan(self, lora: LoraBatch, pool: Tensor) -> LoraStep:
        if self._step is None or self._step.lora is not lora:
            self._forget_others(lora.directory, pool)
            self._step = self._make_step(lora, pool.view(len(pool), -1))
        return self._step

    def _forget_others(self, directory: LoraDirectory, pool: Tensor) -> None:
        """Forget what was kept for another directory or another pool."""
        if self._directory is not directory:
            self._directory = directory
            self._sites.clear()
        elif self._pool == (pool.data_ptr(), pool.shape):
            return
        self._pool = (pool.data_ptr(), pool.shape)
        self._weights.clear()

    def _make_step(self, lora: LoraBatch, flat: Tensor) -> LoraStep:
        groups: list[Group] = []
        inputs: list[int] = []
        kept = {}
        starts, tokens = lora.starts.tolist(), lora.tokens.tolist()
        columns = (lora.counts.tolist(), lora.rows.tolist(), lora.layouts.tolist())
        for index, (count, row, layout) in enumerate(zip(*columns, strict=True)):
            if row == 0 or count == 0:
                continue
            start, room = starts[index], starts[index + 1] - starts[index]
            rows = room if count >= BASE else min(room, -(-count // _FEW) * _FEW)
            pages = tuple(lora.block_table[row].tolist())
            key = (layout, pages)
            weights = kept[key] = self._weights.get(key) or AdapterProducts(flat, pages)
            mine = tokens[start : start + count]
            together = mine == list(range(mine[0], mine[0] + count))
            groups.append(
                Group(
                    start, count, rows, len(inputs), layout, weights,
                    mine[0] if together else None, torch.tensor(mine),
                )
            )  # fmt: skip
            inputs += tokens[start : start + rows]
        self._weights = kept
        return LoraStep(lora, torch.tensor(inputs, dtype=torch.int64), groups)

    def _used(
        self, step: LoraStep, layer: int, site: LoraSite, pool: Tensor
    ) -> Iterator[tuple[Group, SiteLayout, tuple[Products, list[Products]]]]:
        """The groups whose adapters have weights at this site, with the site's layout and
        products."""
        page_elems = pool.stride(0)
        for group in step.groups:
            site_layout = self._site(step.lora.directory, group.layout, layer, site, page_elems)
            if site_layout.slices:
                yield group, site_layout, group.weights.site((layer, site.first_slice), site_layout)

    def _site(
        self, directory: LoraDirectory, layout: int, layer: int, site: LoraSite, page_elems: int
    ) -> SiteLayout:
        key = (layout, layer, site.first_slice)
        found = self._sites.get(key)
        if found is None:
            found = self._sites[key] = site_layout(directory, layout, layer, site, page_elems)
        return found


def rows_of(matrix: Tensor, first: int, count: int, width: int) -> Tensor:
    """``matrix[first : first + count, :width]``, at a third of the cost of slicing."""
    stride = matrix.stride(0)
    start = matrix.storage_offset() + first * stride
    return matrix.as_strided((count, width), (stride, 1), start)


def product(matrix: Tensor) -> RowProduct:
    """``h @ matrix`` in fp32, where ``matrix`` is a view of a page."""
    place = matrix.data_ptr() % ALIGNMENT
    kind = ("lora", matrix.shape, matrix.stride(), matrix.dtype, place)
    return RowProduct(lambda h: torch.mm(h, matrix.to(h.dtype)), kind, matrix.shape[1])


def grown(h: Tensor, runs: tuple[RankRows, ...], b: Products) -> Tensor:
    """``h @ B``, summed over the runs of B in their order, which is the layout's and so always the
    same."""
    if len(b) == 1:
        return b[0](h)
    parts = torch.split(h, [run.count for run in runs], dim=1)
    out = b[0](parts[0])
    for part, multiply in zip(parts[1:], b[1:], strict=True):
        out.add_(multiply(part))
    return out


def add_rows(column: Tensor, group: Group, rows: Tensor) -> None:
    """Add the real ``rows`` to the group's tokens in one slice of the output, in place."""
    rows = rows_of(rows, 0, group.count, rows.shape[1])
    if column.dtype != rows.dtype:  # rounded once, when added
        column[group.tokens] = (column[group.tokens].float() + rows).to(column.dtype)
    elif group.token is not None:
        rows_of(column, group.token, group.count, column.shape[1]).add_(rows)
    else:
        column.index_add_(0, group.tokens, rows)


def site_layout(
    directory: LoraDirectory, layout: int, layer: int, site: LoraSite, page_elems: int
) -> SiteLayout:
    """Where the rank rows of one site of one layer lie, in one layout."""
    a_offsets: list[int] = []
    slices, scales = [], []
    for index, width in enumerate(site.out_widths):
        where = (layout, layer, site.first_slice + index)
        rank = int(directory.ranks[where])
        if rank:
            b_runs = runs_of(directory.b_offsets[where][:rank].tolist(), width, page_elems)
            scales.append(directory.scales[where].expand(rank))
            slices.append(Slice(index, len(a_offsets), rank, b_runs))
            a_offsets += directory.a_offsets[where][:rank].tolist()
    runs = runs_of(a_offsets, site.in_width, page_elems)
    ranks = {part.rank for part in slices}
    rank_of_all = ranks.pop() if len(ranks) == 1 and len(slices) == site.num_slices else None
    return SiteLayout(runs, tuple(slices), rank_of_all, torch.cat(scales or [torch.ones(0)]))


def runs_of(offsets: list[int], width: int, page_elems: int) -> tuple[RankRows, ...]:
    """Rank rows at ``offsets`` as runs: as few as the ends of pages allow."""
    stride = -(-width // _ALIGN) * _ALIGN
    runs: list[RankRows] = []
    for offset in offsets:
        block, start = divmod(offset, page_elems)
        last = runs[-1] if runs else None
        if last and last.block == block and start == last.offset + last.count * stride:
            runs[-1] = RankRows(block, last.offset, last.count + 1, width, stride)
        else:
            runs.append(RankRows(block, start, 1, width, stride))
    return tuple(runs)
