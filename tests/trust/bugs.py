"""Planted bugs, in one table: what is broken, what it is in the field, which machine has to see it.
Called by ``python -m tests.trust`` and by the tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice

from scalesim.memory.links.link import Copies, Link
from scalesim.testing.memory_walk import MemoryWalk
from scalesim.testing.memory_world import WorldShape
from scalesim.testing.walks import Failure, failure_of, shrink
from tests.trust import broken, worlds
from tests.trust.workload import SOUND, Build, Workload, oracle

STEPS, MAX_WALKS = 200, 40
SHAPES = [
    WorldShape(pages, host, block_size, policy)
    for pages, block_size in [(6, 4), (12, 2), (16, 4), (8, 1), (24, 2)]
    for policy in ("deadline", "lru-swap")
    for host in (2.0, 1.0)
]
WITH_ADAPTERS = [
    WorldShape(pages, host, block_size, adapters=3)
    for pages, host, block_size in [
        (16, 1.0, 4), (9, 0.0, 2), (24, 1.0, 2), (16, 0.0, 4), (9, 1.0, 2), (24, 0.0, 2)
    ]
]  # fmt: skip

ABOVE_A_DISK = [
    WorldShape(pages, host, block_size, policy, disk=disk)
    for pages, host, block_size, disk in [(12, 0.5, 2, 4.0), (16, 0.75, 1, 2.0), (24, 0.5, 2, 3.0)]
    for policy in ("deadline", "lru-swap")
]
WITH_STATE = [
    WorldShape(pages, host, block_size, policy, adapters=adapters, disk=disk, blobs=2)
    for pages, host, block_size, adapters, disk in [
        (16, 1.0, 4, 3, 0.0), (9, 2.0, 2, 0, 0.0), (12, 0.75, 2, 0, 3.0), (24, 1.0, 1, 3, 2.0)
    ]
    for policy in ("deadline", "deadline", "lru-swap")
]  # fmt: skip

WITH_MODELS = [
    WorldShape(pages, host, block_size, policy, adapters=adapters, blobs=blobs, models=4)
    for pages, host, block_size, adapters, blobs in [
        (16, 1.0, 4, 0, 0), (24, 1.0, 2, 3, 0), (24, 2.0, 1, 0, 2), (32, 2.0, 4, 0, 2)
    ]
    for policy in ("deadline", "lru-swap")
]  # fmt: skip

LASTING = [
    WorldShape(12, 0.5, 2, disk=0.7, lasting=True),
    WorldShape(16, 0.75, 1, "lru-swap", disk=0.9, lasting=True),
    WorldShape(24, 0.5, 4, adapters=3, disk=3.0, lasting=True),
    WorldShape(9, 1.0, 2, lasting=True),
]

Attempt = Callable[[Build], "Failure | str | None"]


@dataclass(frozen=True)
class Machine:
    """What looks for a bug: a series of attempts, each of which fails or does not."""

    name: str
    attempts: Callable[[], Iterator[Attempt]]


def walks(shapes: list[WorldShape]) -> Iterator[Attempt]:
    for seed in range(MAX_WALKS):
        shape = replace(shapes[seed % len(shapes)], seed=seed)
        yield partial(failure_of, MemoryWalk(shape, seed, STEPS))


def workloads() -> Iterator[Attempt]:
    """The whole engine: every text against the oracle's, every book at the end."""
    for seed in range(8):
        yield partial(_play, seed)


right = cache(oracle)


def _play(seed: int, build: Build) -> str | None:
    with Workload(seed, 1 + seed % 2, "raise", build) as workload:
        try:
            texts = workload.play()
            if workload.dead is None and not workload.errors:
                workload.settle()
        except Exception as error:
            return repr(error)
    if workload.dead is not None or workload.errors:
        return repr(workload.dead or workload.errors)
    return None if texts == right() else "other texts"


