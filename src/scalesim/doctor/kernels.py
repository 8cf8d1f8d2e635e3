"""The kernel set that an engine would use, and whether each op compiles, runs and is right here.

Ops are judged by the first cases of the conformance kit; ``python -m scalesim_kernels check`` runs
all of them.
"""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import torch
from scalesim_kernels import KernelSet, select
from scalesim_kernels.conformance import PROBLEMS, Verdict, check_op

from scalesim.doctor.findings import Section, Settings
from scalesim.engine.build import resolve_device

CASES = 2  # of each op


def probe(settings: Settings) -> Section:
    place = resolve_device(settings.device)
    kernels = select(place.split(":")[0])
    dtype = torch.float32 if place == "cpu" else torch.bfloat16
    section = Section("kernels", {"set": kernels.name, "judged_in": str(dtype).split(".")[-1]})
    begin, cases = time.perf_counter(), 0
    for op in ops_of(kernels):
        cases += judge(section, kernels, op, place, dtype)
    section.facts |= {"cases": cases, "cases_took_s": round(time.perf_counter() - begin, 2)}
    return section


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
