"""LoRA of the CPU set: one small matrix product a group and side, on views of the pages.

The rank rows of a site lie one behind the other, so a whole A of q, k and v is a view, except where
a page ends. Measured on torch 2.13, row counts that are multiples of 16 give each row the bits that
it has alone, at every rank from 1 on: so a token's result does not depend on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .contracts import LoraBatch, LoraDirectory, LoraSite

_ALIGN = 64  # offsets, and so the strides between rank rows, are multiples of this


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` rank rows of ``width`` elements, ``stride`` apart, from ``offset`` of a page on."""

    block: int
    offset: int
    count: int
    width: int
    stride: int


@dataclass(frozen=True, slots=True)
class Slice:
    """One projection of one layer: its rank, and where its A goes among the site's rows."""

    index: int
    first_rank: int
    rank: int
    b_runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class SiteLayout:
    """One site of one layer in one layout. ``slices`` are those with a rank; ``scales``, one a rank
    row of A. ``is_full``: the rows of A are as many as h has places for, and in the same order."""

    a_runs: tuple[Run, ...]
    slices: tuple[Slice, ...]
    scales: Tensor
    is_full: bool


@dataclass(frozen=True, slots=True)
class Group:
    """One adapter's tokens: rows ``start:end`` of h, of which the first ``count`` are real."""

    start: int
    end: int
    count: int
    layout: int
    pages: list[int]
    tokens: Tensor | slice


@dataclass(frozen=True, slots=True)
class StepPlan:
    lora: LoraBatch
    tokens: Tensor  # int64
    groups: list[Group]


class CpuLora:
    """``shrink`` and ``expand``; keeps the newest step's groups and every site's runs."""

    def __init__(self) -> None:
        self._step: StepPlan | None = None
        self._directory: LoraDirectory | None = None
        self._sites: dict[tuple[int, int, int], SiteLayout] = {}

    def shrink(
        self, x: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch
    ) -> Tensor:
        plan, flat = self._plan(lora), pool.view(len(pool), -1)
        max_rank = lora.directory.a_offsets.shape[3]
        h = torch.zeros((len(plan.tokens), site.num_slices, max_rank))
        used = self._used(plan, layer, site, flat.shape[1])
        rows = x.index_select(0, plan.tokens) if used else x
        for group, at in used:
            a = gather(flat, group.pages, at.a_runs)
            shrunk = F.linear(rows[group.start : group.end].to(h.dtype), a).mul_(at.scales)
            mine = h[group.start : group.end]
            if at.is_full:
                mine.view(shrunk.shape).copy_(shrunk)
                continue
            for part in at.slices:
                chosen = shrunk[:, part.first_rank : part.first_rank + part.rank]
                mine[:, part.index, : part.rank].copy_(chosen)
        return h

    def expand(
        self, h: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch, out: Tensor
    ) -> None:
        plan, flat = self._plan(lora), pool.view(len(pool), -1)
        columns = torch.split(out, list(site.out_widths), dim=1)
        for group, at in self._used(plan, layer, site, flat.shape[1]):
            for part in at.slices:
                b = gather(flat, group.pages, part.b_runs)
                grown = (h[group.start : group.end, part.index, : part.rank] @ b)[: group.count]
                target = columns[part.index]
                if target.dtype != grown.dtype:  # rounded once, when added
                    grown = (target[group.tokens].float() + grown).to(target.dtype)
                    target[group.tokens] = grown
                elif isinstance(group.tokens, slice):
                    target[group.tokens].add_(grown)
                else:
                    target.index_add_(0, group.tokens, grown)

    def _plan(self, lora: LoraBatch) -> StepPlan:
        if self._step is None or self._step.lora is not lora:
            self._step = StepPlan(lora, lora.tokens.long(), step_groups(lora))
        return self._step

    def _used(
        self, plan: StepPlan, layer: int, site: LoraSite, page_elems: int
    ) -> list[tuple[Group, SiteLayout]]:
        """The groups whose adapters have weights here."""
        directory = plan.lora.directory
        found = [
            (group, self._site(directory, group.layout, layer, site, page_elems))
            for group in plan.groups
        ]
        return [(group, at) for group, at in found if at.slices]

    def _site(
        self, directory: LoraDirectory, layout: int, layer: int, site: LoraSite, page_elems: int
    ) -> SiteLayout:
        if self._directory is not directory:
            self._directory = directory
            self._sites.clear()
        key = (layout, layer, site.first_slice)
        found = self._sites.get(key)
        if found is None:
            found = self._sites[key] = site_layout(directory, layout, layer, site, page_elems)
        return found


def step_groups(lora: LoraBatch) -> list[Group]:
    groups = []
    starts, tokens = lora.starts.tolist(), lora.tokens.tolist()
    columns = (lora.counts.tolist(), lora.rows.tolist(), lora.layouts.tolist())
    for index, (count, row, layout) in enumerate(zip(*columns, strict=True)):
        if row == 0 or count == 0:
            continue
        start = starts[index]
        mine = tokens[start : start + count]
        together = mine == list(range(mine[0], mine[0] + count))
        where = slice(mine[0], mine[0] + count) if together else torch.tensor(mine)
        pages = lora.block_table[row].tolist()
        groups.append(Group(start, starts[index + 1], count, layout, pages, where))
    return groups


def gather(flat: Tensor, pages: list[int], runs: tuple[Run, ...]) -> Tensor:
    """``[rows, width]`` fp32 of an adapter; a view where one run holds it all."""
    parts = [
        flat.as_strided(
            (run.count, run.width),
            (run.stride, 1),
            pages[run.block] * flat.shape[1] + run.offset + flat.storage_offset(),
        )
        for run in runs
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).float()


def site_layout(
    directory: LoraDirectory, layout: int, layer: int, site: LoraSite, page_elems: int
) -> SiteLayout:
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
    is_full = len(a_offsets) == site.num_slices * directory.a_offsets.shape[3]
    return SiteLayout(runs, tuple(slices), torch.cat(scales or [torch.ones(0)]), is_full)


def runs_of(offsets: list[int], width: int, page_elems: int) -> tuple[Run, ...]:
    """Rows at ``offsets``, as few runs as pages allow."""
    stride = -(-width // _ALIGN) * _ALIGN
    runs: list[Run] = []
    for offset in offsets:
        block, start = divmod(offset, page_elems)
        last = runs[-1] if runs else None
        if last and last.block == block and start == last.offset + last.count * stride:
            runs[-1] = Run(block, last.offset, last.count + 1, width, stride)
        else:
            runs.append(Run(block, start, 1, width, stride))
    return tuple(runs)
