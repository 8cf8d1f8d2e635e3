"""What it costs that rows stand alone on a CPU: the library's product in one call, and cut into
calls whose rows agree.

Arms take turns within the run, and the median of each counts. *As asked* is what this machine's
library allows; the others are what one would pay where it allows less: 64 rows a call, 16, or one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from scalesim_kernels import cpu_rows
from scalesim_kernels.cpu_rows import RowProduct, linear, linear_product, pack_weight
from torch import Tensor

from benchmarks.report import Report, num_cores, table

SHAPES = {"qkv": (896, 1152), "o": (896, 896), "gate, up": (896, 9728), "down": (4864, 896)}
ROWS = (16, 48, 80, 512, 1024)
FORMS = {"64 a call": (16, 32, 48, 64), "16 a call": (16,), "1 a call": (1,)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="how often each arm is timed")
    add("--rows", type=int, nargs="+", default=list(ROWS), help="rows of the product")
    add("--threads", type=int, default=num_cores(), help="of torch")


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        options.rounds, options.rows = 1, [16]
    torch.set_num_threads(options.threads)
    report, rows, figures = Report("rows"), [], []
    for name, (width, out) in list(SHAPES.items())[: 1 if options.quick else None]:
        weight = torch.randn(out, width)
        for form, matrix in {"packed": pack_weight(weight), "plain": weight}.items():
            for count in options.rows:
                took = seconds(torch.randn(count, width), matrix, options.rounds)
                whole = took.pop("one call")
                ratios = {arm: each / whole for arm, each in took.items()}
                figures.append({"shape": name, "form": form, "rows": count, "s": whole, **ratios})
                shown = [f"{ratio:.2f}" for ratio in ratios.values()]
                rows.append([name, form, str(count), f"{whole * 1e3:.2f}", *shown])
    report.figures["products"] = figures
    columns = ["matrix", "form", "rows", "one call, ms", "× as asked", *(f"× {f}" for f in FORMS)]
    report.tables.append(table("A product whose rows stand alone, against one call", columns, rows))
    asked = [float(each["as asked"]) for each in figures if each["form"] == "packed"]
    report.verdict("as asked over one call, packed, median", statistics.median(asked), most=1.1)
    return report


def seconds(x: Tensor, matrix: Tensor, rounds: int) -> dict[str, float]:
    """Of one product, by arm: the median of ``rounds``, arms by turns."""
    arms: dict[str, Callable[[Tensor], Tensor]] = {
        "one call": lambda rows: linear(rows, matrix),
        "as asked": linear_product(matrix),
        **{name: limited(matrix, sizes) for name, sizes in FORMS.items()},
    }
    took: dict[str, list[float]] = {name: [] for name in arms}
    for each in range(rounds + 1):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm(x)
            if each:  # the first warms up, and asks
                took[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in took.items()}


def limited(matrix: Tensor, sizes: tuple[int, ...]) -> RowProduct:
    """The product where only these sizes agree."""
    product = linear_product(matrix)
    with (
        patch.object(cpu_rows, "answers", {}),
        patch.object(cpu_rows, "agreeing_sizes", lambda *_: sizes),
        patch.object(cpu_rows, "equal", lambda *_: False),  # nor does our own kernel
    ):
        product(torch.zeros(16, matrix.shape[1]))
    return product
