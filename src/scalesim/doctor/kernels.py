"""The kernel set that an engine would use, and whether each op compiles, runs and is right here.

Ops are judged by the first cases of the conformance kit; ``python -m scalesim_kernels check`` runs
all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from scalesim_kernels import KernelSet, select
from scalesim_kernels.conformance import PROBLEMS, Verdict, check_op

from scalesim.doctor.findings import Section, Settings
from scalesim.engine.build import resolve_device

CASES = 2  # of each op
SMALL = 1 << 17  # elements: the least that torch gives to several threads, a few times over
TRIALS = 50
SLOWER = 3.0  # times as long by a team as by one thread: the threads wait for processors


def probe(settings: Settings) -> Section:
    place = resolve_device(settings.device)
    kernels = select(place.split(":")[0])
    dtype = torch.float32 if place == "cpu" else torch.bfloat16
    section = Section("kernels", {"set": kernels.name, "judged_in": str(dtype).split(".")[-1]})
    begin, cases = time.perf_counter(), 0
    for op in ops_of(kernels):
        cases += judge(section, kernels, op, place, dtype)
    section.facts |= {"cases": cases, "cases_took_s": round(time.perf_counter() - begin, 2)}
    if place == "cpu" and torch.get_num_threads() > 1:
        team(section, operation_s)
    return section


def team(section: Section, measure: Callable[[int], float]) -> None:
    """Whether torch's threads hinder each other. measure : seconds of a small operation, by so many
    threads."""
    threads = torch.get_num_threads()
    alone, together = measure(1), measure(threads)
    section.facts |= {"operation_by_one_thread_s": alone, "operation_by_all_threads_s": together}
    if together > SLOWER * alone:
        section.find(
            "warning",
            f"a small operation takes {together / alone:.0f} times as long by {threads} threads as "
            "by one: other programs use the processors, and OpenMP's threads keep theirs busy "
            "while they wait for one another",
            f"OMP_WAIT_POLICY=PASSIVE, or OMP_NUM_THREADS below {threads}",
        )


def operation_s(threads: int) -> float:
    """Seconds of a small operation by ``threads`` threads: the mean, since waits are rare and
    long."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.zeros(SMALL)
        x.add_(1.0)
        begin = time.perf_counter()
        for _ in range(TRIALS):
            x.add_(1.0)
        return (time.perf_counter() - begin) / TRIALS
    finally:
        torch.set_num_threads(before)


def ops_of(kernels: KernelSet) -> list[str]:
    """The ops of a set: its fields that are functions."""
    return [field.name for field in fields(kernels) if callable(getattr(kernels, field.name))]


def judge(section: Section, kernels: KernelSet, op: str, place: str, dtype: torch.dtype) -> int:
    """Add a fact about ``op``, and an error if it is wrong here. Returns the number of cases. An op
    without cases of its own (a plan, a packing) is used in the cases of other ops."""
    section.facts[op] = origin(getattr(kernels, op))
    if op not in PROBLEMS:
        return 0
    verdicts = list(check_op(kernels, op, device=place, dtypes=(dtype,), max_cases=CASES))
    faults = [fault for verdict in verdicts for fault in faults_of(verdict)]
    if faults:
        section.find(
            "error",
            f"{op} is wrong on {place}: {faults[0]}",
            f"`python -m scalesim_kernels check --op {op} --device {place.split(':')[0]}` shows "
            "every case; device='cpu', or dataclasses.replace(kernels, ...) with another kernel",
        )
    return len(verdicts)


def faults_of(verdict: Verdict) -> list[str]:
    return [" ".join(fault.split())[:300] for fault in verdict.faults]


def origin(op: Any) -> str:
    """The module and name of a function, without the common package."""
    kind = op if hasattr(op, "__qualname__") else type(op)
    return f"{kind.__module__.removeprefix('scalesim_kernels.')}.{kind.__qualname__}"
