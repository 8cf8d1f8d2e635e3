"""Planted bugs, in one table: what is broken, which machine has to see it, what it is in the field.

The patches themselves stand beside the tests of what they break, those of the whole engine here.
Called by ``python -m tests.trust`` and by the tests.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from scalesim.core import AgentId
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.eviction.residency import Residency
from scalesim.memory.lease import Lease
from scalesim.memory.leases.admission import Admission
from scalesim.memory.leases.release import Releases
from scalesim.memory.leases.waiters import LoadWaiters
from scalesim.memory.tree.segment import Segment
from scalesim.scheduler import finish as endings
from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.sequence import Sequence
from scalesim.scheduler.slots import Slots
from scalesim.testing.memory_walk import MemoryWalk
from scalesim.testing.memory_world import WorldShape
from scalesim.testing.walks import Failure, failure_of, shrink
from tests.memory import test_planted_adapter_bugs as of_adapters
from tests.memory import test_planted_bugs as of_memory
from tests.trust.workload import Workload

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Caught:
    """``attempts`` until something failed, in ``seconds`` of processor time; ``trace``: operations
    left after shrinking, where there are operations."""

    attempts: int
    seconds: float
    trace: int | None
    error: str


@dataclass(frozen=True)
class Machine:
    """What looks for a bug: a series of attempts, each of which fails or does not."""

    name: str
    attempts: Callable[[], Iterator[Callable[[], Failure | str | None]]]


def memory_walks() -> Iterator[Callable[[], Failure | str | None]]:
    for seed in range(of_memory.MAX_WALKS):
        pages, host, block_size, policy = of_memory.SHAPES[seed % len(of_memory.SHAPES)]
        walk = MemoryWalk(WorldShape(pages, host, block_size, policy, seed), seed, of_memory.STEPS)
        yield lambda walk=walk: failure_of(walk)


def adapter_walks() -> Iterator[Callable[[], Failure | str | None]]:
    for seed in range(of_adapters.MAX_WALKS):
        pages, block_size = ((16, 4), (9, 2), (24, 2))[seed % 3]
        shape = WorldShape(pages, (1.0, 0.0)[seed % 2], block_size, "deadline", seed, adapters=3)
        yield lambda shape=shape, seed=seed: failure_of(MemoryWalk(shape, seed, of_adapters.STEPS))


def workloads() -> Iterator[Callable[[], Failure | str | None]]:
    """The whole engine: every text against the oracle's, every book at the end."""
    for seed in range(8):
        yield lambda seed=seed: _play(seed)


_TEXTS: dict[str, Any] = {}


def _play(seed: int) -> str | None:
    with Workload(seed=seed, steps_in_flight=1 + seed % 2, integrity="raise") as workload:
        try:
            texts = workload.play()
            if workload.dead is None and not workload.errors:
                workload.settle()
        except Exception as error:
            return repr(error)
    if workload.dead is not None or workload.errors:
        return repr(workload.dead or workload.errors)
    return None if texts == _TEXTS else "other texts"


MEMORY = Machine("memory walk", memory_walks)
ADAPTERS = Machine("adapter walk", adapter_walks)
ENGINE = Machine("engine workload", workloads)

# -- bugs of the whole engine ---------------------------------------------------------------------


def slot_keeps_the_last_ones_key(patch: pytest.MonkeyPatch) -> None:
    enter = Slots.enter

    def stale(self: Slots, sequence: Sequence, lease: Lease, block_size: int) -> int:
        slot = self._free[-1]
        key = self.key[slot].copy()
        enter(self, sequence, lease, block_size)
        if self.epoch[slot]:
            self.key[slot] = key
        return slot

    patch.setattr(Slots, "enter", stale)


def preempted_without_its_last_token(patch: pytest.MonkeyPatch) -> None:
    preempt = Scheduler._preempt

    def short(self: Scheduler, sequence: Sequence) -> None:
        preempt(self, sequence)
        sequence.tokens = sequence.tokens[:-1]

    patch.setattr(Scheduler, "_preempt", short)


def preempted_with_a_token_twice(patch: pytest.MonkeyPatch) -> None:
    preempt = Scheduler._preempt

    def twice(self: Scheduler, sequence: Sequence) -> None:
        preempt(self, sequence)
        sequence.tokens = np.append(sequence.tokens, sequence.tokens[-1:])

    patch.setattr(Scheduler, "_preempt", twice)


