"""Small cases for exhaustive exploration: two or three agents on a few pages of two tokens, each
around one of the orders that memory must keep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from scalesim.config import SchedulerConfig
from scalesim.memory.lease import AttachmentSpec
from scalesim.scheduler.sequence import Sequence
from scalesim.testing.bed import OURS, Factories
from scalesim.testing.hostile_link import HostileLink
from tests.machines.explore import Case
from tests.machines.scheduler_world import SchedulerWorld, Setting, assert_as_expected, expected

_CONFIG = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=8, safe_point_tokens=2)
_BASE = Setting(pages=5, host=2.0, policy="lru-swap", block_size=2, scheduler=_CONFIG)
PROMPTS = {agent: [agent] * 5 for agent in range(4)}


def in_two_pieces(factories: Factories) -> Factories:
    """The same, on a link whose only choice is when: tickets of one page, each in two pieces."""
    return replace(
        factories,
        link=lambda device, host, timeline, seed: HostileLink(
            device,
            host,
            timeline,
            choose=lambda count: count // 2,
            max_ticket_pages=1,
            max_pieces=2,
        ),
    )


def small_cases(factories: Factories = OURS) -> list[Case]:
    """Every case, on what is under test. Links other than the hostile one cannot be explored."""
    parts = in_two_pieces(factories)

    def world(setting: Setting) -> Callable[[], SchedulerWorld]:
        return lambda: SchedulerWorld(setting, parts)

    two_in_flight = replace(_BASE, steps_in_flight=2)
    return [
        Case("two loads that fill the pool", world(_BASE), _both_spoke, _ask_both, _all_said),
        Case(
            "a load into pages that a step in flight still uses",
            world(replace(two_in_flight, pages=4)),
            _both_spoke,
            lambda world: [_ask(world, 2, [2] * 3, 3), _ask(world, 0, PROMPTS[0] + [7], 1)],
            _all_said,
            (_cancel_first,),
        ),
        Case(
            "an abort while its state is loaded, and the same call again",
            world(_BASE),
            _both_spoke,
            lambda world: [_ask(world, 0, PROMPTS[0] + [7], 1)],
            _all_said,
            (_cancel_first, lambda world, asked: asked.append(_ask(world, 0, PROMPTS[0] + [8], 1))),
        ),
        Case(
            "evictions and a host that is short of pages",
            world(replace(_BASE, pages=4, host=0.75)),
            _both_spoke,
            lambda world: [_ask(world, 2, PROMPTS[2], 1), _ask(world, 0, PROMPTS[0] + [7], 1)],
            _all_said,
        ),
        Case(
            "a copy fails, whichever is next",
            world(_BASE),
            _both_spoke,
            _ask_both,
            _all_said,
            (_fail_next,),
        ),
        Case(
            "a fork takes the partial block of an agent that goes on",
            world(replace(two_in_flight, pages=7)),
            _one_spoke,
            _ask_twins,
            _all_said,
        ),
        Case(
            "an adapter is read, and removed whenever it may be",
            world(replace(_BASE, pages=6, host=0.5, max_len=8)),
            _both_spoke,
            _ask_with_adapter,
            _said_or_removed,
            (_remove_adapter,),
        ),
    ]


def _ask(
    world: SchedulerWorld,
    agent: int,
    prompt: list[int],
    output: int,
    use: AttachmentSpec | None = None,
) -> Sequence:
    return world.add(agent, list(prompt), output, adapter=use)


def _one_spoke(world: SchedulerWorld) -> None:
    _ask(world, 0, PROMPTS[0], 2)
    world.run(1000)


def _both_spoke(world: SchedulerWorld) -> None:
    """Two agents, one after the other: the state of the first had to make room."""
    for agent in (0, 1):
        _ask(world, agent, PROMPTS[agent], 2)
        world.run(1000)


def _ask_both(world: SchedulerWorld) -> list[Sequence]:
    return [_ask(world, agent, PROMPTS[agent] + [7], 1) for agent in (0, 1)]


def _ask_twins(world: SchedulerWorld) -> list[Sequence]:
    world.memory.fork(0, 1)
    return [_ask(world, agent, PROMPTS[0] + [9] * agent, 2) for agent in (0, 1)]


def _ask_with_adapter(world: SchedulerWorld) -> list[Sequence]:
    use = world.add_adapter(2)
    world.memory.bind_adapter(1, use.digest)
    return [_ask(world, 0, PROMPTS[0] + [7], 1), _ask(world, 1, PROMPTS[1], 2, use)]


def _cancel_first(world: SchedulerWorld, asked: list[Sequence]) -> None:
    world.scheduler.end(asked[0], "cancelled", None)


def _fail_next(world: SchedulerWorld, asked: list[Sequence]) -> None:
    assert world.bed.hostile is not None
    world.bed.hostile.failures = 1


def _remove_adapter(world: SchedulerWorld, asked: list[Sequence]) -> None:
    (use,) = asked[1].attachments
    world.memory.remove_adapter(use.digest)


def _all_said(world: SchedulerWorld, asked: list[Sequence]) -> None:
    for sequence in asked:
        prompt = sequence.tokens[: sequence.prompt_len].tolist()
        if sequence.finish_reason == "cancelled":
            text = expected(sequence, prompt)
            assert sequence.output.tolist() == text[: len(sequence.output)], sequence
        else:
            assert_as_expected(sequence, prompt)


def _said_or_removed(world: SchedulerWorld, asked: list[Sequence]) -> None:
    _all_said(world, [each for each in asked if each.finish_reason != "error"])
    assert asked[0].finish_reason == "length"
