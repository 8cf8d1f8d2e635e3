"""Scenarios: a workload or a trace, on a machine whose pools are sized by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scalesim.distance.estimates import Source
from scalesim.distance.learned.learned import Learned
from scalesim.errors import ConfigError, TraceError
from scalesim.replay.bound import page_ids
from scalesim.replay.content import VOCAB_SIZE, tokens_of
from scalesim.replay.hardware import CostModel, Machine
from scalesim.replay.knobs import Knobs
from scalesim.replay.own import hardware_of, model_of
from scalesim.replay.workloads import Kind, generate
from scalesim.trace.trace import Hint, TraceCall, TraceTick, with_truth

TraceHints = Literal["recorded", "exact", "learned", "none"]

MAX_RUNNING = 512  # a step's budget of tokens: each that runs decodes one
ADAPTER_BYTES = 77 << 20  # rank 16 on the seven linear layers of Qwen2.5-7B, bf16


@dataclass(frozen=True, slots=True)
class Sizes:
    """``hardware``, ``model``: a name, or the path of a description. ``residency``: of all agents'
    state, what the device pool holds. ``host``: of the same, what the host pool holds.
    ``pool_bytes``, ``host_bytes``: the sizes themselves, instead. ``running``: requests at once.
    ``link_share``: of the link's rate. ``adapter``: each agent has one, as pages of its own before
    its prompt. Raises ``ConfigError``."""

    hardware: str = "h100"
    model: str = "qwen2.5-7b"
    residency: float = 0.25
    host: float = 4.0
    running: int = 32
    link_share: float = 1.0
    adapter: bool = False
    pool_bytes: int | None = None
    host_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.running <= MAX_RUNNING:
            raise ConfigError(f"running={self.running}; it must be 1 to {MAX_RUNNING} requests")


@dataclass(frozen=True, slots=True)
class Scenario:
    """``pages``: all agents' state between calls. ``ticks`` gives the same ticks each time, and
    ``sources`` what tells of the next calls beside them. ``note``: what a reader should know."""

    name: str
    ticks: Callable[[], Iterable[TraceTick]]
    pages: int
    max_len: int
    first_tokens: int = 0
    num_ticks: int = 0
    sources: Callable[[], Sequence[Source]] = tuple
    note: str = ""

    def machine(self, sizes: Sizes) -> Machine:
        """Raises ``ConfigError`` where the pool cannot hold the longest call."""
        cost = cost_of(sizes)
        geometry = cost.model.geometry()
        longest = self.max_len // geometry.block_size + 1
        device = max(int(self.pages * sizes.residency), longest)
        host = int(self.pages * sizes.host)
        if sizes.pool_bytes is not None:
            device = sizes.pool_bytes // geometry.page_bytes
            if device < longest:
                raise ConfigError(
                    f"--pool {sizes.pool_bytes} bytes hold {device} pages, and the longest call of "
                    f"{self.max_len} tokens takes {longest} ({longest * geometry.page_bytes} bytes)"
                )
        if sizes.host_bytes is not None:
            host = sizes.host_bytes // geometry.page_bytes
        return Machine(
            cost,
            device_pages=device,
            host_pages=host,
            max_len=self.max_len,
            max_num_seqs=sizes.running,
            link_share=sizes.link_share,
            first_tokens=self.first_tokens,
        )


def cost_of(sizes: Sizes) -> CostModel:
    """Raises ``ConfigError`` for what is neither a name nor a sound description."""
    return CostModel(hardware_of(sizes.hardware), model_of(sizes.model))


def of_workload(kind: Kind, knobs: Knobs, sizes: Sizes, *, learned: bool = False) -> Scenario:
    """``learned``: what hints there are is made by watching who calls when."""
    geometry = cost_of(sizes).model.geometry()
    first = 0
    if sizes.adapter:
        first = -(-ADAPTER_BYTES // geometry.page_bytes) * geometry.block_size
    pages = knobs.pages(geometry.block_size) + knobs.agents * first // geometry.block_size
    return Scenario(
        kind.name,
        lambda: generate(kind, knobs, first),
        pages,
        knobs.max_len + first,
        first,
        knobs.ticks + 1,
        _learned if learned else tuple,
    )


def of_trace(
    name: str, ticks: Iterable[TraceTick], sizes: Sizes, hints: TraceHints = "recorded"
) -> Scenario:
    """A trace, read whole: what is to come must be known to ``oracle``. Calls by nobody leave no
    state; where all are, the pool is one for what runs."""
    found = informed(with_truth(ticks), hints)
    calls = [call for tick in found for call in tick.calls]
    if not calls:
        raise TraceError(f"{name} has no calls")
    size = cost_of(sizes).model.geometry().block_size
    longest = max(call.prompt_len + call.output.length for call in calls)
    last = {call.agent: call for call in calls if call.agent is not None}
    pages, note = state_pages(last.values(), size), ""
    if not last:
        pages = int(sizes.running * (longest // size + 1) / sizes.residency)
        note = (
            "No call names its agent, so nothing is kept for one: all policies give the same, and "
            "the pool is as large as what runs."
        )
    return Scenario(
        name, lambda: found, pages, longest, 0, len(found),
        _learned if hints == "learned" else tuple, note,
    )  # fmt: skip


def state_pages(calls: Iterable[TraceCall], block_size: int) -> int:
    """What ``calls``, one an agent, hold between calls: whole blocks of their prompts, what is
    shared once, and for each a partial one."""
    known: dict[int, int] = {}
    count = 0
    for call in calls:
        tokens = tokens_of(call.prompt, VOCAB_SIZE)
        page_ids(tokens.tobytes(), block_size * tokens.itemsize, known)
        count += 1
    return len(known) + count


def informed(ticks: Sequence[TraceTick], hints: TraceHints) -> list[TraceTick]:
    """``ticks``, whose truth is known, with other hints: ``exact`` tells what really comes, when
    each call has ended and at the start; ``learned`` and ``none`` tell nothing."""
    if hints == "recorded":
        return list(ticks)
    exact = hints == "exact"
    found = [
        TraceTick(
            tick.time,
            [],
            [replace(call, expect=call.truth if exact else None) for call in tick.calls],
        )
        for tick in ticks
    ]
    if exact and found:
        first = {
            call.agent: tick.time
            for tick in reversed(found)
            for call in reversed(tick.calls)
            if call.agent is not None
        }
        found[0].hints.extend(Hint(agent, time, time) for agent, time in first.items())
    return found


def _learned() -> tuple[Source, ...]:
    return (Learned(),)
