"""The ``compile`` command: runs the gate on each target, prints, compares, updates the table."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import triton

from .compile_only import TARGETS
from .gate import Figures, faults, measure, read_table, table_path, write_table

HEADER = f"{'':66} regs spills  shared  async tensor bufs flight"


def compile_command(options: argparse.Namespace) -> int:
    names = options.targets.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        print(f"error: --targets {unknown[0]}: known are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    table, num_faults, num_kernels = read_table(), 0, 0
    alone = options.update or not table  # without a table, the rules alone judge
    print(f"Triton {triton.__version__}, table {table_path().name if table else 'none'}\n{HEADER}")
    for target, now in measured(names, options.jobs):
        committed = table.get(target, {})
        for name, figures in now.items():
            known = figures if alone else committed.get(name)
            wrong = faults(name, TARGETS[target], figures, known)
            num_faults += len(wrong)
            if options.all or wrong or figures != known:
                print_line(target, name, figures, known, wrong)
        gone = sorted(committed.keys() - now.keys())
        if gone and not options.update:
            print(f"{target}: in the table and no more compiled: {', '.join(gone)}")
            num_faults += len(gone)
        table[target] = now
        num_kernels += len(now)
    if options.update and not num_faults:
        write_table(table)
    print(f"{num_kernels} kernels, {num_faults} faults")
    return 1 if num_faults else 0


def measured(names: list[str], jobs: int) -> Iterator[tuple[str, dict[str, Figures]]]:
    """The figures of each target, in the order of ``names``; by ``jobs`` processes, a target
    each."""
    if jobs == 1:
        yield from map(figures_of, names)
        return
    count = min(jobs or os.cpu_count() or 1, len(names))
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as processes:
        yield from processes.map(figures_of, names)


def figures_of(name: str) -> tuple[str, dict[str, Figures]]:
    return name, dict(measure(TARGETS[name]))


def print_line(
    target: str, name: str, now: Figures, before: Figures | None, wrong: list[str]
) -> None:
    print(f"{target + ' ' + name:66} {now.text()}  {'; '.join(wrong)}", flush=True)
    if before is not None and before != now:
        print(f"{'in the table':>66} {before.text()}")
