"""Each rule of a contract is tried directly: a part that breaks one is told which, and what it was
asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalesim.cli import main
from scalesim.core import Bools, Bytes2D, Fence
from scalesim.errors import AdapterError
from scalesim.memory.eviction.policies import POLICIES, Policy
from scalesim.memory.links.link import Copies, Direction, LinkError, Timeline
from scalesim.memory.pools.page_pool import PagePool
from scalesim.testing.bed import hostile_link
from scalesim.testing.contracts import (
    LINK_RULES,
    POLICY_RULES,
    POOL_RULES,
    BrokenRuleError,
    try_link,
    try_policy,
    try_pool,
)
from scalesim.testing.hostile_link import DeviceEvent, HostileLink

# -- allocators -----------------------------------------------------------------------------------


class Plain:
    """A sound allocator, small enough to break in one method."""

    def __init__(self, num_pages: int, *, first: int = 0) -> None:
        self.num_pages, self.first = num_pages, first
        self.pages = list(range(first, num_pages))
        self.fences = dict.fromkeys(range(num_pages), -1)

    @property
    def num_free(self) -> int:
        return len(self.pages)

    @property
    def num_usable(self) -> int:
        return self.num_pages - self.first

    @property
    def num_used(self) -> int:
        return self.num_usable - self.num_free

    def allocate(self, count: int) -> list[int] | None:
        if count > len(self.pages):
            return None
        given, self.pages = self.pages[:count], self.pages[count:]
        return given

    def claim(self, pages: Sequence[int]) -> None:
        self.pages = [page for page in self.pages if page not in pages]

    def free(self, pages: Sequence[int], fence: int = -1) -> None:
        assert len(set(pages)) == len(pages), pages
        for page in pages:
            assert self.first <= page < self.num_pages and page not in self.pages, page
            self.fences[page] = fence
        self.pages += pages

    def fence(self, pages: Sequence[int]) -> int:
        return max((self.fences[page] for page in pages), default=-1)

    def free_mask(self) -> Bools:
        return np.isin(np.arange(self.num_pages), self.pages)

    def check(self) -> None:
        assert len(set(self.pages)) == len(self.pages)


class GivesFewer(Plain):
    def allocate(self, count: int) -> list[int] | None:
        return super().allocate(count - 1 if count > 2 else count)


class GivesMore(Plain):
    def allocate(self, count: int) -> list[int] | None:
        return super().allocate(min(count + 1, max(count, self.num_free)))


class GivesWhatIsLeft(Plain):
    def allocate(self, count: int) -> list[int] | None:
        return super().allocate(min(count, self.num_free))


class GivesASet(Plain):
    def allocate(self, count: int) -> Any:
        pages = super().allocate(count)
        return None if pages is None else set(pages)


class GivesFloats(Plain):
    def allocate(self, count: int) -> Any:
        pages = super().allocate(count)
        return None if pages is None else [*map(float, pages)]


class Exits(Plain):
    """Which must not end the check as if nothing had been found."""

    def allocate(self, count: int) -> list[int] | None:
        raise SystemExit(0)


class GivesUpEarly(Plain):
    """Keeps one back."""

    def allocate(self, count: int) -> list[int] | None:
        return None if count and count == self.num_free else super().allocate(count)


class NeedsARun(Plain):
    """Fails where pages are there, but not side by side."""

    def allocate(self, count: int) -> list[int] | None:
        self.pages.sort()
        first = self.pages[:count]
        return super().allocate(count) if not first or first[-1] - first[0] < count else None


class LosesOnRefusal(Plain):
    def allocate(self, count: int) -> list[int] | None:
        given = super().allocate(count)
        if given is None and self.pages:
            self.pages.pop()
        return given


class GivesTwice(Plain):
    def allocate(self, count: int) -> list[int] | None:
        given = super().allocate(count)
        return given if not given or count < 3 else [*given[:-1], given[0]]


class GivesOwned(Plain):
    """The page given last comes again."""

    last: int | None = None

    def allocate(self, count: int) -> list[int] | None:
        given = super().allocate(count)
        if given and self.last is not None and self.last not in self.pages and count > 1:
            given[0] = self.last
        self.last = given[-1] if given else self.last
        return given


class GivesTheNullPage(Plain):
    def __init__(self, num_pages: int, *, first: int = 0) -> None:
        super().__init__(num_pages, first=0)
        self.first = first


class Miscounts(Plain):
    @property
    def num_used(self) -> int:
        return self.num_usable - self.num_free + (self.num_free == 1)


class HidesFree(Plain):
    def free_mask(self) -> Bools:
        return np.isin(np.arange(self.num_pages), self.pages[:5])


class LosesFreed(Plain):
    def free(self, pages: Sequence[int], fence: int = -1) -> None:
        super().free(pages, fence)
        if len(pages) > 2:
            self.pages.remove(pages[-1])


class TakesAnything(Plain):
    def free(self, pages: Sequence[int], fence: int = -1) -> None:
        known = dict.fromkeys(p for p in pages if p in self.fences and p not in self.pages)
        super().free(list(known), fence)


class RaisesAnother(Plain):
    def free(self, pages: Sequence[int], fence: int = -1) -> None:
        try:
            super().free(pages, fence)
        except AssertionError as error:
            raise KeyError(pages[0]) from error


class ForgetsFences(Plain):
    def fence(self, pages: Sequence[int]) -> int:
        return -1


class ClaimsOthers(Plain):
    def claim(self, pages: Sequence[int]) -> None:
        self.pages = self.pages[len(pages) :]


class FenceOfTheFirst(Plain):
    def fence(self, pages: Sequence[int]) -> int:
        return self.fences[pages[0]] if pages else -1


class ForgetsFencesGiven(Plain):
    """At once, where they must be asked for behind ``allocate``."""

    def allocate(self, count: int) -> list[int] | None:
        given = super().allocate(count)
        self.fences.update(dict.fromkeys(given or [], -1))
        return given


class KeepsOldFences(Plain):
    """The largest ever."""

    def free(self, pages: Sequence[int], fence: int = -1) -> None:
        old = {page: self.fences.get(page, -1) for page in pages}
        super().free(pages, fence)
        self.fences.update({page: max(fence, old[page] * 2) for page in pages})


class SharesItsList(Plain):
    def __init__(self, num_pages: int, *, first: int = 0) -> None:
        super().__init__(num_pages, first=first)
        self.given: list[int] = []

    def allocate(self, count: int) -> list[int] | None:
        given = super().allocate(count)
        self.given = given or []
        self.owes = len(self.given)
        return given

    @property
    def num_free(self) -> int:
        return len(self.pages) + (len(self.given) < getattr(self, "owes", 0))


class SortsItsArgument(Plain):
    def free(self, pages: Sequence[int], fence: int = -1) -> None:
        super().free(pages, fence)
        if isinstance(pages, list):
            pages.clear()


class Stumbles(Plain):
    """Over an empty request."""

    def allocate(self, count: int) -> list[int] | None:
        return [self.pages[len(self.pages)]] if count == 0 else super().allocate(count)


class ChecksWrongly(Plain):
    def check(self) -> None:
        assert self.pages == sorted(self.pages), "the pages are not in order"


POOLS: list[tuple[str, Any]] = [
    ("exact", GivesFewer),
    ("exact", GivesMore),
    ("exact", GivesASet),
    ("exact", GivesFloats),
    ("all or nothing", GivesWhatIsLeft),
    ("all or nothing", GivesUpEarly),
    ("all or nothing", NeedsARun),
    ("all or nothing", LosesOnRefusal),
    ("no page twice", GivesTwice),
    ("no page twice", GivesOwned),
    ("fresh", GivesTheNullPage),
    ("claim", ClaimsOthers),
    ("counts", Miscounts),
    ("fresh", HidesFree),
    ("free", LosesFreed),
    ("refusal", TakesAnything),
    ("refusal", RaisesAnother),
    ("fences", ForgetsFences),
    ("fences", FenceOfTheFirst),
    ("fences", ForgetsFencesGiven),
    ("fences", KeepsOldFences),
    ("apart", SharesItsList),
    ("apart", SortsItsArgument),
    ("check", ChecksWrongly),
    ("errors", Stumbles),
    ("errors", Exits),
]
SEEDS = range(12)


def broken(act: Callable[[int], None]) -> set[str]:
    """The rules that were broken with some seed."""
    found = set()
    for seed in SEEDS:
        try:
            act(seed)
        except BrokenRuleError as error:
            assert f"rule {error.rule!r}" in str(error) and "; " in str(error)
            found.add(error.rule)
    return found


@pytest.mark.parametrize(("rule", "pool"), POOLS)
def test_an_allocator_that_breaks_a_rule_is_told_which(rule: str, pool: Any) -> None:
    assert rule in broken(lambda seed: try_pool(pool, seed, 60))


@pytest.mark.parametrize("pool", [Plain, PagePool])
def test_allocators_that_are_right(pool: Any) -> None:
    assert not broken(lambda seed: try_pool(pool, seed, 60))


# -- links ----------------------------------------------------------------------------------------


class OneTicket(HostileLink):
    """Of submissions that are all cut alike, the same number."""

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        tickets = super().submit(copies, after, urgent=urgent)
        return [tickets[0]] * len(tickets) if len(tickets) > 1 else tickets


class NoTicket(HostileLink):
    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        super().submit(copies, after, urgent=urgent)
        return []


class Early(HostileLink):
    """Says that a copy has ended when it has not begun."""

    def poll(self) -> list[tuple[int, Exception | None]]:
        tickets = (event.number for event in self.events() if event.queue != "seen")
        early = next((ticket for ticket in tickets if self.cancel(ticket)), None)
        return super().poll() + ([] if early is None else [(early, None)])


class Elsewhere(HostileLink):
    """A page too far, which is nobody's."""

    def do(self, event: DeviceEvent) -> None:
        super().do(event)
        self.host[-1] += 1