MEMORY = Machine("memory walk", partial(walks, SHAPES))
ADAPTERS = Machine("adapter walk", partial(walks, WITH_ADAPTERS))
DISK = Machine("disk walk", partial(walks, ABOVE_A_DISK))
LIVES = Machine("walk through snapshots and forks", partial(walks, LASTING))
STATE = Machine("state walk", partial(walks, WITH_STATE))
MODELS = Machine("walk with models", partial(walks, WITH_MODELS))
ENGINE = Machine("engine workload", workloads)
POWER = Machine("power loss", lambda: iter([lambda build: worlds.power_fails(build.generations)]))
STORE = Machine(
    "a store that dies", lambda: iter([lambda build: worlds.store_dies(build.generations)])
)
READS = Machine("disk errors", lambda: iter([lambda build: worlds.disk_errs(build.reader)]))
SLOTS = Machine(
    "slots turn over", lambda: iter([lambda build: worlds.slots_turn_over(build.store)])
)
WORLDS = Machine("forked worlds", lambda: iter([lambda build: worlds.worlds_part(build.memory)]))


@dataclass(frozen=True)
class Bug:
    """``seen``: bugs of this kind in the field, by their project's number."""

    broken: str
    seen: str
    machine: Machine
    build: Build


def _saves(copies: Copies) -> bool:
    return copies.direction == "out" and copies.source is None


def _loads(copies: Copies) -> bool:
    return copies.direction == "in" and copies.source is None


def _reads(copies: Copies) -> bool:
    return copies.source is not None


def _spills(copies: Copies) -> bool:
    return copies.direction == "down"


def _stages(copies: Copies) -> bool:
    return copies.direction == "up"


def _linked(link: Callable[[Link], Link]) -> Build:
    return Build(memory=broken.over(link))


