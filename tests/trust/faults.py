"""Nth-call faults: every part of the engine fails at its N-th call, once or for ever.

SQLite's way (sqlite.org/testing.html, 3.1 and 3.2): a fault point is a method of a part; the same
workload runs again and again, and the N-th call of one point raises, for every point and every N
that the workload reaches. Nothing in the engine knows of it: points are wrapped from here.

After a fault once, every agent must have said what it says without faults, and the same workload
must complete again on the same engine. Under a fault for ever, an agent has said that, or has got a
typed error; no call stays open, and no page is lost while the engine lives. ``python -m tests.long
faults`` runs them all.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from scalesim.distance.distances import Distances
from scalesim.engine.advice import Advice
from scalesim.engine.loop import EngineLoop
from scalesim.engine.open_calls import OpenCalls
from scalesim.errors import AdapterError
from scalesim.memory.audit.auditor import Auditor
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.eviction.residency import Residency
from scalesim.memory.leases.adapters import AdapterPages
from scalesim.memory.leases.admission import Admission
from scalesim.memory.leases.attachments import Attachments
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.leases.release import Releases
from scalesim.memory.leases.waiters import LoadWaiters
from scalesim.memory.manager import MemoryManager
from scalesim.memory.misses import Misses
from scalesim.memory.page_log import LoggedPool
from scalesim.memory.prefetch.attachment_reads import AttachmentReads
from scalesim.memory.prefetch.owners import Owners
from scalesim.memory.prefetch.prefetcher import Prefetcher
from scalesim.memory.tiers import Tier
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.segment import Segment
from scalesim.model.text.chat import ChatTemplate
from scalesim.model.text.tokenizer import ByteTokenizer
from scalesim.requests.call import TextObserver
from scalesim.sampling.keys import SamplingKeys
from scalesim.scheduler.batch_builder import InFlight
from scalesim.scheduler.queue import RequestQueue
from scalesim.scheduler.running import Running
from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.slots import Slots
from scalesim.testing.hostile_link import HostileLink
from scalesim.testing.tag_runner import TagRunner
from scalesim.trace.file import TraceWriter
from tests.trust.workload import Lost, TagFolder, Text, Workload

Mode = str
MODES = ("once", "for ever")


class Injected(RuntimeError):
    """What a fault point raises."""


@dataclass(frozen=True)
class Point:
    """``method`` of ``owner`` raises, before it does anything, or (``late``) when it has done it.
    ``only`` picks objects; ``copies``: no call fails, but the copy that it moves. ``error`` is what
    the contract of ``method`` lets it raise, where it names one."""

    owner: type
    method: str
    late: bool = False
    only: Callable[[Any], bool] = lambda self: True
    copies: bool = False
    error: type[Exception] = Injected


def may_land(link: HostileLink) -> bool:
    """Whether a piece of a copy can be next. A fault in a step without one would wait for the first
    step that has: that is the same run."""
    return any(event.queue != "seen" for event in link.events())


POINTS: dict[str, Point] = {
    "device pages: allocate": Point(LoggedPool, "allocate", only=lambda pool: pool._is_device),
    "device pages: free": Point(LoggedPool, "free", only=lambda pool: pool._is_device),
    "device pages: fence": Point(LoggedPool, "fence", only=lambda pool: pool._is_device),
    "host pages: reserve": Point(LoggedPool, "allocate", only=lambda pool: not pool._is_device),
    "host pages: free": Point(LoggedPool, "free", only=lambda pool: not pool._is_device),
    "tree: match": Point(PrefixTree, "match"),
    "tree: insert": Point(PrefixTree, "insert"),
    "tree: insert, done": Point(PrefixTree, "insert", late=True),
    "tree: insert a tail": Point(PrefixTree, "insert_tail"),
    "tree: insert an attachment": Point(PrefixTree, "insert_attachment"),
    "segment: lengthen": Point(Segment, "lengthen"),
    "tree: split": Point(PrefixTree, "split"),
    "tree: split, done": Point(PrefixTree, "split", late=True),
    "tree: merge": Point(PrefixTree, "merge"),
    "tree: remove": Point(PrefixTree, "remove"),
    "tree: shorten": Point(PrefixTree, "shorten"),
    "tier: put pages": Point(Tier, "put"),
    "tier: cut pages": Point(Tier, "cut"),
    "block table: allocate a row": Point(BlockTable, "allocate"),
    "block table: write": Point(BlockTable, "write"),
    "block table: free a row": Point(BlockTable, "free"),
    "block table: take changes": Point(BlockTable, "take_changes"),
    "residency: take pages": Point(Residency, "take"),
    "residency: evict": Point(Residency, "_evict"),
    "residency: start a load": Point(Residency, "start_load"),
    "residency: start a save": Point(Residency, "start_save"),
    "residency: fill the host": Point(Residency, "start_fill"),
    "residency: finish a copy": Point(Residency, "_finish"),
    "residency: poll, done": Point(Residency, "poll", late=True),
    "admission: acquire": Point(Admission, "acquire"),
    "admission: acquire, done": Point(Admission, "acquire", late=True),
    "manager: grow": Point(MemoryManager, "grow"),
    "releases: commit": Point(Releases, "commit"),
    "releases: release": Point(Releases, "release"),
    "releases: release, done": Point(Releases, "release", late=True),
    "loads: poll": Point(LoadWaiters, "poll"),
    "owners: own a path": Point(Owners, "own"),
    "owners: next use": Point(Owners, "set_next_uses"),
    "owners: fork": Point(Owners, "fork"),
    "standing: refresh": Point(EvictionRanking, "refresh"),
    "misses: look-up": Point(Misses, "looked_up"),
    "adapters: add": Point(AdapterPages, "add"),
    "attachments: find": Point(Attachments, "find"),
    "attachments: hold": Point(Attachments, "hold"),
    "attachments: let go": Point(Attachments, "let_go"),
    "adapter source: read": Point(TagFolder, "read", error=AdapterError),
    "planner: plan": Point(Prefetcher, "plan"),
    "planner: load ahead": Point(Prefetcher, "load"),
    "planner: read an attachment ahead": Point(AttachmentReads, "_read"),
    "link: submit": Point(HostileLink, "submit"),
    "link: poll": Point(HostileLink, "poll"),
    "link: cancel": Point(HostileLink, "cancel"),
    "link: wait": Point(HostileLink, "wait"),
    "link: rate": Point(HostileLink, "rate"),
    "link: queued bytes": Point(HostileLink, "queued_bytes"),
    "link: a copy": Point(HostileLink, "step", copies=True, only=may_land),
    "scheduler: add": Point(Scheduler, "add"),
    "scheduler: schedule": Point(Scheduler, "schedule"),
    "scheduler: admit": Point(Scheduler, "_admit"),
    "scheduler: enter": Point(Scheduler, "_enter"),
    "scheduler: wake": Point(Scheduler, "_wake"),
    "scheduler: preempt": Point(Scheduler, "_preempt"),
    "scheduler: launch": Point(Scheduler, "_launch"),
    "scheduler: launch, done": Point(Scheduler, "_launch", late=True),
    "scheduler: update": Point(Scheduler, "update"),
    "scheduler: finish": Point(Scheduler, "_finish"),
    "scheduler: cancel": Point(Scheduler, "cancel"),
    "scheduler: take ended": Point(Scheduler, "take_ended"),
    "queue: next": Point(RequestQueue, "next"),
    "queue: put back": Point(RequestQueue, "requeue"),
    "running: prefill": Point(Running, "prefill"),
    "running: leave": Point(Running, "leave"),
    "running: leave, done": Point(Running, "leave", late=True),
    "batch: deliver, done": Point(InFlight, "deliver", late=True),
    "slots: enter": Point(Slots, "enter"),
    "slots: leave": Point(Slots, "leave"),
    "runner: launch": Point(TagRunner, "launch"),
    "runner: collect, done": Point(TagRunner, "collect", late=True),
    "runner: read the pages": Point(TagRunner, "_attend"),
    "runner: sample": Point(TagRunner, "_draw"),
    "sampling keys": Point(SamplingKeys, "key"),
    "distances: called": Point(Distances, "called"),
    "distances: ended": Point(Distances, "ended"),
    "distances: expect": Point(Distances, "expect_all"),
    "distances: tick": Point(Distances, "tick"),
    "inbox: accept": Point(EngineLoop, "_accept"),
    "inbox: expect": Point(Advice, "expect"),
    "loop: settle": Point(OpenCalls, "_count"),
    "guard: the counts": Point(Auditor, "after_step"),
    "recorder: a call": Point(TraceWriter, "call"),
    "recorder: a tick": Point(TraceWriter, "tick"),
    "tokenizer: encode": Point(ByteTokenizer, "encode"),
    "tokenizer: decode": Point(ByteTokenizer, "decode"),
    "chat template: render": Point(ChatTemplate, "render"),
    "stop strings: a token": Point(TextObserver, "push"),
}


@dataclass
class Fault:
    """The N-th call fails; ``nth`` 0: none does, calls are only counted."""

    nth: int = 0
    mode: Mode = "once"
    calls: int = 0

    def strikes(self) -> bool:
        self.calls += 1
        return 0 < self.nth <= self.calls and (self.mode == "for ever" or self.calls == self.nth)


@contextmanager
def planted(point: Point, fault: Fault) -> Iterator[None]:
    """``point`` fails as ``fault`` says."""
    method = getattr(point.owner, point.method)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        strikes = point.only(self) and fault.strikes()
        if strikes and point.copies:
            self.failures += 1
        elif strikes and not point.late:
            raise point.error(f"{point.owner.__name__}.{point.method}, call {fault.calls}")
        result = method(self, *args, **kwargs)
        if strikes and point.late:
            raise point.error(f"{point.owner.__name__}.{point.method}, call {fault.calls}, done")
        return result

    with patch.object(point.owner, point.method, wrapped):
        yield


def reach(steps_in_flight: int = 1) -> Counter[str]:
    """How often the workload calls each point."""
    faults = {name: Fault() for name in POINTS}
    with ExitStack() as stack:
        for name, point in POINTS.items():
            stack.enter_context(planted(point, faults[name]))
        with Workload(steps_in_flight=steps_in_flight) as workload:
            workload.play()
    return Counter({name: fault.calls for name, fault in faults.items()})


@dataclass(frozen=True)
class Outcome:
    """What one faulted run came to. ``hit``: agents that ended with a typed error."""

    restarts: int
    hit: int
    died: bool
    lost_pages: int


def run(
    name: str,
    nth: int,
    mode: Mode,
    texts: dict[str, list[Text]],
    steps_in_flight: int = 1,
    *,
    seed: int = 0,
) -> Outcome:
    """One faulted run, judged. Raises ``Lost``."""
    fault = Fault(nth, mode)
    logging.getLogger("scalesim").setLevel(logging.CRITICAL)
    try:
        with Workload(seed, steps_in_flight) as workload:
            with planted(POINTS[name], fault):
                _compare(workload, workload.play(), texts)
            if workload.dead is None and mode == "once":
                if workload.errors:
                    raise Lost(f"one fault cost {workload.errors}")
                if (again := workload.play("again ")) != texts or workload.errors:
                    raise Lost(f"the next run says {again}, {workload.errors}")
            elif mode == "once":
                raise Lost(f"one fault cost the engine: {workload.dead!r}")
            if workload.dead is None:
                workload.settle()
    finally:
        logging.getLogger("scalesim").setLevel(logging.NOTSET)
    stats, died = workload.engine.stats, workload.dead is not None
    return Outcome(stats.restarts, len(workload.errors), died, stats.lost_pages)


def _compare(workload: Workload, said: dict[str, list[Text]], texts: dict[str, list[Text]]) -> None:
    for agent, expected in texts.items():
        mine = said.get(agent, [])
        if agent not in workload.errors:
            if mine != expected:
                raise Lost(f"{agent} said {mine}, not {expected}")
        elif mine != expected[: len(mine)]:
            raise Lost(f"{agent} said {mine} before its error, not {expected}")
        elif isinstance(workload.errors[agent], Lost):
            raise workload.errors[agent]