class Twice(HostileLink):
    def poll(self) -> list[tuple[int, Exception | None]]:
        said = super().poll()
        return said + said[-1:]


class Never(HostileLink):
    """Every fifth ticket is not reported."""

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        tickets = super().submit(copies, after, urgent=urgent)
        for ticket in tickets:
            if ticket % 5 == 0:
                self.cancel(ticket)
        return tickets


class Impatient(HostileLink):
    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        return super().submit(copies, None, urgent=urgent)


class CancelsWhatRuns(HostileLink):
    """Says that it called back what it copies all the same."""

    def cancel(self, ticket: int) -> bool:
        return ticket in self.given

    given: frozenset[int] = frozenset()

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        tickets = super().submit(copies, after, urgent=urgent)
        self.given |= set(tickets)
        return tickets

    def poll(self) -> list[tuple[int, Exception | None]]:
        ended = super().poll()
        self.given -= {ticket for ticket, _ in ended}
        return ended


class CancelsTheDead(HostileLink):
    def cancel(self, ticket: int) -> bool:
        super().cancel(ticket)
        return True


class ReportsCancelled(HostileLink):
    gone: tuple[int, ...] = ()

    def cancel(self, ticket: int) -> bool:
        cancelled = super().cancel(ticket)
        self.gone += (ticket,) * cancelled
        return cancelled

    def poll(self) -> list[tuple[int, Exception | None]]:
        gone, self.gone = self.gone, ()
        return super().poll() + [(ticket, None) for ticket in gone]


