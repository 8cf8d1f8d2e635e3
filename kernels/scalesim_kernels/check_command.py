"""The ``check`` command: resolves what to check, prints a table, names what failed."""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from . import NAMES, select
from .conformance import PROBLEMS, Verdict, cases_of, check_case
from .conformance.pairwise import Combination
from .contracts import KernelSet

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHOWN = 5  # failed cases of an op that are printed in full


def resolve(target: str) -> Callable[..., Any]:
    """The object that ``module:function`` names; raises ``ValueError`` saying what is wrong."""
    module_name, _, name = target.partition(":")
    if not name:
        raise ValueError(
            f"{target!r} is neither a set ({', '.join(NAMES)}) nor of the form module:function"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the module is there; something that it imports is not
        raise ValueError(f"{target!r}: there is no module {module_name!r} to import") from None
    if not callable(found := getattr(module, name, None)):
        has = [n for n in vars(module) if not n.startswith("_") and callable(vars(module)[n])]
        raise ValueError(f"{target!r}: no function {name!r} there; it has {', '.join(has)}")
    result: Callable[..., Any] = found
    return result


def kernels_to_check(target: str, ops: Sequence[str], device: str) -> tuple[KernelSet, list[str]]:
    """The set, and the ops of it to check. A user's op stands in the device's own set."""
    if unknown := [op for op in ops if op not in PROBLEMS]:
        raise ValueError(f"--op {unknown[0]}: known are {', '.join(PROBLEMS)}")
    if target in NAMES:
        return select(target), list(ops or PROBLEMS)
    function = resolve(target)
    if not ops:
        made = function()
        if not isinstance(made, KernelSet):
            raise ValueError(
                f"{target!r} gave {type(made).__name__}, not a KernelSet; name an --op"
            )
        return made, list(PROBLEMS)
    base = select("triton" if device == "cpu" else device)
    changed: dict[str, Any] = dict.fromkeys(ops, function)
    return replace(base, **changed), list(ops)


def dtypes_of(names: str, device: str) -> tuple[torch.dtype, ...]:
    names = names or ("fp32,fp16" if device == "cpu" else "fp16,bf16")
    if unknown := [name for name in names.split(",") if name not in DTYPES]:
        raise ValueError(f"--dtypes {unknown[0]}: known are {', '.join(DTYPES)}")
    return tuple(DTYPES[name] for name in names.split(","))


def check_command(options: argparse.Namespace) -> int:
    _, ops = kernels_to_check(options.target, options.op, options.device)
    dtypes = dtypes_of(options.dtypes, options.device)
    fp8 = options.fp8 or options.target in NAMES
    cases = {op: cases_of(op, dtypes, options.long, fp8)[: options.cases] for op in ops}
    print(f"{options.target} on {options.device}")
    print(f"{'op':20} {'cases':>5} {'failed':>6} {'worst error':>26} {'seconds':>8}")
    judged = judgements(options, [(op, n) for op in ops for n in range(len(cases[op]))], cases)
    failed: list[Verdict] = []
    for op in ops:
        begin = time.perf_counter()
        verdicts = list(islice(judged, len(cases[op])))
        bad = [verdict for verdict in verdicts if verdict.faults]
        print(
            f"{op:20} {len(verdicts):5} {len(bad):6} {worst(verdicts):>26} "
            f"{time.perf_counter() - begin:8.1f}",
            flush=True,
        )
        if options.time:
            print_times(verdicts)
        failed += bad
    for verdict in failed[:SHOWN]:
        print(f"\n{verdict.op} {words(verdict)}")
        print("".join(f"    {fault}\n" for fault in verdict.faults), end="")
    if len(failed) > SHOWN:
        print(f"\nand {len(failed) - SHOWN} more failed")
    return 1 if failed else 0


def judgements(
    options: argparse.Namespace,
    wanted: Sequence[tuple[str, int]],
    cases: dict[str, list[Combination]],
) -> Iterator[Verdict]:
    """The verdicts on the ``wanted`` cases, in their order; by ``options.jobs`` processes, each of
    which makes the kernels for itself."""
    judge = partial(_judge, options, cases)
    if options.jobs == 1:
        _begin(options)
        yield from map(judge, wanted)
        return
    with ProcessPoolExecutor(
        options.jobs or os.cpu_count(), multiprocessing.get_context("spawn"), _begin, (options,)
    ) as processes:
        yield from processes.map(judge, wanted)


_kernels: list[KernelSet] = []  # of this process


def _begin(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    _kernels[:] = [kernels_to_check(options.target, options.op, options.device)[0]]


def _judge(
    options: argparse.Namespace, cases: dict[str, list[Combination]], wanted: tuple[str, int]
) -> Verdict:
    op, number = wanted
    return check_case(_kernels[0], op, cases[op][number], number, options.device, options.time)


def worst(verdicts: list[Verdict]) -> str:
    """The largest error of each dtype."""
    errors: dict[str, float] = {}
    for verdict in verdicts:
        name = next(n for n, dtype in DTYPES.items() if dtype == verdict.case["dtype"])
        errors[name] = max(errors.get(name, 0.0), verdict.error)
    return "  ".join(f"{name} {error:.1e}" for name, error in sorted(errors.items()))


def print_times(verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        print(f"    {verdict.seconds * 1e3:10.3f} ms  {words(verdict)}")


def words(verdict: Verdict) -> str:
    return " ".join(f"{name}={value}" for name, value in verdict.case.items())