BUGS = [
    Bug("freed on abort while a copy writes", "vLLM 46283, vllm-ascend 14055", MEMORY,
        _linked(broken.CallsBackWhatHasBegun)),
    Bug("freed while a save reads", "torchrec PR 4231", MEMORY,
        Build(memory=broken.FreesWhatIsSaved)),
    Bug("pinned and still evictable", "vLLM 47282", MEMORY, Build(memory=broken.ForgetsThePin)),
    Bug("looked up and pinned later", "vLLM 37076", MEMORY, Build(memory=broken.LooksUpOnce)),
    Bug("fence ignored", "vLLM 47282, 31341", MEMORY, Build(pool=broken.KnowsNoFence)),
    Bug("freed twice", "vLLM 1556, 1930; sglang-jax PR 982", MEMORY,
        Build(memory=broken.FreesTwice)),
    Bug("free pages counted twice", "vLLM 42571", MEMORY, Build(pool=broken.CountsTwice)),
    Bug("save visible before done", "vLLM 5364, 7822", MEMORY,
        _linked(lambda link: broken.EndsEarly(link, _saves))),
    Bug("failed save visible", "LMCache 4991", MEMORY,
        _linked(lambda link: broken.HidesErrors(link, _saves))),
    Bug("failed load taken for done", "LMCache 4385", MEMORY,
        _linked(lambda link: broken.HidesErrors(link, _loads))),
    Bug("unfinished block committed", "vLLM 7822", MEMORY, Build(memory=broken.CommitsAPart)),
    Bug("committed before collected", "vLLM 45704", MEMORY, Build(memory=broken.CommitsEarly)),
    Bug("anothers partial block taken unread", "SGLang 24252", MEMORY,
        Build(memory=broken.TakesAPartialBlockUnread)),
    Bug("parent leaves before its child", "vLLM 42289", MEMORY,
        Build(memory=broken.EvictsParentsFirst)),
    Bug("copy on write skipped", "vLLM 1584", MEMORY, Build(memory=broken.SkipsCopyOnWrite)),
    Bug("shared block written in place", "vLLM 41657", MEMORY, Build(memory=broken.WritesInPlace)),
    Bug("bad step taken for sound", "vLLM PR 50283", MEMORY, Build(runner=broken.HidesBadSteps)),
    Bug("completion lost", "dynamo 3730", MEMORY, _linked(broken.LosesAnEnd)),
    Bug("ticket filtered out", "vllm-ascend 16662", MEMORY, _linked(broken.LosesATicket)),
    Bug("match one block too long", "SGLang 24252", MEMORY, Build(memory=broken.MatchesABlockMore)),
    Bug("growth written one column off", "vLLM 41657", MEMORY,
        Build(memory=broken.GrowsOneColumnOff)),
    Bug("host copy dropped under a load", "SGLang PR 22811", MEMORY,
        Build(memory=broken.FreesWhatIsLoaded)),
    Bug("split forgets the copy", "SGLang 27504", MEMORY,
        Build(memory=broken.ForgetsTheCopyOfAPart)),
    Bug("waiter of a cancelled load woken", "SGLang PR 20611", MEMORY,
        Build(memory=broken.WakesTheCancelled)),
    Bug("one key for all adapters", "vLLM 42125, 44250", ADAPTERS,
        Build(memory=broken.OneKeyForAllAdapters)),
    Bug("place in the block left out of the key", "–", ADAPTERS,
        Build(memory=broken.KeyWithoutThePlace)),
    Bug("activated kv kept as the bases", "vLLM 30931", ADAPTERS,
        Build(memory=broken.ActivatedAsTheBase)),
    Bug("in use and still evictable", "SGLang 23141", ADAPTERS,
        Build(memory=broken.ForgetsTheAdaptersPin)),
    Bug("row freed by the first to leave", "SGLang 36894", ADAPTERS,
        Build(memory=broken.FreesTheAdaptersRow)),
    Bug("removed while in use", "vLLM 47724", ADAPTERS, Build(memory=broken.RemovesWhatIsInUse)),
    Bug("read from the start into the middle", "–", ADAPTERS, _linked(broken.ReadsFromTheStart)),
    Bug("failed read taken for done", "vLLM 5199, 9688", ADAPTERS,
        _linked(lambda link: broken.HidesErrors(link, _reads))),
    Bug("spill visible before done", "–", DISK,
        _linked(lambda link: broken.EndsEarly(link, _spills))),
    Bug("failed spill visible", "–", DISK,
        _linked(lambda link: broken.HidesErrors(link, _spills))),
    Bug("read from the disk visible before done", "–", DISK,
        _linked(lambda link: broken.EndsEarly(link, _stages))),
    Bug("failed read from the disk taken for done", "–", DISK,
        _linked(lambda link: broken.HidesErrors(link, _stages))),
    Bug("host page freed while it is spilled", "–", DISK, Build(memory=broken.FreesWhatIsSpilled)),
    Bug("stale disk page: freed while it is read", "–", DISK,
        Build(memory=broken.FreesWhatIsStaged)),
    Bug("stale disk page: read for a snapshot unchecked", "–", SLOTS,
        Build(store=broken.BelievesEverySlot)),
    Bug("a snapshot copies pages that are others by then", "–", LIVES,
        Build(look=broken.looks_once)),
    Bug("a fork that shares a tail, in memory", "–", LIVES, Build(memory=worlds.SharesTheTail)),
    Bug("a forks pages kept, in memory", "–", LIVES, Build(memory=worlds.KeepsWhatAForkOwned)),
    Bug("another kinds page handed out", "–", STATE,
        Build(memory=broken.HandsOutAnotherKindsPage)),
    Bug("state written through a shared page", "–", STATE, Build(memory=broken.WritesSharedState)),
    Bug("state written while a copy reads it", "–", STATE,
        Build(memory=broken.WritesStateUnderACopy)),
    Bug("the only copy of state dropped", "–", STATE, Build(memory=broken.DropsWhatIsKept)),
    Bug("shared content removed with its first owner", "–", STATE,
        Build(memory=broken.RemovesWhatOthersHave)),
    Bug("kv of one model taken for anothers", "–", MODELS,
        Build(memory=broken.FilesUnderAnotherModel)),
    Bug("a page counted in another models tokens", "–", MODELS,
        Build(memory=broken.CountsInItsOwnTokens)),
    Bug("stale weights: read where they lay once", "–", MODELS,
        Build(memory=broken.KnowsOnePlaceOfWeights)),
    Bug("stale weights: used before they have come", "–", MODELS,
        _linked(lambda link: broken.EndsEarly(link, _reads))),
    Bug("another kinds page in weights", "–", MODELS,
        Build(memory=broken.HandsOutAPageOfWeights)),
    Bug("compaction moves a page that somebody reads", "–", MODELS,
        Build(memory=broken.MovesWhatIsRead)),
    Bug("compaction copies too late", "–", MODELS, Build(memory=broken.MovesTooLate)),
    Bug("a batch slot is not set anew", "CVE-2026-114049", ENGINE, Build(runner=broken.KeepsKeys)),
    Bug("a token is lost over a preemption", "vLLM 18411", ENGINE,
        Build(scheduler=broken.LosesATokenByPreemption)),
    Bug("a placeholder is kept over a preemption", "vLLM PR 38624", ENGINE,
        Build(scheduler=broken.DoublesATokenByPreemption)),
    Bug("a step in flight is read as the slot's new owner's", "vllm-ascend 14055", ENGINE,
        Build(scheduler=broken.TakesALateToken)),
    Bug("what was pinned for a refused request stays pinned", "SGLang 16067", ENGINE,
        Build(memory=broken.PinsOnRefusal)),
    Bug("a finished load wakes nobody", "dynamo 3730", ENGINE, Build(memory=broken.WakesNobody)),
    Bug("a row of the block table leaks a request", "SGLang 6888", ENGINE,
        Build(memory=broken.KeepsTheRow)),
    Bug("host pages of dropped content leak", "CVE-2026-94627", ENGINE,
        Build(pool=broken.LeaksOnTheHost)),
    Bug("cancelling a running request does nothing", "vLLM 51921", ENGINE,
        Build(scheduler=broken.EndsOnlyWhatWaits)),
    Bug("a stop string is overlooked", "–", ENGINE, Build(scheduler=broken.OverlooksStops)),
    Bug("a manifest before its pages", "–", POWER,
        Build(generations=worlds.ManifestBeforeItsPages)),
    Bug("a manifest before its objects", "–", STORE,
        Build(generations=worlds.ManifestBeforeItsPages)),
    Bug("pages go that a snapshot refers to", "–", POWER,
        Build(generations=worlds.ForgetsWhoElseRefers)),
    Bug("a page taken unchecked", "–", READS, Build(reader=worlds.TakesEveryPage)),
    Bug("a fork that shares a tail", "–", WORLDS, Build(memory=worlds.SharesTheTail)),
    Bug("a forks pages kept", "–", WORLDS, Build(memory=worlds.KeepsWhatAForkOwned)),
]  # fmt: skip

