"""Linear layers over pages beside plain ones, call by call in one process.

Each matrix of the model is there three times: twice as a tensor of its own, and once in pages. A
call of each arm follows the other two with the same matrix, and who is first changes from pass to
pass, so all three find the caches alike. What the two plain arms differ by is what says nothing of
pages. The pool is an engine's, on huge pages where the system has them.
"""

from __future__ import annotations

import time
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from scalesim_kernels import select
from torch import Tensor

from benchmarks.report import Report, table
from scalesim.core import Floats
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.pools.storage import allocate_pages
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.paged_weights import WeightLayout

LEAST_LINEAR = 0.98
ROWS = (1, 16, 64)
IN_A_LAYER = 4  # matrices
GROUPS = 5  # of passes


class Ratio(NamedTuple):
    """The median over groups of passes, the least and the greatest."""

    least: float
    median: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.least:.3f} to {self.most:.3f})"


def linears(report: Report, config: ModelConfig, passes: int) -> None:
    """The products of all layers, with weights in pages and with plain ones."""
    matrices = paged_matrices(config)
    arms = [*([matrix.clone() for matrix in matrices] for _ in range(2)), matrices]
    num_bytes, rows = sum(matrix.nbytes for matrix in matrices), []
    for count in ROWS:
        for what, chosen in (
            ("all layers", arms), ("one layer", [each[:IN_A_LAYER] for each in arms]),
        ):  # fmt: skip
            on_pages, again = compared(chosen, count, passes)
            rows.append([f"{count}", what, str(on_pages), str(again)])
            name = f"linear on pages, {count} rows, {what}"
            report.figures[name] = {"on pages": on_pages, "plain again": again}
            report.verdict(name, on_pages.median, least=LEAST_LINEAR)
    columns = ["rows", "matrices", "plain ÷ on pages", "plain ÷ plain again"]
    title = (
        f"Linear layers: time of plain tensors ÷ time on pages, median (least to most) of {GROUPS} "
        f"groups of {passes} passes; a layer has {num_bytes / config.num_layers / 1e6:.1f} MB, "
        f"all have {num_bytes / 1e6:.0f}"
    )
    report.tables.append(table(title, columns, rows))


def paged_matrices(config: ModelConfig) -> list[Tensor]:
    """The matrices of all layers in a pool as an engine's, one part behind the other from page 3
    on."""
    geometry = PageGeometry.choose(config.num_layers, config.num_kv_heads, config.head_dim, 4)
    layout = WeightLayout(config, torch.float32, geometry.page_bytes)
    pool = torch.as_tensor(allocate_pages(sum(layout.runs) + 3, geometry.page_bytes))
    heads = [*accumulate(layout.runs, initial=3)][:-1]
    found = []
    for layer in layout.view(pool, heads).layers:
        for each in (layer.qkv, layer.o, layer.mlp.gate_up, layer.mlp.down):  # type: ignore[union-attr]
            found.append(each.weight.normal_())
    return found


def compared(arms: list[list[Tensor]], count: int, passes: int) -> tuple[Ratio, Ratio]:
    """Plain ÷ on pages, and plain ÷ plain again, of products with ``count`` rows: in each group of
    ``passes``, of the medians of each matrix, added up."""
    linear = select("cpu").linear
    inputs = [torch.randn(count, matrix.shape[1]) for matrix in arms[0]]
    groups = []
    for group in range(-1, GROUPS):  # the first warms up
        took = np.empty((passes, len(inputs), len(arms)))
        for number in range(passes):
            for index, x in enumerate(inputs):
                for place in range(len(arms)):
                    arm = (number + index + place) % len(arms)
                    start = time.perf_counter()
                    linear(x, arms[arm][index])
                    took[number, index, arm] = time.perf_counter() - start
        if group >= 0:
            groups.append(np.median(took, axis=0).sum(axis=0))
    plain, again, on_pages = np.transpose(groups)
    return ratio(plain / on_pages), ratio(plain / again)


def ratio(of_groups: Floats) -> Ratio:
    return Ratio(float(of_groups.min()), float(np.median(of_groups)), float(of_groups.max()))