class SwallowsErrors(HostileLink):
    def poll(self) -> list[tuple[int, Exception | None]]:
        return [(ticket, None) for ticket, _ in super().poll()]


class FailsAtTimes(HostileLink):
    def poll(self) -> list[tuple[int, Exception | None]]:
        return [(ticket, LinkError("no") if ticket % 7 == 0 else error)
                for ticket, error in super().poll()]  # fmt: skip


class WaitsWrongly(HostileLink):
    def wait(self, timeout_s: float) -> bool:
        super().wait(timeout_s)
        return True


class ForgetsItsQueue(HostileLink):
    def queued_bytes(self, direction: Direction) -> int:
        return 0


class NeverEmpties(HostileLink):
    def queued_bytes(self, direction: Direction) -> int:
        return super().queued_bytes(direction) + 1


class NoRate(HostileLink):
    def rate(self, direction: Direction) -> float:
        return 0.0


class IgnoresFirst(HostileLink):
    """Reads a source from its beginning."""

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        return super().submit(replace(copies, first=0), after, urgent=urgent)


LINKS: list[tuple[str, Any]] = [
    ("tickets", OneTicket),
    ("tickets", NoTicket),
    ("bytes", Early),
    ("bytes", Elsewhere),
    ("bytes", FailsAtTimes),
    ("bytes", IgnoresFirst),
    ("once", Twice),
    ("all", Never),
    ("fence", Impatient),
    ("cancel", CancelsWhatRuns),
    ("cancel", CancelsTheDead),
    ("cancel", ReportsCancelled),
    ("failure", SwallowsErrors),
    ("wait", WaitsWrongly),
    ("queue", ForgetsItsQueue),
    ("queue", NeverEmpties),
    ("rate", NoRate),
]


