"""An arm of a comparison: the replay of a scenario under one policy on one machine."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from scalesim.config import SchedulerConfig
from scalesim.distance.estimates import Source
from scalesim.engine.parts import EngineParts
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.memory.manager import MemoryManager
from scalesim.replay.bound import Access, belady_loads, reads_again
from scalesim.replay.content import VOCAB_SIZE
from scalesim.replay.machine import Machine
from scalesim.replay.peers.policies import planning_of, replay_policy
from scalesim.replay.roof import Roof, roof
from scalesim.replay.runner import VirtualRunner
from scalesim.replay.simulation import Log, Simulation
from scalesim.requests.prompt import TextModel
from scalesim.scheduler.scheduler import Scheduler
from scalesim.testing.tag_runner import StubRunner
from scalesim.trace.trace import TraceTick

RESIDENT_PAGES = 1 << 22


def parts_for(machine: Machine, policy_name: str) -> EngineParts:
    """Engine parts with a virtual runner, link and clock."""
    policy = replay_policy(policy_name)
    geometry, models = machine.geometry, machine.models
    link = VirtualLink(geometry.page_bytes, machine.link_bytes_per_s, machine.disk_bytes_per_s)
    planning = planning_of(policy)
    pages = machine.device_pages if policy.limited else max(RESIDENT_PAGES, machine.host_pages)
    num_models = 0 if models is None else len(models.costs)
    memory = MemoryManager(
        block_size=geometry.block_size,
        page_bytes=geometry.page_bytes,
        device_pages=pages + 1,
        host_pages=machine.host_pages,
        disk_pages=machine.disk_pages,
        num_rows=2 * machine.max_num_seqs + num_models + 1,
        policy=policy,
        link=link,
        planner_config=machine.planner,
        make_ranking=planning.make_ranking,
        make_planner=planning.make_planner,
        move_pages=lambda sources, targets: _move(machine, link, len(sources)),
    )
    pool_len = pages * geometry.block_size
    if models is not None:
        models.join(memory)
        pool_len = min(
            (pages - models.num_pages(number, geometry.page_bytes)) * machine.block_size_of(number)
            for number in models.all
        )
    config = SchedulerConfig(
        max_num_seqs=machine.max_num_seqs,
        max_num_batched_tokens=machine.max_num_batched_tokens,
        order=machine.order,
    )
    runner = VirtualRunner(StubRunner(VOCAB_SIZE), link, machine.costs, machine.first_tokens)
    model = TextModel(VOCAB_SIZE, frozenset(), machine.max_len, pool_len)
    scheduler = Scheduler(memory, config, min(machine.max_len, model.pool_len), machine.cost)
    return EngineParts(runner, memory, scheduler, link, model, time_s=lambda: link.now_s)


def _move(machine: Machine, link: VirtualLink, num_pages: int) -> None:
    """Let the time pass in which the device reads and writes ``num_pages``."""
    num_bytes = 2.0 * num_pages * machine.geometry.page_bytes
    link.advance_to(link.now_s + machine.cost.read_s(num_bytes))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a policy, after the warm-up. Seconds are virtual.

    ``new_pages``: whole pages of prompts that no call had computed before. ``least_pages``: the
    fewest pages that had to be brought back to the device, given the order in which this policy
    served calls and what was there after the warm-up; ``least_disk_pages``: to device and host
    together; ``None`` if not asked for, with several models, or without a disk.
    ``running_pages``: the most pages of KV that running calls held at once. ``num_waited``: with
    several models, the calls that waited for any load.
    """

    policy: str
    seconds: float
    turns: int
    tick_s: tuple[float, float]  # p50, p95 of a tick of the simulation
    first_token_s: tuple[float, float]  # from the call on
    from_slot_s: tuple[float, float]  # to the first token, from when the call was given a slot
    page_bytes: int
    counters: dict[str, float]
    new_pages: int = 0
    least_pages: int | None = None
    running_pages: int = 0
    least_disk_pages: int | None = None
    num_waited: int | None = None

    @property
    def turns_per_s(self) -> float:
        return self.turns / self.seconds if self.turns else 0.0

    @property
    def hits(self) -> float:
        kinds = ("device_blocks", "late_blocks", "host_blocks", "computed_blocks")
        return self.counters["device_blocks"] / max(1, sum(self.counters[kind] for kind in kinds))

    @property
    def waited(self) -> float:
        """Share of the calls that waited for their state. With several models, one load of weights
        is waited for by many calls; without, each load on demand is of one call."""
        waits = self.counters["demand_loads"] if self.num_waited is None else self.num_waited
        return waits / max(1, self.turns)

    @property
    def loaded_bytes(self) -> float:
        """Bytes that came to the device from the host or, on demand, from the weights' sources."""
        return (self.counters["loaded_pages"] + self.counters["read_pages"]) * self.page_bytes

    @property
    def disk_bytes(self) -> float:
        """Bytes read from the disk."""
        pages = self.counters["staged_pages"] + self.counters["recalled_pages"]
        return pages * self.page_bytes

    @property
    def rebuilt_bytes(self) -> float:
        """Bytes of state that was recomputed. Each look-up leaves one block to compute, that of the
        prompt's last token, which does not count."""
        again = self.counters["computed_blocks"] - self.counters["lookups"] - self.new_pages
        return again * self.page_bytes

    @property
    def least_bytes(self) -> float:
        assert self.least_pages is not None, "the bound needs a witness"
        return float(self.least_pages * self.page_bytes)

    @property
    def over_belady_disk(self) -> float | None:
        """Bytes read from the disk or computed again, over the fewest possible with a cache as
        large as device and host: at least 1. ``None`` if there are none."""
        if not self.least_disk_pages:
            return None
        least = self.least_disk_pages * self.page_bytes
        return (self.disk_bytes + self.rebuilt_bytes) / least

    @property
    def over_belady(self) -> float | None:
        """Bytes brought back, by loading or recomputing, over the fewest possible: at least 1.
        ``None`` if no page had to be brought back."""
        if not self.least_pages:
            return None
        return (self.loaded_bytes + self.rebuilt_bytes) / self.least_bytes


