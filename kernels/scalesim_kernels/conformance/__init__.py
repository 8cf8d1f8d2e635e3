"""The conformance kit: does an implementation keep a contract, in every awkward case of it?

``check_op`` judges one op of a kernel set, ours or a user's; ``python -m scalesim_kernels check``
is the same with a table. Each case: relative error against the specification in fp64, no byte
written that is not the op's, garbage never read, and the bits of a row the same when its neighbours
change.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..contracts import KernelSet
from ..reference import reference_kernels
from ..signatures import OPTIONS, signature_fault
from .paged import same_bits
from .pairwise import Combination, pairwise, product
from .problems import PROBLEMS, Problem, Tensors
from .steady import steady_interpreter

__all__ = ["LIMITS", "PROBLEMS", "Verdict", "cases_of", "check_case", "check_op"]

# Of ||out - truth|| / ||truth||. bf16 has 8 bits: rounding the result alone costs 1.7e-3.
LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one case of ``op``. ``error``: the largest relative error of its results; ``faults``: what
    is wrong, in words, none where it passed; ``seconds``: one call."""

    op: str
    case: Combination
    error: float
    faults: tuple[str, ...]
    seconds: float


def cases_of(
    op: str, dtypes: tuple[torch.dtype, ...], long: bool = False, fp8: bool = True
) -> list[Combination]:
    """Cases of ``op``: every pair of values of its factors, ``dtypes`` among them, at least once;
    with ``long``, every combination. ``fp8``: with KV in e4m3 too."""
    factors = {**PROBLEMS[op].factors, "dtype": dtypes}
    if not fp8 and "kv" in factors:
        factors["kv"] = ("model",)
    return list(product(factors)) if long else pairwise(factors)


def check_op(
    kernels: KernelSet, op: str, *, device: str = "cpu", long: bool = False,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16), timed: bool = False,
    max_cases: int | None = None, fp8: bool = True,
) -> Iterator[Verdict]:  # fmt: skip
    """Judge ``getattr(kernels, op)`` on ``device`` in ``cases_of(op, dtypes, long, fp8)``; its
    ``plan`` comes from ``kernels`` too.

    ``max_cases``: only the first so many cases. ``timed``: the quickest of five calls. Raises
    ``ValueError`` for an unknown op. What the op itself raises is a fault of the case.
    """
    if op not in PROBLEMS:
        raise ValueError(f"op {op!r}: known are {', '.join(PROBLEMS)}")
    for number, case in enumerate(cases_of(op, dtypes, long, fp8)[:max_cases]):
        yield check_case(kernels, op, case, number, device, timed)


def check_case(
    kernels: KernelSet,
    op: str,
    case: Combination,
    seed: int,
    device: str = "cpu",
    timed: bool = False,
) -> Verdict:
    """Judge one ``case`` of ``cases_of(op, ...)`` as ``check_op`` does, its tensors made from
    ``seed`` and moved to ``device``; ``timed``: the quickest of five calls. What the op raises is a
    fault."""
    dtype = case["dtype"]
    needed = [name for name in OPTIONS.get(op, ()) if case[name] is not None]
    if (fault := signature_fault(op, getattr(kernels, op), needed)) is not None:
        return Verdict(op, case, float("nan"), (fault,), float("inf"))
    problem = PROBLEMS[op].make(case, dtype, seed)
    watch = Stopwatch(getattr(kernels, op))
    changed: dict[str, Any] = {op: watch}
    watched = replace(kernels, **changed)
    truth = problem.truth(reference_kernels())
    try:
        results = run(problem, watched, device)
        faults = list(differences(problem, results, truth, LIMITS[dtype]))
        if problem.alone is not None:
            disturbed = run(problem, watched, device, disturbed=True)
            pairs = zip(problem.alone(results), problem.alone(disturbed), strict=True)
            if not all(same_bits(a, b) for a, b in pairs):
                faults.append("a row's bits changed with its neighbours")
        if timed:
            for _ in range(4):
                run(problem, watched, device)
        error = max((relative(results[n], truth[n]) for n in judged(problem, truth)), default=0.0)
    except Exception as raised:  # whatever a user's kernel raises belongs into the report
        faults, error = [f"{type(raised).__name__}: {str(raised).splitlines()[0]}"], float("nan")
    return Verdict(op, case, error, tuple(faults), watch.best)


class Stopwatch:
    """An op that remembers how long its quickest call took."""

    def __init__(self, op: Any) -> None:
        self._op = op
        self.best = float("inf")

    def __call__(self, *args: Any, **options: Any) -> Any:
        wait_for_device()
        begin = time.perf_counter()
        result = self._op(*args, **options)
        wait_for_device()
        self.best = min(self.best, time.perf_counter() - begin)
        return result


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run(problem: Problem, kernels: KernelSet, device: str, disturbed: bool = False) -> Tensors:
    """The results on ``device``, brought back to the CPU."""

    def moved(kernels: KernelSet, tensors: Tensors) -> Tensors:
        there = {name: tensor.to(device) for name, tensor in tensors.items()}
        with steady_interpreter():
            return {name: r.cpu() for name, r in problem.call(kernels, there).items()}

    return replace(problem, call=moved).results(kernels, disturbed)


def judged(problem: Problem, truth: Tensors) -> list[str]:
    """The results that are judged by the dtype's limit."""
    return [name for name in truth if name not in problem.exact and name not in problem.limits]


def relative(result: torch.Tensor, truth: torch.Tensor) -> float:
    if truth.numel() == 0:
        return 0.0
    return float((result.double() - truth).norm() / truth.norm().clamp(min=1e-30))


def differences(problem: Problem, results: Tensors, truth: Tensors, limit: float) -> Iterator[str]:
    for name, want in truth.items():
        got = results[name]
        if got.shape != want.shape:
            yield f"{name}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
        elif name in problem.exact:
            if not same_bits(got, want.to(got.dtype)):
                yield f"{name}: not what the specification gives"
        elif not bool(torch.isfinite(got).all()):
            yield f"{name}: not finite; garbage was read, or too much is cut off"
        elif (error := relative(got, want)) > (most := problem.limits.get(name, limit)):
            yield f"{name}: relative error {error:.1e}, limit {most:.0e}"
