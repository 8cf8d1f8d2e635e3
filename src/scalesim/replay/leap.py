"""Leaps: runs of steps with nothing but decoding, taken at once.

Times, plans and tokens are the same as step by step, for a small part of the work, which makes a
replay of days of a simulation possible. This module uses the scheduler's slots; the scheduler does
not depend on it.
"""

from __future__ import annotations

import numpy as np

from scalesim.core import Int32s, Int64s
from scalesim.engine.loop import EngineLoop
from scalesim.memory.lease import WEIGHTS
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.replay.runner import VirtualRunner, by_model
from scalesim.scheduler.scheduler import Scheduler
from scalesim.testing.tags import mix


def take_quiet_steps(loop: EngineLoop, runner: VirtualRunner, link: VirtualLink) -> None:
    """Take all decode steps until a sequence can enter, grow, stop or end, or a copy has arrived.
    Call between two iterations of ``loop``, with no step in flight."""
    scheduler, slots = loop.scheduler, loop.scheduler.slots
    decoding = scheduler.running.decoding
    num_quiet = num_quiet_steps(scheduler)
    if num_quiet < 2:
        return
    vocab_size = np.uint64(loop.parts.model.vocab_size)
    known, weights = slots.known[decoding], slots.attachments.batch(WEIGHTS, decoding)
    groups = [
        (number, len(known[seqs]), int(known[seqs].sum()))
        for number, seqs in by_model(weights, len(decoding))
    ]
    done = 0
    while done < num_quiet and not link.has_news:  # the next iteration handles the link's news
        woken = loop.memory.poll()
        assert not woken, "a copy ended, and the link said nothing"
        loop.memory.plan(link.now_s, scheduler.forecast)
        runner.pass_time(
            (number, runner.decode_work(count, contexts + done * count))
            for number, count, contexts in groups
        )
        drawn = mix(slots.key[decoding] + (slots.known[decoding] - 1).astype(np.uint64))
        take_decodes(scheduler, decoding, (drawn % vocab_size).astype(np.int32))
        done += 1
    loop.stats.steps += done


def num_quiet_steps(scheduler: Scheduler) -> int:
    """The number of steps in which no sequence can enter, grow, stop or end, unless a copy
    arrives."""
    slots, running = scheduler.slots, scheduler.running
    decoding = running.decoding
    if scheduler.num_waiting and slots.num_free:
        return 0  # a sequence may enter
    if not len(decoding) or running.prefilling:
        return 0
    if slots.watched[decoding].any() or (slots.stop_ids[decoding] >= 0).any():
        return 0
    known = slots.known[decoding]
    steps = np.minimum(slots.limit[decoding] - known - 1, slots.capacity[decoding] - known + 1)
    return max(0, int(steps.min()))


def take_decodes(scheduler: Scheduler, decoding: Int64s, tokens: Int32s) -> None:
    """Update the slots ``decoding`` as after a step that sampled ``tokens``; both are ``[n]``."""
    slots = scheduler.slots
    slots.take_tokens(decoding, tokens)
    slots.launched[decoding] += 1
    slots.done[decoding] += 1
    scheduler.memory.launched(scheduler.num_steps, prefill_tokens=0)
    scheduler.num_steps += 1
