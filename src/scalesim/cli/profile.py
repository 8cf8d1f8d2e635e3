"""``scalesim profile LOG``: reads a log, prints its main figures, writes a page and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from scalesim.checks import shown
from scalesim.cli.options import ProfileOptions
from scalesim.cli.output import Output
from scalesim.profile.readers import read_log
from scalesim.profile.report import check_plots, page
from scalesim.profile.statistics import Profile, characterise


def profile(options: ProfileOptions) -> int:
    """Exit code 0. Raises ``ConfigError``, ``TraceError``. With ``--out`` ending in .json there is
    no page."""
    options.check()
    if options.out != options.figures:
        check_plots()
    form, calls = read_log(options.log, options.format, options.tick)
    found = characterise(calls, options.log.name, form, options.day)
    figures = options.figures
    if options.out != figures:
        options.out.write_text(page(found), encoding="utf-8")
    figures.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    console = Output()
    console.print("\n".join(lines(found)), highlight=False, markup=False)
    written = figures if options.out == figures else f"{options.out} and {figures}"
    console.print(f"Written: {written}", markup=False, highlight=False)
    return 0


def lines(found: Profile) -> list[str]:
    """The figures to look at first."""
    totals = found.totals
    quarter = next(row for row in found.misses if row["share"] == 0.25)
    rows = [
        f"{shown(found.source)} ({found.form}): {totals['calls']} calls of {totals['agents']} "
        f"agents in {totals['ticks']:.0f} ticks; "
        f"{totals['active share of a tick']:.1%} active in a tick",
        f"with a quarter of the agents resident, LRU misses {quarter['lru']:.0%} and Belady "
        f"{quarter['belady']:.0%} of the activations that could hit",
    ]
    for row in found.predicted:
        rows.append(
            f"{row['source']}: said something of {row['said']:.0%}; on time {row['on_time']:.0%}, "
            f"early {row['early']:.0%}, late {row['late']:.0%}, never {row['never']:.0%}"
        )
    for row in found.breaks[:3]:
        template = shown(row["template"]) if row["template"] else "(none)"
        rows.append(
            f"template {template}: prompts of {row['prompt_len']:.0f} tokens "
            f"part at {row['part_at']:.0f}; {row['prefill']:.0f} are computed a call, "
            f"{row['gain']:.0f} fewer with what changes at the end"
        )
    return rows
