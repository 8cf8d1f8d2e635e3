"""Scenarios: a workload or a trace, and the machine with pools sized for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scalesim.core import AgentId
from scalesim.distance.estimates import Source
from scalesim.distance.learned.learned import Learned
from scalesim.errors import ConfigError, TraceError
from scalesim.memory.geometry import PageGeometry
from scalesim.replay.bound import page_ids
from scalesim.replay.content import VOCAB_SIZE, tokens_of
from scalesim.replay.hardware import CostModel, Order
from scalesim.replay.knobs import Knobs
from scalesim.replay.machine import Machine
from scalesim.replay.models import BoundModels
from scalesim.replay.own import hardware_of, model_of
from scalesim.replay.workloads import Kind, generate
from scalesim.trace.trace import Hint, TraceCall, TraceTick, with_bursts, with_truth

TraceHints = Literal["recorded", "exact", "learned", "none"]

MAX_RUNNING = 512  # the token budget of a step, of which each running request takes one
_DISK_SHARE = 4.0
ADAPTER_BYTES = 77 << 20  # rank 16 on the seven linear layers of Qwen2.5-7B, bf16


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a machine.

    ``hardware`` and ``model`` are names, or paths of descriptions; ``model`` may be several of
    them, with commas between. ``models`` is the number of models that agents use in turn, with the
    shapes of ``model`` in turn; ``None``: as many as there are shapes. One model has its weights
    beside the pool, several have them in its pages, and these are state like agents' own.
    ``residency`` and ``host`` are the sizes of the two pools as shares of all state; ``pool_bytes``
    and ``host_bytes``, if given, replace them. ``running`` is the most requests at once,
    ``link_share`` the share of the link's rate, ``order`` the scheduler's. With ``adapter``, each
    agent has an adapter, modelled as pages before its prompt. ``disk`` is the rate of a disk in
    bytes a second (0: there is none), ``disk_bytes`` its size: four times all state if not given.
    Raises ``ConfigError`` for wrong values.
    """

    hardware: str = "h100"
    model: str = "qwen2.5-7b"
    residency: float = 0.25
    host: float = 4.0
    running: int = 32
    link_share: float = 1.0
    order: Order = "longest"
    adapter: bool = False
    pool_bytes: int | None = None
    host_bytes: int | None = None
    disk: float = 0.0
    disk_bytes: int | None = None
    models: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.running <= MAX_RUNNING:
            raise ConfigError(f"running={self.running}; it must be 1 to {MAX_RUNNING} requests")
        given = len(self.model.split(","))
        if self.models is not None and self.models < max(given, 2):
            raise ConfigError(
                f"--models {self.models}: it must be 2 at least, and no less than the {given} "
                f"shapes of --model {self.model}"
            )

    @property
    def num_models(self) -> int:
        return self.models or len(self.model.split(","))


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload or a trace to replay.

    ``pages`` is the state of all agents between calls, in pages, and the weights of ``models``.
    ``ticks`` returns the same ticks each time, ``sources`` the sources of predictions beside the
    ticks' hints. ``note`` is a remark for readers of the result.
    """

    name: str
    ticks: Callable[[], Iterable[TraceTick]]
    pages: int
    max_len: int
    first_tokens: int = 0
    num_ticks: int = 0
    sources: Callable[[], Sequence[Source]] = tuple
    note: str = ""
    models: BoundModels | None = None

    def machine(self, sizes: Sizes) -> Machine:
        """The machine of these sizes. Raises ``ConfigError`` if the pool cannot hold the longest
        call, with the weights of its model."""
        cost = cost_of(sizes)
        geometry = cost.model.geometry()
        longest, weights = max(
            (self.max_len // size + 1 + weights, weights)
            for _, size, weights in _by_model(self.models, geometry)
        )
        device = max(int(self.pages * sizes.residency), longest)
        host = int(self.pages * sizes.host)
        if sizes.pool_bytes is not None:
            device = sizes.pool_bytes // geometry.page_bytes
            if device < longest:
                raise ConfigError(
                    f"--pool {sizes.pool_bytes} bytes hold {device} pages, and the longest call of "
                    f"{self.max_len} tokens takes {longest} ({longest * geometry.page_bytes} bytes)"
                    + (f", {weights} of them for its model's weights" if weights else "")
                )
        if sizes.host_bytes is not None:
            host = sizes.host_bytes // geometry.page_bytes
        disk = int(self.pages * _DISK_SHARE) if sizes.disk else 0
        if sizes.disk and sizes.disk_bytes is not None:
            disk = sizes.disk_bytes // geometry.page_bytes
        return Machine(
            cost,
            device_pages=device,
            host_pages=host,
            max_len=self.max_len,
            max_num_seqs=sizes.running,
            link_share=sizes.link_share,
            order=sizes.order,
            first_tokens=self.first_tokens,
            disk_pages=disk,
            disk_bytes_per_s=sizes.disk,
            models=self.models,
        )


def cost_of(sizes: Sizes) -> CostModel:
    """The cost model of these sizes; of several models, that of the one with the widest KV. Raises
    ``ConfigError`` if hardware or model is neither a known name nor a valid description."""
    shapes = map(model_of, sizes.model.split(","))
    return CostModel(hardware_of(sizes.hardware), max(shapes, key=lambda shape: shape.token_bytes))


def _bound(sizes: Sizes, agents: Iterable[AgentId | None]) -> BoundModels | None:
    """The models of these sizes, used by ``agents``; ``None`` for a single model."""
    if sizes.num_models == 1:
        return None
    shapes = [model_of(name) for name in sizes.model.split(",")]
    costs = [shapes[index % len(shapes)] for index in range(sizes.num_models)]
    return BoundModels.in_turn(costs, agents)


def _by_model(
    models: BoundModels | None, geometry: PageGeometry, agents: Iterable[AgentId | None] = ()
) -> list[tuple[list[AgentId | None], int, int]]:
    """(those of ``agents`` that use it, tokens a page holds, pages of its weights) of each model.
    A single model has its weights beside the pool."""
    if models is None:
        return [([*agents], geometry.block_size, 0)]
    users: dict[int, list[AgentId | None]] = {number: [] for number in models.all}
    for agent in agents:
        users[models.numbers[agent]].append(agent)
    page_bytes = geometry.page_bytes
    return [
        (own, models.block_size(number, page_bytes), models.num_pages(number, page_bytes))
        for number, own in users.items()
    ]


def of_workload(kind: Kind, knobs: Knobs, sizes: Sizes, *, learned: bool = False) -> Scenario:
    """The scenario of a workload. With ``learned``, hints come from the learned source alone."""
    geometry = cost_of(sizes).model.geometry()
    first = 0
    if sizes.adapter:
        first = -(-ADAPTER_BYTES // geometry.page_bytes) * geometry.block_size
    models = _bound(sizes, range(knobs.agents))
    pages = sum(
        replace(knobs, agents=len(own)).pages(size) + len(own) * -(-first // size) + weights
        for own, size, weights in _by_model(models, geometry, range(knobs.agents))
    )

    def ticks() -> Iterable[TraceTick]:
        found = generate(kind, knobs, first)
        if models is not None:
            found = models.apart(found)
        return with_bursts(found) if knobs.hints == "exact" else found

    return Scenario(
        kind.name,
        ticks,
        pages,
        knobs.max_len + first,
        first,
        knobs.ticks + 1,
        _learned if learned else tuple,
        models=models,
    )


def of_trace(
    name: str, ticks: Iterable[TraceTick], sizes: Sizes, hints: TraceHints = "recorded"
) -> Scenario:
    """The scenario of a trace. The trace is read whole, because the policy ``oracle`` needs the
    future. Calls without an agent leave no state; if all are such, the pool is sized for the
    running calls. Raises ``TraceError`` for a trace without calls."""
    ticks = list(ticks)
    agents = {call.agent: None for tick in ticks for call in tick.calls}
    if not agents:
        raise TraceError(f"{name} has no calls")
    models = _bound(sizes, agents)
    if models is not None:
        ticks = models.apart(ticks)
    found = informed(with_truth(ticks), hints)
    calls = [call for tick in found for call in tick.calls]
    geometry = cost_of(sizes).model.geometry()
    longest = max(call.prompt_len + call.output.length for call in calls)
    last: dict[AgentId | None, TraceCall] = {
        call.agent: call for call in calls if call.agent is not None
    }
    note = ""
    pages = sum(
        state_pages((last[agent] for agent in own), size) + weights
        for own, size, weights in _by_model(models, geometry, last)
    )
    if not last:
        pages += int(sizes.running * (longest // geometry.block_size + 1) / sizes.residency)
        note = (
            "No call names its agent, so nothing is kept for one: all policies give the same, and "
            "the pool is as large as what runs."
        )
    return Scenario(
        name, lambda: found, pages, longest, 0, len(found),
        _learned if hints == "learned" else tuple, note, models,
    )  # fmt: skip


def state_pages(calls: Iterable[TraceCall], block_size: int) -> int:
    """The pages of state after ``calls``, one per agent: the whole blocks of their prompts, shared
    ones once, and a partial block for each call."""
    known: dict[int, int] = {}
    count = 0
    for call in calls:
        tokens = tokens_of(call.prompt, VOCAB_SIZE)
        page_ids(tokens.tobytes(), block_size * tokens.itemsize, known)
        count += 1
    return len(known) + count


def informed(ticks: Sequence[TraceTick], hints: TraceHints) -> list[TraceTick]:
    """``ticks``, whose ``truth`` is set, with hints of another kind. ``exact`` gives the true
    times, at the start and after each call, and how many calls follow in the tick; ``learned`` and
    ``none`` give no hints."""
    if hints == "recorded":
        return list(ticks)
    exact = hints == "exact"
    found = [
        TraceTick(
            tick.time,
            [],
            [
                replace(call, expect=call.truth if exact else None, more_calls=None)
                for call in tick.calls
            ],
        )
        for tick in ticks
    ]
    if exact and found:
        found = list(with_bursts(found))
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
