"""``scalesim plan``: the closed form of ``replay.sizing`` as a table, and what to change."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.table import Table

from scalesim.cli.options import PlanOptions
from scalesim.cli.output import Output
from scalesim.config import parse_bytes
from scalesim.replay.own import hardware_of, model_of
from scalesim.replay.sizing import Fit, Load, fit

_CURE = {
    "compute": "the GPU's arithmetic and reading set the rate: shorter outputs, fewer new tokens",
    "link": "the link sets the rate: a shorter private prefix, smaller adapters, more device "
    "memory, or a faster link",
    "disk": "the disk sets the rate: more host memory, a shorter private prefix, or a faster disk",
    "host memory": "state that fits nowhere is computed again: raise --host-memory, or give "
    "--disk and --disk-memory",
}


def plan(options: PlanOptions) -> int:
    """Exit code 0. Raises ``ConfigError``."""
    load = Load(
        agents=options.agents,
        active=options.active,
        shared=options.shared,
        prefix=options.prefix,
        new=options.new,
        output=options.output,
        adapter_bytes=parse_bytes(options.adapter, "--adapter"),
    )
    model = model_of(options.model)
    hardware = hardware_of(options.hardware)
    host_bytes = parse_bytes(options.host_memory, "--host-memory")
    result = fit(load, model, hardware, host_bytes, options.disk_of())
    if options.json:
        print(json.dumps(asdict(result), indent=2))
        return 0
    console = Output()
    console.print(_table(options, result))
    console.print(f"{verdict(options, result)}", highlight=False)
    return 0


def verdict(options: PlanOptions, fit: Fit) -> str:
    fits = "fit" if fit.fits else "do not all fit"
    return (
        f"{options.agents} agents {fits}. [bold]{fit.turns_per_s:.1f} turns/s, "
        f"{fit.tick_s:.1f} s a tick[/] ({options.active:.0%} active). What binds: "
        f"[bold]{fit.binds}[/]; {_CURE[fit.binds]}."
    )


def _table(options: PlanOptions, fit: Fit) -> Table:
    table = Table(title=f"{options.model} on {options.hardware}", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for what, figure in (
        ("an agent's state", f"{fit.state_bytes / 1e6:.1f} MB"),
        ("device pool", f"{fit.pool_bytes / 1e9:.1f} GB"),
        ("agents on the device", f"{fit.resident:.0f} of {options.agents}"),
        ("running at once", f"{fit.running}"),
        ("host memory needed", f"{fit.host_needed_bytes / 1e9:.1f} GB"),
        ("host memory there", f"{fit.host_bytes / 1e9:.1f} GB"),
        *(
            (
                ("disk needed", f"{fit.disk_needed_bytes / 1e9:.1f} GB"),
                ("turns that read their state from it", f"{fit.on_disk:.0%}"),
                ("disk a turn", f"{fit.disk_s * 1e3:.2f} ms"),
            )
            if options.disk is not None
            else ()
        ),
        ("turns that load their state", f"{fit.missing - fit.rebuilt:.0%}"),
        ("turns that compute it again", f"{fit.rebuilt:.0%}"),
        ("compute a turn", f"{fit.compute_s * 1e3:.2f} ms"),
        ("link a turn", f"{fit.link_s * 1e3:.2f} ms"),
    ):
        table.add_row(what, figure)
    return table
