"""``python -m tests.trust faults|bugs``: the fault sweep, and the score of planted bugs.

Both print a table. ``faults`` writes what is done to ``--resume FILE``, if given, and goes on there
when it is started again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.trust import bugs, faults
from tests.trust.workload import Lost, oracle


def sweep(options: argparse.Namespace, console: Console) -> int:
    """Every point, every N, once and for ever, with one step in flight and with two."""
    done: Counter[str] = Counter()
    if options.resume is not None and options.resume.exists():
        done.update(json.loads(options.resume.read_text(encoding="utf-8")))
    texts, start_s = oracle(), time.process_time()
    totals: Counter[str] = Counter(done)
    for flights in (1,) if options.quick else (1, 2):
        reached = faults.reach(flights)
        for name in faults.POINTS:
            for mode in faults.MODES:
                key = f"{flights} {mode} {name}"
                if key in done:
                    continue
                _one_point(name, mode, flights, faults.nths(reached[name], options.quick), texts,
                           totals)  # fmt: skip
                totals[key] = 1
                if options.resume is not None:
                    options.resume.write_text(json.dumps(totals), encoding="utf-8")
    console.print(_sweep_table(totals))
    console.print(f"{time.process_time() - start_s:.0f} s of processor time")
    return 1 if totals["failed"] else 0


def _one_point(
    name: str, mode: str, flights: int, nths: list[int], texts: dict[str, list[faults.Text]],
    totals: Counter[str],
) -> None:  # fmt: skip
    for nth in nths:
        totals[f"{mode}: runs"] += 1
        try:
            outcome = faults.run(name, nth, mode, texts, flights)
        except Lost as error:
            totals["failed"] += 1
            print(f"FAILED: {name}, call {nth}, {mode}, {flights} in flight: {error}", flush=True)
            continue
        totals[f"{mode}: engine began anew"] += outcome.restarts > 0
        totals[f"{mode}: some agent got a typed error"] += outcome.hit > 0
        totals[f"{mode}: engine died, every call told"] += outcome.died
        totals[f"{mode}: pages taken out of use"] += outcome.lost_pages


def _sweep_table(totals: Counter[str]) -> Table:
    table = Table(title=f"Nth-call faults at {len(faults.POINTS)} points", title_justify="left")
    table.add_column("runs")
    for mode in faults.MODES:
        table.add_column(mode, justify="right")
    for what in ("runs", "engine began anew", "some agent got a typed error",
                 "engine died, every call told", "pages taken out of use"):  # fmt: skip
        table.add_row(what, *(str(totals[f"{mode}: {what}"]) for mode in faults.MODES))
    table.add_row("lost agents, wrong texts, leaks, hangs", str(totals["failed"]), "")
    return table


def score(options: argparse.Namespace, console: Console) -> int:
    """Every planted bug, and what saw it."""
    table = Table(title="Planted bugs", title_justify="left")
    for name in ("bug", "in the field", "seen by", "tries", "s", "trace"):
        table.add_column(name, justify="left" if name in ("bug", "in the field", "seen by")
                         else "right")  # fmt: skip
    missed, every = 0, bugs.bugs()
    for bug in every:
        caught = bugs.catch(bug, shrunk=not options.quick)
        if caught is None:
            missed += 1
            table.add_row(bug.broken, bug.seen, "NOTHING", "", "", "")
        else:
            trace = "–" if caught.trace is None else str(caught.trace)
            table.add_row(bug.broken, bug.seen, bug.machine.name, str(caught.attempts),
                          f"{caught.seconds:.1f}", trace)  # fmt: skip
    console.print(table)
    console.print(f"{len(every) - missed} of {len(every)} caught")
    return 1 if missed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__)
    parser.add_argument("what", choices=("faults", "bugs"))
    parser.add_argument("--quick", action="store_true", help="a few N a point; no shrinking")
    parser.add_argument("--resume", type=Path, help="file that keeps what is done")
    options = parser.parse_args(arguments)
    console = Console(width=120)
    return {"faults": sweep, "bugs": score}[options.what](options, console)


if __name__ == "__main__":
    raise SystemExit(main())
