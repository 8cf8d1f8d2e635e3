"""``scalesim doctor``: the results of ``scalesim.doctor``, as tables or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scalesim.cli.options import DoctorOptions
from scalesim.cli.output import Output
from scalesim.cli.table import amount
from scalesim.doctor import Finding, Section, Settings, examine
from scalesim.doctor.findings import Fact, Level

_STYLE: dict[Level, str] = {"error": "bold red", "warning": "yellow", "note": "dim"}


def doctor(options: DoctorOptions) -> int:
    """Exit code 0, or 1 if an engine could not run."""
    options.check()
    sections = examine(Settings(options.device, options.model, options.disk))
    worst = count(sections, "error")
    if options.json:
        print(json.dumps(report(sections), indent=2))
    else:
        show(sections, Output())
    return 1 if worst else 0


def count(sections: Sequence[Section], level: Level) -> int:
    return sum(finding.level == level for section in sections for finding in section.findings)


def report(sections: Sequence[Section]) -> dict[str, object]:
    """What ``--json`` prints: facts by section, findings with their section's name, ``ok``."""
    return {
        "ok": not count(sections, "error"),
        "facts": {section.name: section.facts for section in sections},
        "findings": [
            {"section": section.name, **asdict(finding)}
            for section in sections
            for finding in section.findings
        ],
    }


def show(sections: Sequence[Section], console: Console) -> None:
    for section in sections:
        console.print(facts_table(section))
    for section in sections:
        for finding in section.findings:
            console.print(said(section.name, finding))
    errors, warnings = count(sections, "error"), count(sections, "warning")
    verdict = f"{errors} errors, {warnings} warnings"
    console.print(verdict, style="bold red" if errors else "bold green", highlight=False)


def facts_table(section: Section) -> Table:
    table = Table(
        title=section.name, title_justify="left", title_style="bold", box=box.SIMPLE,
        show_header=False, pad_edge=False,
    )  # fmt: skip
    for name, fact in section.facts.items():
        table.add_row(Text(label(name)), Text(value(name, fact)))
    return table


def said(section: str, finding: Finding) -> Text:
    line = Text(f"{finding.level} ({section}): ", style=_STYLE[finding.level])
    line.append(finding.text, style="default")
    return line.append(f"\n    change: {finding.knob}", style="default")


def label(name: str) -> str:
    """A fact's name without its unit, which ``value`` shows."""
    for unit in ("_bytes_per_s", "_bytes", "_s"):
        name = name.removesuffix(unit)
    return name


def value(name: str, fact: Fact) -> str:
    if fact is None:
        return "none" if name.endswith(("limit_bytes", "container_cores")) else "–"
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if isinstance(fact, (int, float)):
        if name.endswith("_bytes_per_s"):
            return f"{amount(fact)}/s"
        if name.endswith("_bytes"):
            return amount(fact)
        if name.endswith("_s"):
            return f"{fact:g} s"
    return str(fact)
