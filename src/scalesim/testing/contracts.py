"""Contract tests for an allocator, a link and a policy, each tested alone, rule by rule.

The worlds find faults between parts, and only in the operations that they happen to use. Here, each
rule is tested directly against a simple reference model; the error names the broken rule, the
operation and its result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from scalesim.core import Bytes2D, Fence
from scalesim.errors import AdapterError
from scalesim.memory.eviction.policies import Policy
from scalesim.memory.links.link import Copies, Direction, InMemorySource, Link, PageSource, Timeline
from scalesim.memory.pools.page_pool import MakePool
from scalesim.memory.pools.storage import allocate_pages
from scalesim.testing.bed import MakeLink

POOL_RULES = {
    "fresh": "a new pool has every page from `first` on free, and no other",
    "exact": "`allocate` gives a list of as many pages as it was asked for",
    "all or nothing": "`allocate` gives None where fewer are free, and only there; nothing changes",
    "no page twice": "`allocate` gives pages that were free, each once",
    "claim": "`claim` takes the free pages that it is given, in any order, and no other",
    "counts": "`num_free`, `num_used`, `num_usable` and `free_mask` tell one story",
    "free": "`free` takes owned pages back, and they can be given away again",
    "refusal": "`free` raises AssertionError for pages that nobody owns",
    "fences": "`fence` is the latest that its pages were freed with, until they are freed again",
    "apart": "what was given is the caller's, and arguments are not changed",
    "check": "`check` finds sound books sound",
}
LINK_RULES = {
    "tickets": "`submit` gives a ticket at least, each a number of its own",
    "bytes": "when a ticket ends well, its bytes are there; no other page changes",
    "once": "a ticket ends once; `poll` reports it once",
    "all": "every ticket ends",
    "fence": "nothing begins before `after` is reached",
    "cancel": "`cancel` is True only for what has not begun: it is never reported, and not copied",
    "failure": "a source that cannot be read ends its ticket with the error",
    "wait": "`wait` is True where `poll` has something to report",
    "queue": "`queued_bytes` is what has not ended; 0 when all has",
    "rate": "`rate` is finite and above 0",
}
POLICY_RULES = {
    "order": "`order` is 'next_use' or 'last_use'",
    "flags": "`host`, `look_ahead`, `weighs`, `limited` and `foresight` are booleans",
    "name": "`name` is a text",
}


class BrokenRuleError(AssertionError):
    """A broken rule of a contract, with the operation and its result. ``operations`` are all
    operations so far."""

    def __init__(self, rule: str, says: str, asked: str, given: str) -> None:
        super().__init__(f"rule {rule!r} ({says}): {asked}; {given}")
        self.rule = rule
        self.operations: list[str] = []  # up to and including the one that broke the rule


@contextmanager
def telling(asked: list[str]) -> Iterator[None]:
    """Turn any error into a ``BrokenRuleError`` with the operations ``asked`` so far."""
    try:
        yield
    except BrokenRuleError as error:
        error.operations = asked
        raise
    except (Exception, SystemExit) as error:
        says = "nothing raises, unless its contract says so"
        broken = BrokenRuleError("errors", says, asked[-1], f"it raised {error!r}")
        broken.operations = asked
        raise broken from error


def try_pool(make: MakePool, seed: int, steps: int = 200) -> None:
    """Run a random walk of ``steps`` operations over one pool. Raises ``BrokenRuleError``."""
    rng = random.Random(seed)
    num_pages = rng.choice([0, 1, 2, 5, 9, 33, 70])
    first = rng.randint(0, 2)
    asked = [f"make({num_pages + first}, first={first})"]
    with telling(asked):
        trial = PoolTrial(make, num_pages + first, first, asked)
        for _ in range(steps):
            trial.step(rng)


class PoolTrial:
    """One pool beside its reference model: the set of free pages, and each page's fence."""

    def __init__(self, make: MakePool, num_pages: int, first: int, asked: list[str]) -> None:
        self.asked = asked
        self._make, self._num_pages, self._first = make, num_pages, first
        self._pool = make(num_pages, first=first)
        self._free = set(range(first, num_pages))
        self._owned: list[list[int]] = []
        self._fences = dict.fromkeys(range(first, num_pages), -1)
        self._now = 0
        self._see("fresh", f"make({num_pages}, first={first})")
        if (self._pool.num_pages, self._pool.first) != (num_pages, first):
            given = f"num_pages={self._pool.num_pages}, first={self._pool.first}"
            self._broken("fresh", f"make({num_pages}, first={first})", given)

    def step(self, rng: random.Random) -> None:
        acts = ["allocate"] * 4 + ["free"] * 4 + ["claim", "refuse", "too many", "drain"]
        match rng.choice(acts):
            case "allocate":
                self.allocate(rng.randint(0, max(1, len(self._free) // rng.choice([1, 2, 4]))))
            case "too many":
                self.allocate(len(self._free) + rng.randint(1, 3))
            case "free" if self._owned:
                pages = self._owned.pop(rng.randrange(len(self._owned)))
                rng.shuffle(pages)
                cut = rng.randint(0, len(pages))
                self.free(pages[:cut], rng.randint(-1, 9))
                self.free(pages[cut:], rng.randint(-1, 9))
            case "claim":
                self.claim(rng.sample(sorted(self._free), rng.randint(0, len(self._free) // 2)))
            case "refuse":
                self.refuse(rng)
            case "drain":
                self.drain(rng)

    def allocate(self, count: int) -> None:
        asked = f"allocate({count}) of {len(self._free)} free"
        self.asked.append(asked)
        given = self._pool.allocate(count)
        if given is None:
            if count <= len(self._free):
                self._broken("all or nothing", asked, "it gave None")
            self._see("all or nothing", f"{asked}, which is too many")
            return
        if not isinstance(given, list) or not all(map(_is_page, given)):
            self._broken("exact", asked, f"it gave {given!r:.80}, no list of whole numbers")
        pages = list(given)
        if count > len(self._free):
            self._broken("all or nothing", asked, f"it gave {pages}")
        if len(pages) != count:
            self._broken("exact", asked, f"it gave {len(pages)}: {pages}")
        if len(set(pages)) < count or not set(pages) <= self._free:
            wrong = [page for page in pages if page not in self._free or pages.count(page) > 1]
            self._broken("no page twice", asked, f"it gave {pages}, where {wrong} were not to have")
        self._free.difference_update(pages)
        self._owned.append(pages[:])
        self._see("counts", asked, pages)
        if pages:
            given.clear()
            self._see("apart", f"{asked}, and the list that it gave emptied")

    def claim(self, pages: list[int]) -> None:
        asked = f"claim({pages})"
        self.asked.append(asked)
        self._pool.claim(pages[:])
        self._free.difference_update(pages)
        self._owned.append(pages)
        self._see("claim", asked, pages)

    def free(self, pages: list[int], fence: int) -> None:
        before, self._now = pages[:], self._now + 1
        fence += self._now
        self.asked.append(f"free({pages}, {fence})")
        self._pool.free(pages, fence)
        if pages != before:
            self._broken("apart", f"free({before}, {fence})", f"it made {pages} of its argument")
        self._free.update(pages)
        self._fences.update(dict.fromkeys(pages, fence))
        self._see("free", f"free({pages}, {fence})", pages)

    def drain(self, rng: random.Random) -> None:
        """Allocate all free pages, at once and page by page, and free them again."""
        one_by_one = [1] * len(self._free) if self._num_pages < 12 else []
        for sizes in ([len(self._free)], one_by_one):
            start = len(self._owned)
            for size in sizes:
                self.allocate(size)
            taken, self._owned[start:] = self._owned[start:], []
            for pages in taken:
                half = len(pages) // 2
                self.free(pages[half:], rng.randint(-1, 9))
                self.free(pages[:half], rng.randint(-1, 9))

    def refuse(self, rng: random.Random) -> None:
        """Free pages that must be refused, in a new pool each time: the contract does not say what
        a refusal leaves behind."""
        self.asked.append(f"another: make({self._num_pages + 3}, first=1)")
        trial = PoolTrial(self._make, self._num_pages + 3, 1, self.asked)
        trial.allocate(2)
        [owned] = trial._owned
        wrong = rng.choice(
            [[min(trial._free, default=0)], [0], [trial._num_pages], [-1], [owned[0], owned[0]]]
        )
        asked = f"free({wrong}, 2), which are free, foreign or twice the same"
        self.asked.append(asked)
        try:
            trial._pool.free(wrong, 2)
        except AssertionError:
            return
        except (Exception, SystemExit) as error:
            self._broken("refusal", asked, repr(error))
        self._broken("refusal", asked, "it took them")

    def _see(self, rule: str, asked: str, touched: Sequence[int] = ()) -> None:
        """Compare the pool with the model; all fences of ``touched`` pages, and a sample of the
        others."""
        pool, free = self._pool, self._free
        usable = self._num_pages - self._first
        counts = pool.num_free, pool.num_used, pool.num_usable
        if counts != (len(free), usable - len(free), usable):
            given = "num_free={}, num_used={}, num_usable={}".format(*counts)
            self._broken(rule, asked, f"{len(free)} of {usable} are free, and {given}")
        found = set(np.flatnonzero(pool.free_mask()).tolist())
        if found != free:
            given = f"free_mask() has {sorted(found - free)} too many and lacks"
            self._broken(rule, asked, f"{given} {sorted(free - found)}")
        some = list(self._fences)[self._now % 3 :: max(1, usable // 4)]
        for pages in ([], touched, *([page] for page in some), sorted(self._fences)):
            want = max((self._fences[page] for page in pages), default=-1)
            if (fence := pool.fence(pages)) != want:
                shown = f"fence({pages if len(pages) < 9 else 'all'})"
                self._broken("fences", f"{asked}, then {shown}", f"{fence} instead of {want}")
        try:
            pool.check()
        except (Exception, SystemExit) as error:
            self._broken("check", f"{asked}, then check()", repr(error))

    def _broken(self, rule: str, asked: str, given: str) -> NoReturn:
        raise BrokenRuleError(rule, POOL_RULES[rule], asked, given)


def _is_page(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def try_link(make: MakeLink, seed: int, steps: int = 60) -> None:
    """Run ``steps`` rounds of random copies over one link. Raises ``BrokenRuleError``."""
    rng = random.Random(seed)
    trial = LinkTrial(make, seed)
    try:
        with telling(trial.asked):
            for _ in range(steps):
                trial.step(rng)
    finally:
        trial.link.close()


class _Unreadable(PageSource):
    def read(self) -> Bytes2D:
        raise AdapterError("the source cannot be read")


@dataclass
class _TrialCopy:
    """One submission: its open tickets, the contents of its destination before and after, and how
    many of its tickets were cancelled."""

    copies: Copies
    fails: bool
    asked: str
    tickets: set[int]
    before: Bytes2D  # of the destination's pages
    after: Bytes2D
    cancelled: int = 0
    all_cancelled: bool = False


class LinkTrial:
    """A link between two small pools. Copies that are open at one time share no page, so that every
    page's content is known, whatever their order."""

    PAGES, BYTES, LIMIT = 24, 64, 20_000

    def __init__(self, make: MakeLink, seed: int) -> None:
        self._pools = {
            "in": allocate_pages(self.PAGES, self.BYTES),
            "out": allocate_pages(self.PAGES, self.BYTES),
        }  # by where a copy goes: the device, the host
        self._noise = np.random.default_rng(seed)
        for pool in self._pools.values():
            pool[:] = self._noise.integers(0, 256, pool.shape, np.uint8)
        self._timeline = Timeline()
        self.link: Link = make(self._pools["in"], self._pools["out"], self._timeline, seed)
        self._known = {way: pool.copy() for way, pool in self._pools.items()}
        self._used: set[int] = set()
        self._step = 0
        self.asked = ["make(device, host, timeline, seed)"]

    def step(self, rng: random.Random) -> None:
        """Submit some copies, behind one fence or none, cancel some of them, and wait for the
        end."""
        self._step += 1
        begin = rng.choice(["at once", "fence", "cancel"])
        fence = None if begin == "at once" else Fence("compute", self._step)
        device = rng.sample(range(self.PAGES), self.PAGES)
        host = rng.sample(range(self.PAGES), self.PAGES)
        jobs = [self._submit(rng, fence, device, host) for _ in range(rng.randint(1, 3))]
        if fence is not None:
            self._nothing_moves(jobs)
        if begin == "cancel":
            for job in rng.sample(jobs, rng.randint(1, len(jobs))):
                self._call_back(job)
        self._timeline.reach(self._step)
        self._end(jobs)
        self._see_all("bytes", "copies that have ended")

    def _submit(
        self, rng: random.Random, fence: Fence | None, device: list[int], host: list[int]
    ) -> _TrialCopy:
        way: Direction = rng.choice(["in", "out"])
        kind = rng.choice(["copy", "copy", "copy", "source", "unreadable"])
        count, first = rng.randint(1, 5), rng.randint(0, 2)
        pages = [device.pop() for _ in range(count)], [host.pop() for _ in range(count)]
        here, there = pages if way == "in" else pages[::-1]
        other = self._known["out" if way == "in" else "in"]
        if kind == "copy":
            copies, rows = Copies(way, *pages), other[there].copy()
        else:
            content = self._noise.integers(0, 256, (count + first, self.BYTES), np.uint8)
            source: Any = InMemorySource(content) if kind == "source" else _Unreadable()
            ends = (here, []) if way == "in" else ([], here)
            copies, rows = Copies(way, *ends, source, first), content[first:]
        asked = f"{kind} of {count} pages {way!r}, after {fence}"
        self.asked.append(asked)
        tickets = list(self.link.submit(copies, fence, urgent=rng.random() < 0.3))
        if not tickets or len(set(tickets)) < len(tickets) or self._used & set(tickets):
            self._broken("tickets", f"submit: {asked}", f"it gave {tickets}")
        self._used.update(tickets)
        before = self._known[way][here].copy()
        self._known[way][here] = rows
        return _TrialCopy(copies, kind == "unreadable", asked, set(tickets), before, rows)

    def _nothing_moves(self, jobs: list[_TrialCopy]) -> None:
        """Check that no copy begins before its fence is reached."""
        for _ in range(3):
            is_told = self.link.wait(1e-3)
            said = self.link.poll()
            if is_told or said:
                given = f"wait() is {is_told} and poll() reports {said}"
                self._broken(
                    "fence" if said else "wait", f"{jobs[0].asked}, which is not reached", given
                )
        for job in jobs:
            if not np.array_equal(self._pages(job), job.before):
                self._broken("fence", f"{job.asked}, which is not reached", "its pages changed")
            if self.link.queued_bytes(job.copies.direction) <= 0:
                self._broken("queue", f"queued_bytes, {job.asked}, not reached", "it gave 0")

    def _call_back(self, job: _TrialCopy) -> None:
        for ticket in sorted(job.tickets):
            self.asked.append(f"cancel({ticket})")
            if self.link.cancel(ticket):
                job.tickets.discard(ticket)
                job.cancelled += 1
                if self.link.cancel(ticket):
                    self._broken("cancel", f"cancel({ticket}) twice: {job.asked}", "True twice")
        job.all_cancelled = not job.tickets

    def _end(self, jobs: list[_TrialCopy]) -> None:
        """Wait until all copies have ended; check each one when its last ticket is reported."""
        for job in jobs:
            if not job.tickets:
                self._see(job)
        waits = 0
        while any(job.tickets for job in jobs):
            is_told = self.link.wait(1e-3)
            said = self.link.poll()
            if is_told and not said:
                self._broken("wait", "wait(0.001)", "True, and poll() reports nothing")
            waits += 1
            if waits > self.LIMIT:
                job = next(job for job in jobs if job.tickets)
                given = f"tickets {sorted(job.tickets)} are not reported after {waits} waits"
                self._broken("all", job.asked, given)
            for ticket, error in said:
                self._report(jobs, ticket, error)
        if said := [*(self.link.poll() if self.link.wait(1e-4) else ()), *self.link.poll()]:
            self._report(jobs, *said[0])
        for way in self._pools:
            if queued_bytes := self.link.queued_bytes(way):  # type: ignore[arg-type]
                self._broken(
                    "queue", f"queued_bytes({way!r}) when all has ended", f"it gave {queued_bytes}"
                )
            rate = self.link.rate(way)  # type: ignore[arg-type]
            if not 0 < rate < math.inf:
                self._broken("rate", f"rate({way!r})", f"it gave {rate}")
        ticket = max(self._used)
        if self.link.cancel(ticket):
            self._broken("cancel", f"cancel({ticket}), which has ended", "True")

    def _report(self, jobs: list[_TrialCopy], ticket: int, error: Exception | None) -> None:
        job = next((job for job in jobs if ticket in job.tickets), None)
        if job is None:
            rule = "cancel" if any(job.cancelled for job in jobs) else "once"
            given = f"poll() reports {ticket}, which has ended or was called back"
            self._broken(rule, "one report a ticket", given)
        if job.fails != (error is not None):
            self._broken("failure" if job.fails else "bytes", job.asked, f"it ended with {error!r}")
        job.tickets.discard(ticket)
        if not job.tickets:
            self._see(job)

    def _see(self, job: _TrialCopy) -> None:
        """Check the pages of a copy that has ended."""
        pages, way = self._pages(job), job.copies.direction
        new = (pages == job.after).all(axis=1)
        old = (pages == job.before).all(axis=1)
        if not job.fails and not (new if not job.cancelled else new | old).all():
            wrong = int((~(new | (old & bool(job.cancelled)))).sum())
            self._broken("bytes", f"{job.asked}, ended", f"{wrong} of its pages hold other bytes")
        if job.all_cancelled and not old.all():
            self._broken("cancel", f"{job.asked}, called back", "its pages changed")
        self._known[way][self._here(job)] = pages

    def _see_all(self, rule: str, asked: str) -> None:
        for way, pool in self._pools.items():
            changed = (pool != self._known[way]).any(axis=1).nonzero()[0].tolist()
            if changed:
                place = "device" if way == "in" else "host"
                self._broken(rule, asked, f"{place} pages {changed} changed, which are nobody's")

    def _here(self, job: _TrialCopy) -> list[int]:
        copies = job.copies
        return list(copies.device_pages if copies.direction == "in" else copies.host_pages)

    def _pages(self, job: _TrialCopy) -> Bytes2D:
        pages: Bytes2D = self._pools[job.copies.direction][self._here(job)]
        return pages

    def _broken(self, rule: str, asked: str, given: str) -> NoReturn:
        raise BrokenRuleError(rule, LINK_RULES[rule], asked, given)


def try_policy(policy: Policy) -> None:
    """Check a policy's fields. Raises ``BrokenRuleError``."""

    def must(rule: str, sound: bool, given: str) -> None:
        if not sound:
            raise BrokenRuleError(rule, POLICY_RULES[rule], f"{policy!r}", f"it has {given}")

    must("name", isinstance(policy.name, str) and bool(policy.name), f"name={policy.name!r}")
    must("order", policy.order in ("next_use", "last_use"), f"order={policy.order!r}")
    for flag in ("host", "look_ahead", "weighs", "limited", "foresight"):
        value = getattr(policy, flag)
        must("flags", isinstance(value, bool), f"{flag}={value!r}")