SPEED_ONLY = [
    Bug("evicts the soonest", "speed only", ENGINE, Build(advise=lambda index: 100.0 - index)),
    Bug("predictor gives nan", "speed only", ENGINE,
        Build(sources=lambda: [broken.SaysAnything()])),
]  # fmt: skip
"""Wrong for speed, right for texts: a machine that caught these would be wrong itself."""


@dataclass(frozen=True)
class Caught:
    """``attempts`` until something failed, in ``seconds`` of processor time; ``trace``: operations
    left after shrinking, where there are operations."""

    attempts: int
    seconds: float
    trace: int | None
    error: str


def catch(
    machine: Machine, build: Build = SOUND, *, shrunk: bool = True, most: int | None = None
) -> Caught | None:
    """Let ``machine`` look at ``build``, ``most`` times at most; ``None`` if it sees nothing."""
    if machine is ENGINE:
        right()  # costs no bug its time
    start_s = time.process_time()
    for number, attempt in enumerate(islice(machine.attempts(), most), 1):
        failure = attempt(build)
        if failure is None:
            continue
        seconds = time.process_time() - start_s
        if isinstance(failure, str):
            return Caught(number, seconds, None, failure)
        trace = len(shrink(failure, build).operations) if shrunk else None
        return Caught(number, seconds, trace, repr(failure.error))
    return None
