"""What hints are worth: bytes, waits and turns of each policy, on traces of real systems and on
W1 to W5.

Give paths of traces in any format that ``scalesim replay`` reads; none comes with the project. A
town's day is replayed in three forms: alone, with more running than its pool holds, and eight such
days at once, each shifted against the others. Of another trace, the first ticks with about
``--calls`` calls. Virtual time: same traces and same seed, same table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.report import Report, table
from scalesim.errors import ConfigError
from scalesim.replay import formats
from scalesim.replay.arms import Outcome, play
from scalesim.replay.hardware import Order
from scalesim.replay.knobs import HintMode
from scalesim.replay.roof import roof
from scalesim.replay.scenario import Scenario, Sizes, of_trace, of_workload
from scalesim.replay.workloads import workload
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick

# policy, what it is told (nothing matters to those that take no hints), and the order of service
Arm: TypeAlias = "tuple[str, HintMode, Order]"
ARMS: tuple[Arm, ...] = (
    ("deadline", "exact", "longest"),
    ("deadline", "none", "longest"),
    ("lru-swap", "none", "longest"),
    ("levels", "exact", "longest"),
    ("early", "exact", "longest"),
    ("ttl", "none", "longest"),
    ("tail-lru", "none", "longest"),
    ("resident", "exact", "longest"),  # hints say who has most calls to come
    ("deadline", "exact", "arrival"),
    ("resident", "exact", "arrival"),
)
WRONG: tuple[Arm, ...] = (("deadline", "inverted", "longest"), ("deadline", "random", "longest"))
BY_ARRIVAL = ", by arrival"
LINKS = (1.0, 0.1)
WARMUP = 2
# of a town's day: own tokens and output of a call, as an agent's memory stream has them
OWN, OUT = 2048, 32
# copies of the day, share of the state that is resident, most running
FORMS = {"alone": (1, 0.4, 4), "crowded": (1, 0.25, 8), "eight": (8, 0.25, 16)}
# agents, ticks and most running: a third of what a quarter of the state holds
WORKLOADS: dict[str, tuple[dict[str, Any], int]] = {
    "w1": ({"agents": 120, "ticks": 16}, 10),
    "w2": ({"agents": 80, "ticks": 16}, 6),
    "w3": ({"agents": 80, "ticks": 60}, 6),
    "w4": ({"agents": 60, "ticks": 5}, 5),
    "w4-8k": ({"agents": 120, "ticks": 5, "private": 8192}, 16),
    "w5": ({"agents": 40, "ticks": 40}, 3),
}
SPREAD = 0.5  # lengths of texts vary, or calls that begin together end together


@dataclass(frozen=True)
class Case:
    """A trace or a workload, with the scenario of each kind of hints."""

    name: str
    sizes: Sizes
    scenarios: dict[HintMode, Scenario]

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(arm for arm in (*ARMS, *WRONG) if arm[1] in self.scenarios)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", nargs="*", type=Path, metavar="TRACE")
    parser.add_argument("--ticks", type=int, help="of a town's day, the first so many")
    parser.add_argument("--calls", type=int, default=300, help="of another trace, about so many")
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS, metavar="NAME",
                        help="of a town's day")  # fmt: skip
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=WORKLOADS,
                        metavar="NAME", help="to put beside the traces; none if empty")  # fmt: skip
    parser.add_argument("--links", nargs="*", type=float, default=list(LINKS), metavar="SHARE",
                        help="of the link's rate; the time goes with their number")  # fmt: skip
    parser.add_argument("--policies", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--hardware", default="h100")
    parser.add_argument("--model", default="qwen2.5-7b")


def run(options: argparse.Namespace) -> Report:
    report, rows = Report("replay-hints"), []
    for case in cases(options):
        for link in options.links[:1] if options.quick else options.links:
            rows += study(report, case, link, options.policies)
    report.tables.append(table(f"{options.model} on {options.hardware}", COLUMNS, rows))
    return report


# -- what is replayed ------------------------------------------------------------------------------


def cases(options: argparse.Namespace) -> Iterator[Case]:
    sizes = Sizes(options.hardware, options.model)
    for path in options.traces:
        if not path.is_file():
            raise ConfigError(f"{path} is no file; give paths of traces")
        form = formats.detect(path)
        ticks = formats.read(path, form)
        if form.name == "town":
            for name in options.forms:
                copies, residency, running = FORMS[name]
                day = shifted([longer(tick) for tick in ticks], copies)[: options.ticks]
                own = replace(sizes, residency=residency, running=running)
                yield of_ticks(f"{path.stem}, {name}", day, own)
        else:
            ticks = formats.gathered(ticks, 10.0) if form.in_seconds else ticks
            yield of_ticks(path.stem, first(ticks, options.calls), replace(sizes, running=16))
    for name in options.workloads:
        changes, running = WORKLOADS[name]
        if options.quick:
            changes = {"agents": 20, "ticks": 4}
        kind, knobs = workload(name[:2], seed=options.seed, spread=SPREAD, **changes)
        own = replace(sizes, running=running)
        hints: tuple[HintMode, ...] = ("exact", "none", "inverted", "random")
        yield Case(name, own, {
            told: of_workload(kind, replace(knobs, hints=told), own) for told in hints
        })  # fmt: skip


def of_ticks(name: str, ticks: list[TraceTick], sizes: Sizes) -> Case:
    return Case(
        name,
        sizes,
        {
            "exact": of_trace(name, ticks, sizes, "exact"),
            "none": of_trace(name, ticks, sizes, "none"),
        },
    )


def longer(tick: TraceTick) -> TraceTick:
    """A tick of a town whose agents have ``OWN`` tokens of their own, and say ``OUT``."""
    calls = []
    for call in tick.calls:
        town, own, news = call.prompt
        prompt = (town, own._replace(length=OWN), news)
        calls.append(replace(call, prompt=prompt, output=call.output._replace(length=OUT)))
    return replace(tick, calls=calls)


def shifted(ticks: Sequence[TraceTick], copies: int) -> list[TraceTick]:
    """``copies`` of a day at once, of as many towns; each begins an equal share of the day after
    the one before, and goes on with its morning."""
    length = int(ticks[-1].time) + 1
    found: dict[int, list[TraceCall]] = {}
    for copy in range(copies):
        for tick in ticks:
            time = (int(tick.time) + copy * length // copies) % length
            found.setdefault(time, []).extend(_of_town(call, copy) for call in tick.calls)
    return [TraceTick(float(time), [], calls) for time, calls in sorted(found.items())]


def _of_town(call: TraceCall, copy: int) -> TraceCall:
    def renamed(piece: TracePiece) -> TracePiece:
        return piece._replace(content=f"{piece.content} of town {copy}")

    town, *own = call.prompt
    return replace(
        call,
        agent=f"{call.agent} of town {copy}",
        prompt=(town, *map(renamed, own)),
        output=renamed(call.output),
    )


def first(ticks: Sequence[TraceTick], calls: int) -> list[TraceTick]:
    """The first ticks until there are ``calls``."""
    found: list[TraceTick] = []
    for tick in ticks:
        found.append(tick)
        calls -= len(tick.calls)
        if calls <= 0:
            break
    return found


# -- the table -------------------------------------------------------------------------------------

COLUMNS = [
    "trace or workload", "link", "policy, hints", "turns/s", "of roof", "GB loaded", "GB rebuilt",
    "× Belady", "waits", "s/tick p50", "p95", "+ order", "+ pool",
]  # fmt: skip


def study(
    report: Report, case: Case, link: float, policies: Sequence[str] | None
) -> list[list[str]]:
    sizes = replace(case.sizes, link_share=link)
    outcomes: dict[str, Outcome] = {}
    roofs: dict[str, float] = {}
    for policy, told, order in case.arms:
        if policies and policy not in policies:
            continue
        scenario = case.scenarios[told]
        machine = scenario.machine(replace(sizes, order=order))
        print(f"{case.name}, link {link:g}: {policy}, {told}, {order}", file=sys.stderr, flush=True)
        what = policy if policy != "deadline" and told == "none" else f"{policy}, {told}"
        what += BY_ARRIVAL if order == "arrival" else ""
        outcomes[what], _ = play(machine, policy, scenario.ticks(), warmup=WARMUP, witness=True)
        limit = roof(machine, scenario.ticks(), WARMUP)
        roofs[what] = limit.resident_turns_per_s if policy == "resident" else limit.turns_per_s
    rows = []
    for what, outcome in outcomes.items():
        most, over = roofs[what], outcome.over_belady
        rows.append([
            "" if rows else case.name, "" if rows else f"{link:g}", what,
            f"{outcome.turns_per_s:.2f}", f"{outcome.turns_per_s / most:.3f}",
            f"{outcome.loaded_bytes / 1e9:.1f}", f"{outcome.rebuilt_bytes / 1e9:.1f}",
            "-" if over is None else f"{over:.2f}", f"{outcome.waited:.1%}",
            *(f"{seconds:.2f}" for seconds in outcome.tick_s), *gap(what, outcomes, roofs),
        ])  # fmt: skip
        report.figures.setdefault(f"{case.name}, {link:g}", {})[what] = {
            "turns_per_s": outcome.turns_per_s, "roof": most, "over_belady": over,
            "gb_loaded": outcome.loaded_bytes / 1e9, "gb_rebuilt": outcome.rebuilt_bytes / 1e9,
            "waited": outcome.waited, "tick_s": outcome.tick_s,
        }  # fmt: skip
    if not policies:
        judge(report, f"{case.name}, {link:g}", outcomes)
    return rows


def gap(what: str, outcomes: dict[str, Outcome], roofs: dict[str, float]) -> tuple[str, str]:
    """How much longer ``resident`` takes than its roof, by the same order of service, and how much
    longer ``what`` takes than ``resident``."""
    resident = "resident, exact" + (BY_ARRIVAL if what.endswith(BY_ARRIVAL) else "")
    if resident not in outcomes:
        return "-", "-"
    best = outcomes[resident].turns_per_s
    return f"{roofs[resident] / best - 1:.1%}", f"{best / outcomes[what].turns_per_s - 1:.1%}"


def judge(report: Report, case: str, outcomes: dict[str, Outcome]) -> None:
    exact, silent = outcomes["deadline, exact"], outcomes["deadline, none"]
    lru = outcomes["lru-swap"]
    if exact.over_belady is not None:
        report.verdict(f"{case}: exact hints, bytes over Belady's", exact.over_belady, most=1.10)
    for what, more, less in (
        ("exact hints, bytes over those without", exact, silent),
        ("no hints, bytes over lru-swap's", silent, lru),
    ):
        if less.loaded_bytes:
            share = (more.loaded_bytes + more.rebuilt_bytes) / (
                less.loaded_bytes + less.rebuilt_bytes
            )
            report.verdict(f"{case}: {what}", share, most=1.0)
    report.verdict(f"{case}: exact hints, waits", exact.waited, most=0.01)
    for name in ("resident, exact", "lru-swap", "levels, exact", "early, exact", "ttl", "tail-lru"):
        share = exact.turns_per_s / outcomes[name].turns_per_s
        report.verdict(f"{case}: exact hints, turns/s over {name}", share, least=0.99)
    report.verdict(
        f"{case}: no hints, turns/s over lru-swap", silent.turns_per_s / lru.turns_per_s, least=1.0
    )
    for name in ("deadline, exact", "resident, exact"):
        share = outcomes[name].turns_per_s / outcomes[name + BY_ARRIVAL].turns_per_s
        report.verdict(f"{case}: {name}, turns/s over arrival", share, least=0.99)
    for told in ("inverted", "random"):
        if (wrong := outcomes.get(f"deadline, {told}")) is not None:
            share = wrong.turns_per_s / lru.turns_per_s
            report.verdict(f"{case}: {told} hints, turns/s over lru-swap", share, least=0.95)
