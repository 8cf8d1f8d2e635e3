"""Exhaustive exploration of small cases: every order in which copies land, steps run, completions
become visible and the host goes on.

Stateless search (Godefroid, VeriSoft): a case is run again and again from its start, each time
along another path of choices, depth first; a path is left where it comes to a state that was seen
before. States are told apart by everything that decides what can happen next, numbers that only
count time left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count

import numpy as np

from scalesim.scheduler.sequence import Sequence as Request
from scalesim.testing.hostile_link import DeviceEvent
from scalesim.testing.tags import NUM_FIELDS, TOKEN
from tests.machines.scheduler_world import SchedulerWorld
from tests.machines.schedules import Fair


class SeenBeforeError(Exception):
    """The path came to a state that was explored already."""


@dataclass
class Case:
    """``world()`` makes it anew each time; ``prelude`` brings it, fairly, to where exploring
    begins; ``asks`` are made then. ``actions`` of the host may each happen once, between any two
    iterations. ``judge`` compares what the requests said."""

    name: str
    world: Callable[[], SchedulerWorld]
    prelude: Callable[[SchedulerWorld], None]
    asks: Callable[[SchedulerWorld], list[Request]]
    judge: Callable[[SchedulerWorld, list[Request]], None]
    actions: Sequence[Callable[[SchedulerWorld, list[Request]], None]] = ()


@dataclass
class Explored:
    """What was seen: distinct states, choices taken, paths to an end and paths left early."""

    states: int = 0
    choices: int = 0
    paths: int = 0
    left: int = 0
    complete: bool = True


@dataclass
class _Search:
    """A schedule that follows ``path``, then takes the first of every choice."""

    world: SchedulerWorld
    requests: list[Request]
    case: Case
    path: list[tuple[int, int]]  # (taken, of so many)
    seen: set[bytes]
    explored: Explored
    depth: int = 0
    done: set[int] = field(default_factory=set)  # actions

    def pick(self, events: Sequence[DeviceEvent], *, must: bool) -> int | None:
        self.world.check()
        able = [] if self.world.in_turn else self._actions()
        options = len(events) + len(able) + (not must)
        if self.depth == len(self.path):
            state = fingerprint(self.world, must, sorted(self.done))
            if state in self.seen:
                raise SeenBeforeError
            self.seen.add(state)
            self.explored.states += 1
            self.path.append((0, options))
        taken, of = self.path[self.depth]
        assert of == options, f"{self.case.name}: a path of choices is not the same again"
        self.depth += 1
        self.explored.choices += 1
        if taken < len(events):
            return taken
        if taken < len(events) + len(able):
            action = able[taken - len(events)]
            self.done.add(action)
            self.case.actions[action](self.world, self.requests)
            return self.pick(self.world.events(), must=False)
        return None

    def _actions(self) -> list[int]:
        return [index for index in range(len(self.case.actions)) if index not in self.done]


def explore(case: Case, *, max_states: int | None = None) -> Explored:
    """Run ``case`` along every path. Raises what a check, or the code under test, raises first; the
    path of choices is in its notes."""
    explored, seen = Explored(), set[bytes]()
    path: list[tuple[int, int]] = []
    while True:
        try:
            _run(case, path, seen, explored)
            explored.paths += 1
        except SeenBeforeError:
            explored.left += 1
        except Exception as error:
            raise AssertionError(f"{case.name}, choices {[taken for taken, _ in path]}") from error
        while path and path[-1][0] + 1 == path[-1][1]:
            path.pop()
        if not path:
            return explored
        if max_states is not None and explored.states >= max_states:
            explored.complete = False
            return explored
        taken, of = path.pop()
        path.append((taken + 1, of))


def _run(case: Case, path: list[tuple[int, int]], seen: set[bytes], explored: Explored) -> None:
    world = case.world()
    world.schedule = Fair()
    case.prelude(world)
    requests = case.asks(world)
    world.schedule = _Search(world, requests, case, path, seen, explored)
    world.asks_always = True
    world.run(1000)
    world.check()
    case.judge(world, requests)
    world.close()


def fingerprint(world: SchedulerWorld, *also: object) -> bytes:
    """A digest of what decides what can happen next."""
    bed, memory, scheduler = world.bed, world.memory, world.scheduler
    digest = blake2b(digest_size=16)
    for pool in (bed.device, bed.host):
        words = pool.view("uint64").reshape(-1, NUM_FIELDS)
        digest.update(words[:, : TOKEN + 1].tobytes())  # not the steps, nor what seals them
    parts: list[object] = [*also, world.in_turn, len(world.flights), len(bed.tags.waiting)]
    number = count()
    names = {id(segment): next(number) for segment in memory.tree}
    seqs = sorted(segment.last_seq for segment in memory.tree)
    moves = {id(each): index for index, each in enumerate(memory.residency.transfers.values())}
    for segment in memory.tree:
        owners = sorted(str(owner.id) for owner in segment.owners)
        for run in (segment.device, segment.host):
            parts += [list(run), run.valid, run.transfer and moves.get(id(run.transfer))]
        parts += [segment.tokens, segment.mark, segment.pins, segment.num_hits, owners]
        parts += [segment.is_partial]
        parts += [segment.last_use, seqs.index(segment.last_seq), segment.failed_saves]
        parts += [names.get(id(segment.parent)), segment.prefetched]
    reached = bed.timeline.reached
    for tier in (memory.device, memory.host):
        free = np.flatnonzero(tier.free_mask()).tolist()
        parts += [free, [max(tier.fence([page]), reached) - reached for page in free]]
    if bed.hostile is not None:
        parts.append(bed.hostile.state())
    for agent in memory.owners.agents.values():
        paths = sorted((names.get(id(end), -1), uses) for end, uses in agent.paths.items())
        parts += [agent.id, agent.next_use, paths, agent.fresh_reuse, agent.continuation_rate]
    slots = scheduler.slots
    for slot, sequence in sorted(slots.sequences.items()):
        parts += [sequence.id, sequence.phase, slots.known[slot], slots.launched[slot]]
        parts += [slots.done[slot], slots.capacity[slot], sequence.num_preemptions]
        parts += [slots.tokens[slot, : slots.known[slot]].tobytes(), sequence.skipped]
    parts += [list(scheduler.queue.line), [each.id for each in scheduler.queue.preempted]]
    parts += [sorted(each.id for each in world.ended), memory.loading_pages]
    parts += [
        getattr(memory.planner, "margin", None),
        memory.residency.allocation_failed,
        memory.table.num_free,
    ]
    digest.update(repr(parts).encode())
    return digest.digest()