Watch = Callable[[Log], None]


def play(
    machine: Machine,
    policy: str,
    ticks: Iterable[TraceTick],
    *,
    sources: Iterable[Source] = (),
    warmup: int = 1,
    leap: bool = True,
    witness: bool = False,
    watch: Watch = lambda log: None,
) -> tuple[Outcome, Simulation]:
    """Replay ``ticks`` under ``policy``, with ``sources`` beside the ticks' own hints. The first
    ``warmup`` ticks do not count, if there are more. With ``witness``, also compute the bounds."""
    foresight = replay_policy(policy).foresight
    simulation = Simulation(
        parts_for(machine, policy),
        sources=sources,
        foresight=foresight,
        leap=leap,
        witness=witness,
        watch=watch,
        models=machine.models,
    )
    before: dict[str, float] = {}
    cached: set[int] = set()
    near: set[int] = set()
    start_s, turns, waited, index = 0.0, 0, 0, 0
    for index, tick in enumerate(ticks):
        if index == warmup:
            before, start_s = counted(simulation), simulation.link.now_s
            turns, waited = simulation.log.turns, len(simulation.log.waited)
            if witness and machine.models is None:
                cached = simulation.cached_pages()
                near = simulation.cached_pages(on_host=True) if machine.disk_pages else near
        simulation.tick(tick)
    log = simulation.log
    measured = log.tick_s[warmup:] if index >= warmup else log.tick_s
    busy = [seconds for seconds in measured if seconds > 0.0] or [0.0]
    found = Outcome(
        policy,
        simulation.link.now_s - start_s,
        log.turns - turns,
        percentiles(busy),
        percentiles(log.first_token_s[turns:] or [0.0]),
        percentiles(log.from_slot_s[turns:] or [0.0]),
        machine.geometry.page_bytes,
        {name: value - before.get(name, 0.0) for name, value in counted(simulation).items()},
        num_waited=None if machine.models is None else len(log.waited) - waited,
    )
    return (bounded(machine, found, log, cached, near) if witness else found), simulation


def bounded(
    machine: Machine, outcome: Outcome, log: Log, cached: Iterable[int], near: Iterable[int] = ()
) -> Outcome:
    """``outcome`` with the bounds for the order in which its calls were admitted. At the end of the
    warm-up the pages ``cached`` were on the device, the pages ``near`` there or on the host."""
    accesses = [access for _, access in sorted(log.accesses.items())]
    start = len(accesses) - outcome.turns
    limited = replay_policy(outcome.policy).limited
    capacity = machine.device_pages if limited else RESIDENT_PAGES
    again = reads_again(accesses)
    return replace(
        outcome,
        new_pages=sum(
            accesses[index].num_read - len(again[index]) for index in range(start, len(accesses))
        ),
        least_pages=None
        if machine.models is not None  # which are loaded too
        else sum(belady_loads(accesses, capacity, start, cached)),
        running_pages=most_held(accesses),
        least_disk_pages=sum(belady_loads(accesses, capacity + machine.host_pages, start, near))
        if machine.disk_pages
        else None,
    )


def most_held(accesses: Sequence[Access]) -> int:
    """The most pages that calls held at once, shared pages counted once; each call counts with its
    pages at its end."""
    holders: Counter[int] = Counter()
    ends: dict[int, list[int]] = defaultdict(list)
    max_held = 0
    for index, access in enumerate(accesses):
        for ended in ends.pop(index, ()):
            for page in accesses[ended].pages:
                holders[page] -= 1
                if not holders[page]:
                    del holders[page]
        holders.update(access.pages)
        ends[max(access.until, index + 1)].append(index)
        max_held = max(max_held, len(holders))
    return max_held


def compare(
    machine: Machine,
    policies: Sequence[str],
    ticks: Callable[[], Iterable[TraceTick]],
    *,
    sources: Callable[[], Iterable[Source]] = tuple,
    warmup: int = 1,
    watch: Callable[[str], Watch] = lambda policy: lambda log: None,
) -> tuple[list[Outcome], Roof]:
    """An outcome for each policy, on the same ticks, and the roof over all of them."""
    outcomes = [
        play(machine, policy, ticks(), sources=sources(), warmup=warmup, witness=True,
             watch=watch(policy))[0]
        for policy in policies
    ]  # fmt: skip
    return outcomes, roof(machine, ticks(), warmup)


def counted(simulation: Simulation) -> dict[str, float]:
    """Every counter there is, by name."""
    spent = {f"spent_{name}": value for name, value in asdict(simulation.runner.spent).items()}
    return asdict(simulation.loop.memory.counters) | spent


def percentiles(values: list[float]) -> tuple[float, float]:
    p50, p95 = np.percentile(values, [50, 95])
    return float(p50), float(p95)