@pytest.mark.parametrize(("rule", "link"), LINKS)
def test_a_link_that_breaks_a_rule_is_told_which(rule: str, link: Any) -> None:
    def make(device: Bytes2D, host: Bytes2D, timeline: Timeline, seed: int) -> Any:
        return link(device, host, timeline, seed=seed)

    assert rule in broken(lambda seed: try_link(make, seed, 6))


def test_a_link_that_is_right() -> None:
    assert not broken(lambda seed: try_link(hostile_link, seed, 6))
    assert issubclass(AdapterError, Exception)


# -- policies -------------------------------------------------------------------------------------

SOUND = POLICIES["deadline"]
BAD: list[tuple[str, Any]] = [
    ("order", replace(SOUND, order="random")),  # type: ignore[arg-type]
    ("flags", replace(SOUND, host=1)),  # type: ignore[arg-type]
    ("flags", replace(SOUND, look_ahead=None)),  # type: ignore[arg-type]
    ("name", replace(SOUND, name="")),
]


@pytest.mark.parametrize(("rule", "policy"), BAD)
def test_a_policy_that_breaks_a_rule_is_told_which(rule: str, policy: Policy) -> None:
    assert broken(lambda seed: try_policy(policy)) == {rule}


def test_every_rule_has_its_breach_and_our_own_keep_them() -> None:
    assert {rule for rule, _ in POOLS} == {*POOL_RULES, "errors"}
    assert {rule for rule, _ in LINKS} == set(LINK_RULES)
    assert {rule for rule, _ in BAD} == set(POLICY_RULES)
    for policy in POLICIES.values():
        try_policy(policy)


def test_the_page_has_the_rules() -> None:
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    for rules in (POOL_RULES, LINK_RULES, POLICY_RULES):
        for rule, says in rules.items():
            assert f"| `{rule}` | {says} |" in page


LINK_THAT_LIES = staticmethod(
    lambda device, host, timeline, seed: Twice(device, host, timeline, seed=seed)
).__func__
POLICY_OF_CHANCE = BAD[0][1]


@pytest.mark.parametrize(
    ("kind", "name", "rule"),
    [
        ("allocator", "GivesFewer", "exact"),
        ("link", "LINK_THAT_LIES", "once"),
        ("policy", "POLICY_OF_CHANCE", "order"),
    ],
)
def test_the_command_names_the_rule(
    kind: str, name: str, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", kind, f"{__name__}:{name}", "--walks", "6"]) == 1
    said = capsys.readouterr().out
    assert f"rule '{rule}'" in said
    again = said.strip().splitlines()[-1].split("scalesim ", 1)[1].split()
    assert main(again) == 1  # the line that it prints repeats it
    number = said.split("walk ", 1)[1].split(" ")[0]
    assert capsys.readouterr().out == said.replace(f"walk {number} ", "walk 1 ", 1)
