"""What a recorded run says: how much was said before, who could be foreseen, how many agents would
fit, how fast with and without hints, and what to change first.

Pure figures of a list of calls and their ticks; ``cli.run`` shows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scalesim.errors import ConfigError
from scalesim.profile.calls import LoggedCall
from scalesim.profile.readers import calls_of_trace
from scalesim.profile.statistics import Profile, characterise
from scalesim.proxy.plugin_counts import PluginWork
from scalesim.proxy.recording import CallRecord
from scalesim.replay.arms import play
from scalesim.replay.own import hardware_of, model_of
from scalesim.replay.scenario import Sizes, TraceHints, of_trace
from scalesim.replay.sizing import Load, fit
from scalesim.trace.trace import TraceTick

MAX_REPLAYED = 2000
"""The most calls that are replayed, the last ones: a minute's work or so."""
_ARMS: tuple[tuple[str, str, TraceHints], ...] = (
    ("last use, recomputed", "lru-recompute", "none"),
    ("last use, host copies", "lru-swap", "none"),
    ("learned, no hints", "deadline", "learned"),
    ("with hints", "deadline", "exact"),
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The calls. ``failures`` counts by HTTP status, ``rungs`` by what told the agent.
    ``in_flight`` is the mean number open at once while any was. Seconds are p50 and p95. Tokens are
    means over the calls that were answered."""

    calls: int
    agents: int
    seconds: float
    failures: dict[int, int]
    rungs: dict[str, int]
    in_flight: float
    latency_s: tuple[float, float]
    first_token_s: tuple[float, float]
    prompt_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Reuse:
    """Shares of all prompt tokens: those that a cache without limits would have found, and those
    that the server says it found (``None`` if it does not say). ``repeated``: share of the calls
    whose whole prompt was one before."""

    possible: float
    reported: float | None
    repeated: float


@dataclass(frozen=True, slots=True)
class AgentRoom:
    """How many agents like those of ``load`` fit: on the device, and with ``host_bytes`` of host
    memory behind it."""

    model: str
    hardware: str
    host_bytes: int
    on_device: int
    with_host: int
    load: Load


@dataclass(frozen=True, slots=True)
class Arm:
    """A replay of the calls. ``hits`` is the share of the blocks asked for that were on the
    device."""

    name: str
    calls_per_s: float
    hits: float


@dataclass(frozen=True, slots=True)
class Findings:
    """All of it. ``profile`` and ``capacity`` are ``None``, and ``arms`` empty, where nothing can
    be said; ``notes`` say why."""

    traffic: Traffic
    reuse: Reuse
    profile: Profile | None = None
    capacity: AgentRoom | None = None
    arms: tuple[Arm, ...] = ()
    notes: tuple[str, ...] = ()
    plugin: PluginWork | None = None


def find(
    records: Sequence[CallRecord],
    ticks: Sequence[TraceTick],
    sizes: Sizes,
    host_bytes: int,
    plugin: PluginWork | None = None,
) -> Findings:
    """The findings of a run; ``plugin`` is what a plug-in in the server did meanwhile. Raises
    ``ConfigError`` for wrong ``sizes``."""
    found = Findings(traffic_of(records), reuse_of(records, ticks), plugin=plugin)
    calls = calls_of_trace(ticks)
    if not calls:
        note = "No call that was answered names an agent, so nothing can be said of agents."
        return replace(found, notes=(note,))
    profile = characterise(calls, "run", "trace")
    notes: list[str] = []
    capacity = None
    try:
        capacity = capacity_of(load_of(calls, profile), sizes, host_bytes)
    except ConfigError as error:
        notes.append(f"How many agents fit cannot be said: {error}.")
    if len({call.agent for call in calls}) * sizes.residency < 2:
        notes.append("So few agents leave no choice of whose state stays: the arms differ little.")
    recent = last_calls(ticks, MAX_REPLAYED)
    if sum(len(tick.calls) for tick in recent) < len(calls):
        notes.append(f"The last {MAX_REPLAYED} calls are replayed.")
    return replace(
        found,
        profile=profile,
        capacity=capacity,
        arms=tuple(replayed(recent, sizes)),
        notes=tuple(notes),
    )


def traffic_of(records: Sequence[CallRecord]) -> Traffic:
    """Figures of one call at least."""
    done = [call for call in records if call.is_ok]
    spans = [(call.start_s, call.end_s or call.start_s) for call in records]
    return Traffic(
        calls=len(records),
        agents=len({call.agent for call in records} - {None}),
        seconds=max(end for _, end in spans) - min(start for start, _ in spans),
        failures=dict(Counter(call.status for call in records if not call.is_ok)),
        rungs=dict(Counter(call.rung for call in records).most_common()),
        in_flight=sum(end - start for start, end in spans) / max(1e-9, _busy_s(spans)),
        latency_s=_percentiles([call.end_s - call.start_s for call in done if call.end_s]),
        first_token_s=_percentiles([call.first_s - call.start_s for call in done if call.first_s]),
        prompt_tokens=_mean([call.prompt_tokens for call in done]),
        output_tokens=_mean([call.output_tokens for call in done]),
    )


def _busy_s(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of ``spans``."""
    total, until = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def reuse_of(records: Sequence[CallRecord], ticks: Sequence[TraceTick]) -> Reuse:
    """What a cache could have found, of the calls in ``ticks``; what it did, of ``records``."""
    total = found = 0
    said: set[str | int] = set()
    for tick in ticks:
        for call in tick.calls:
            total += call.prompt_len
            found += sum(piece.length for piece in call.prompt if piece.content in said)
            said.update(piece.content for piece in (*call.prompt, call.output))
    done = [call for call in records if call.is_ok]
    told = [call for call in done if call.cached_tokens is not None]
    prompts = sum(call.prompt_tokens for call in told)
    return Reuse(
        possible=found / max(1, total),
        reported=sum(call.cached_tokens or 0 for call in told) / prompts if prompts else None,
        repeated=1.0 - len({call.digest for call in done}) / max(1, len(done)),
    )


def load_of(calls: Sequence[LoggedCall], profile: Profile) -> Load:
    """What the agents of a run are like. Without an agent that called twice, all of a prompt counts
    as the agent's own."""
    prompt, output = profile.prompts["mean"], profile.prompts["output mean"]
    pairs = sum(row["pairs"] for row in profile.breaks)

    def mean(name: str) -> float:
        return float(sum(row[name] * row["pairs"] for row in profile.breaks) / pairs)

    new = min(mean("prefill"), prompt) if pairs else 0.0
    shared = min(mean("shared"), prompt - new) if pairs else 0.0
    return Load(
        agents=int(profile.totals["agents"]),
        active=min(1.0, profile.totals["active share of a tick"]),
        shared=int(shared),
        prefix=max(1, round(prompt - new - shared)),
        new=max(1, round(new)),
        output=max(1, round(output)),
    )


def capacity_of(load: Load, sizes: Sizes, host_bytes: int) -> AgentRoom:
    """Raises ``ConfigError`` if not even one agent fits."""
    model, hardware = model_of(sizes.model), hardware_of(sizes.hardware)
    found = fit(load, model, hardware, host_bytes)
    return AgentRoom(
        model.name,
        hardware.name,
        host_bytes,
        found.pool_bytes // found.state_bytes,
        (found.pool_bytes + host_bytes) // found.state_bytes,
        load,
    )


def replayed(ticks: Sequence[TraceTick], sizes: Sizes) -> list[Arm]:
    """The calls under each policy, on one machine; the first tick is no part of the figures."""
    arms = []
    for name, policy, hints in _ARMS:
        scenario = of_trace("run", ticks, sizes, hints)
        outcome, _ = play(
            scenario.machine(sizes), policy, scenario.ticks(), sources=scenario.sources()
        )
        arms.append(Arm(name, outcome.turns_per_s, outcome.hits))
    return arms


def last_calls(ticks: Sequence[TraceTick], limit: int) -> list[TraceTick]:
    """The last ticks that have at most ``limit`` calls together, one tick at least."""
    found: list[TraceTick] = []
    num_calls = 0
    for tick in reversed(ticks):
        num_calls += len(tick.calls)
        if found and num_calls > limit:
            break
        found.append(tick)
    return found[::-1]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 0.0
    p50, p95 = np.percentile(values, [50, 95])
    return float(p50), float(p95)