def late_token_given_to_the_slots_next(patch: pytest.MonkeyPatch) -> None:
    leave = Slots.leave

    def same_epoch(self: Slots, sequence: Sequence) -> None:
        slot = sequence.slot
        leave(self, sequence)
        self.epoch[slot] -= 1

    patch.setattr(Slots, "leave", same_epoch)


def pins_kept_where_pages_were_refused(patch: pytest.MonkeyPatch) -> None:
    acquire = Admission.acquire

    def keep(self: Admission, *args: Any) -> Lease | None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(EvictionRanking, "unpin", lambda self, segment: None)
            return acquire(self, *args)

    patch.setattr(Admission, "acquire", keep)


def waits_for_a_load_that_failed(patch: pytest.MonkeyPatch) -> None:
    poll = LoadWaiters.poll

    def forget(self: LoadWaiters) -> list[Lease]:
        return [lease for lease in poll(self) if not lease.num_host_blocks]

    patch.setattr(LoadWaiters, "poll", forget)


def row_of_a_released_lease_kept(patch: pytest.MonkeyPatch) -> None:
    release = Releases.release

    def keep(self: Releases, lease: Lease, *rest: Any) -> None:
        release(self, lease, *rest)
        self.table.allocate()

    patch.setattr(Releases, "release", keep)


def host_copy_forgotten_with_its_pages(patch: pytest.MonkeyPatch) -> None:
    drop = Residency._drop_one

    def forget(self: Residency, segment: Segment, keep: int, *, tidy: bool) -> None:
        self.tiers.host.cut(segment, keep)  # nobody takes the pages
        drop(self, segment, keep, tidy=tidy)

    patch.setattr(Residency, "_drop_one", forget)


def evicts_the_soonest(patch: pytest.MonkeyPatch) -> None:
    """Wrong, and yet sound: speed only. It must *not* be caught."""
    farthest = EvictionRanking.farthest_on_device

    def soonest(self: EvictionRanking) -> Segment | None:
        self._catch_up()
        evictable = sorted(self._evictable._live, key=lambda segment: segment.seq)
        return evictable[0] if evictable else farthest(self)

    patch.setattr(EvictionRanking, "farthest_on_device", soonest)


def cancelled_only_while_it_waits(patch: pytest.MonkeyPatch) -> None:
    cancel = Scheduler.cancel

    def late(self: Scheduler, sequence: Sequence, *rest: Any) -> None:
        if sequence.lease is None:
            cancel(self, sequence, *rest)

    patch.setattr(Scheduler, "cancel", late)


def stop_string_looked_for_in_the_last_token(patch: pytest.MonkeyPatch) -> None:
    judge = endings.judge

    def blind(sequence: Sequence, token: int, known: int) -> Any:
        if known < sequence.limit - 1:
            return None
        return judge(sequence, token, known)

    patch.setattr(endings, "judge", blind)


def predictor_gives_nan(patch: pytest.MonkeyPatch) -> None:
    """Advice may be anything: it must *not* be caught."""
    from scalesim.memory.prefetch.owners import Owners

    set_next_uses = Owners.set_next_uses

    def hostile(self: Owners, advice: list[tuple[AgentId, float | None]]) -> None:
        wild = [float("nan"), float("inf"), -1e18, 0.0, None]
        set_next_uses(self, [(id, random.Random(str(id)).choice(wild)) for id, _ in advice])

    patch.setattr(Owners, "set_next_uses", hostile)


# -- the table ------------------------------------------------------------------------------------

_OF_ENGINE: dict[Patch, tuple[str, str]] = {
    slot_keeps_the_last_ones_key: ("a batch slot is not set anew", "CVE-2026-114049"),
    preempted_without_its_last_token: ("a token is lost over a preemption", "vLLM 18411"),
    preempted_with_a_token_twice: ("a placeholder is kept over a preemption", "vLLM PR 38624"),
    late_token_given_to_the_slots_next: ("a step in flight is read as the slot's new owner's",
                                         "vllm-ascend 14055"),
    pins_kept_where_pages_were_refused: ("what was pinned for a refused request stays pinned",
                                         "SGLang 16067"),
    waits_for_a_load_that_failed: ("a finished load wakes nobody", "dynamo 3730"),
    row_of_a_released_lease_kept: ("a row of the block table leaks a request", "SGLang 6888"),
    host_copy_forgotten_with_its_pages: ("host pages of dropped content leak", "CVE-2026-94627"),
    cancelled_only_while_it_waits: ("cancelling a running request does nothing", "vLLM 51921"),
    stop_string_looked_for_in_the_last_token: ("a stop string is overlooked", "–"),
}  # fmt: skip
SPEED_ONLY: tuple[Patch, ...] = (evicts_the_soonest, predictor_gives_nan)
"""Wrong for speed, right for texts: a machine that caught these would be wrong itself."""

