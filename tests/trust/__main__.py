"""``python -m tests.trust``: plants every bug there is, and prints which machine saw it, how soon,
and in how few operations. Exit code 1 if one was not seen, or if what is sound was."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.trust import bugs

COLUMNS = ("bug", "in the field", "seen by", "tries", "s", "trace")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="traces are not shrunk")
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown")
    options = parser.parse_args(arguments)
    rows, misjudged = [], 0
    for bug in bugs.BUGS:
        caught = bugs.catch(bug.machine, bug.build, shrunk=not options.quick)
        misjudged += caught is None
        rows.append((bug.broken, bug.seen, *_cells(bug, caught)))
    for bug in bugs.SPEED_ONLY:
        caught = bugs.catch(bug.machine, bug.build)
        misjudged += caught is not None
        verdict = "nothing, as it must" if caught is None else f"WRONGLY: {caught.error}"
        rows.append((bug.broken, bug.seen, verdict, "–", "–", "–"))
    if options.markdown:
        for row in (COLUMNS, ("---",) * len(COLUMNS), *rows):
            print(f"| {' | '.join(row)} |")
    else:
        Console(width=120).print(_table(rows))
    print(f"{len(bugs.BUGS)} bugs and {len(bugs.SPEED_ONLY)} that are none, {misjudged} misjudged")
    return 1 if misjudged else 0


def _table(rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(title="Planted bugs", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in COLUMNS[:3] else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _cells(bug: bugs.Bug, caught: bugs.Caught | None) -> tuple[str, ...]:
    if caught is None:
        return ("NOTHING", "–", "–", "–")
    trace = "–" if caught.trace is None else str(caught.trace)
    return bug.machine.name, str(caught.attempts), f"{caught.seconds:.1f}", trace


if __name__ == "__main__":
    raise SystemExit(main())
