"""What to change first: changes of a program or its server, by the factor they would make calls
faster. Estimates, of the roofline model and the replay; each names its figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scalesim.proxy.findings import AgentRoom, Findings
from scalesim.replay.hardware import CostModel, StepWork
from scalesim.replay.own import hardware_of, model_of
from scalesim.replay.sizing import fit
from scalesim.server.identity import ANONYMOUS, TEMPLATE

WORTH = 1.02
"""A change that makes calls faster by less is not named."""
_BATCH = 16  # calls at once that are suggested to a program that makes them one by one
_NO_PLACE = (429, 503)


@dataclass(frozen=True, slots=True)
class Improvement:
    """``factor``: calls per second afterwards over those before, about."""

    what: str
    factor: float
    why: str


def changes(found: Findings, limit: int = 3) -> list[Improvement]:
    """The changes that would help most, the best first."""
    worth = [change for change in _candidates(found) if change.factor >= WORTH]
    return sorted(worth, key=lambda change: -change.factor)[:limit]


def _candidates(found: Findings) -> Iterator[Improvement]:
    arms = {arm.name: arm.calls_per_s for arm in found.arms}
    if arms:
        last, swapped, learned, hinted = arms.values()
        unhinted = max(swapped, learned)
        if last and unhinted:
            yield Improvement(
                "Serve it with scalesim serve",
                unhinted / last,
                "state that does not fit is copied to the host and brought back in time, where a "
                "prefix cache computes it again",
            )
            yield Improvement(
                "Say who calls next: expect(), or POST /v1/agents/hints",
                hinted / unhinted,
                "with the true times of the next calls, more state is there when it is needed",
            )
    if found.capacity is not None:
        yield from _of_prompts(found, found.capacity)
        yield from _of_concurrency(found, found.capacity)
    yield from _of_calls(found)


def _of_prompts(found: Findings, capacity: AgentRoom) -> Iterator[Improvement]:
    """Moving what changes to the end of the prompt."""
    assert found.profile is not None
    pairs = sum(row["pairs"] for row in found.profile.breaks)
    gain = sum(row["gain"] * row["pairs"] for row in found.profile.breaks) / max(1, pairs)
    load = capacity.load
    if gain < 1 or load.new - gain < 1:
        return
    model, hardware = model_of(capacity.model), hardware_of(capacity.hardware)
    moved = replace(load, new=int(load.new - gain), prefix=int(load.prefix + gain))
    before, after = (
        fit(which, model, hardware, capacity.host_bytes).turns_per_s for which in (load, moved)
    )
    yield Improvement(
        "Move what changes to the end of the prompt",
        after / before,
        f"{gain:.0f} of {load.new} tokens computed a call are the same text as in the call before, "
        "behind a difference",
    )


def _of_concurrency(found: Findings, capacity: AgentRoom) -> Iterator[Improvement]:
    traffic, load = found.traffic, capacity.load
    wanted = min(_BATCH, traffic.agents)
    if traffic.in_flight >= wanted / 2:
        return
    cost = CostModel(hardware_of(capacity.hardware), model_of(capacity.model))
    context = load.shared + load.prefix + load.new + load.output // 2

    def calls_per_s(num: float) -> float:
        tokens = int(num * context)
        decode_s = load.output * cost.step_s(StepWork(round(num), tokens, tokens)) / num
        return 1.0 / (decode_s + cost.compute_s(cost.flops(StepWork(1, 1, 0)) * load.new))

    yield Improvement(
        "Let agents that do not wait for each other call at the same time",
        calls_per_s(wanted) / calls_per_s(max(1.0, traffic.in_flight)),
        f"{traffic.in_flight:.1f} calls were open at once; a step for {wanted} takes hardly longer "
        "than for one",
    )


def _of_calls(found: Findings) -> Iterator[Improvement]:
    traffic, reuse = found.traffic, found.reuse
    unnamed = sum(traffic.rungs.get(rung, 0) for rung in (ANONYMOUS, TEMPLATE)) / traffic.calls
    yield Improvement(
        "Name the agent in every call: agent_id, or a header X-Session-ID",
        1.0 / max(0.05, 1.0 - unnamed * reuse.possible),
        f"{unnamed:.0%} of the calls are nobody's, so nothing is kept for them",
    )
    yield Improvement(
        "Ask once and keep the answer",
        1.0 / max(0.05, 1.0 - reuse.repeated),
        f"{reuse.repeated:.0%} of the calls repeat a whole prompt",
    )
    refused = sum(traffic.failures.get(status, 0) for status in _NO_PLACE) / traffic.calls
    yield Improvement(
        "Make fewer calls at once, or use a server that queues them",
        1.0 / max(0.05, 1.0 - refused),
        f"{refused:.0%} of the calls found no place and were made again",
    )