_SEEN: dict[str, str] = {
    "freed_on_abort_while_a_copy_writes": "vLLM 46283, vllm-ascend 14055",
    "freed_while_a_save_reads": "torchrec PR 4231",
    "pinned_and_still_evictable": "vLLM 47282",
    "looked_up_and_pinned_later": "vLLM 37076",
    "fence_ignored": "vLLM 47282, 31341",
    "freed_twice": "vLLM 1556, 1930; sglang-jax PR 982",
    "free_pages_counted_twice": "vLLM 42571",
    "save_visible_before_done": "vLLM 5364, 7822",
    "failed_save_visible": "LMCache 4991",
    "failed_load_taken_for_done": "LMCache 4385",
    "unfinished_block_committed": "vLLM 7822",
    "committed_before_collected": "vLLM 45704",
    "anothers_tail_taken_unread": "SGLang 24252",
    "parent_leaves_before_its_child": "vLLM 42289",
    "copy_on_write_skipped": "vLLM 1584",
    "shared_tail_written_in_place": "vLLM 41657",
    "bad_step_taken_for_sound": "vLLM PR 50283",
    "completion_lost": "dynamo 3730",
    "ticket_filtered_out": "vllm-ascend 16662",
    "match_one_block_too_long": "SGLang 24252",
    "growth_written_one_column_off": "vLLM 41657",
    "sharing_domains_mixed": "vLLM 44701",
    "host_copy_dropped_under_a_load": "SGLang PR 22811",
    "split_forgets_the_copy": "SGLang 27504",
    "waiter_of_a_cancelled_load_woken": "SGLang PR 20611",
    "one_key_for_all_adapters": "vLLM 42125, 44250",
    "activated_kv_kept_as_the_bases": "vLLM 30931",
    "in_use_and_still_evictable": "SGLang 23141",
    "removed_while_in_use": "vLLM 47724",
    "row_freed_by_the_first_to_leave": "SGLang 36894",
    "failed_read_taken_for_done": "vLLM 5199, 9688",
}


@dataclass(frozen=True)
class Bug:
    """``seen``: bugs of this kind in the field, by their project's number."""

    name: str
    broken: str
    seen: str
    machine: Machine
    patch: Patch


def bugs() -> list[Bug]:
    found = [
        Bug(name, name.replace("_", " "), _SEEN.get(name, "–"), machine, patch)
        for machine, planted in ((MEMORY, of_memory.PLANTED), (ADAPTERS, of_adapters.PLANTED))
        for name, patch in planted.items()
    ]
    return found + [
        Bug(patch.__name__, broken, seen, ENGINE, patch)
        for patch, (broken, seen) in _OF_ENGINE.items()
    ]


def sound(patch: Patch) -> Bug:
    return Bug(patch.__name__, "", "", ENGINE, patch)


def catch(bug: Bug, *, shrunk: bool = True) -> Caught | None:
    """Plant ``bug`` and let its machine look; ``None`` if it sees nothing."""
    if bug.machine is ENGINE and not _TEXTS:
        learn_texts()
    with pytest.MonkeyPatch.context() as patch:
        bug.patch(patch)
        start_s = time.process_time()
        for number, attempt in enumerate(bug.machine.attempts(), 1):
            failure = attempt()
            if failure is None:
                continue
            seconds = time.process_time() - start_s
            if isinstance(failure, str):
                return Caught(number, seconds, None, failure)
            trace = len(shrink(failure).operations) if shrunk else None
            return Caught(number, seconds, trace, repr(failure.error))
    return None


def learn_texts() -> None:
    from tests.trust.workload import oracle

    _TEXTS.update(oracle())
