"""``python -m benchmarks NAME [options]``: run one benchmark, print its tables, keep its figures.

Compare figures within one run only: two runs differ by whatever else the machine did.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import (
    adapters,
    async_calls,
    engine,
    guard,
    half_weights,
    kv_dtype,
    learned,
    lora,
    models,
    overhead,
    plugin_vllm,
    replay_bound,
    replay_curves,
    replay_figures,
    replay_hints,
    replay_models,
    replay_scale,
    replay_tiers,
    rows,
    server,
    snapshots,
    sources,
    streaming,
    structure,
    tiers,
)

BENCHMARKS = {
    "engine": engine,
    "overhead": overhead,
    "async": async_calls,
    "adapters": adapters,
    "guard": guard,
    "half-weights": half_weights,
    "kv-dtype": kv_dtype,
    "learned": learned,
    "lora": lora,
    "models": models,
    "plugin-vllm": plugin_vllm,
    "replay-bound": replay_bound,
    "replay-curves": replay_curves,
    "replay-figures": replay_figures,
    "replay-hints": replay_hints,
    "replay-models": replay_models,
    "replay-scale": replay_scale,
    "replay-tiers": replay_tiers,
    "rows": rows,
    "server": server,
    "snapshots": snapshots,
    "sources": sources,
    "streaming": streaming,
    "structure": structure,
    "tiers": tiers,
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=_Formatter
    )
    names = top.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, module in BENCHMARKS.items():
        about = module.__doc__ or ""
        one = names.add_parser(
            name, help=about.split("\n\n")[0], description=about, formatter_class=_Formatter
        )
        module.add_arguments(one)
        one.add_argument("--quick", action="store_true", help="a small run, to see that it works")
        one.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
        one.add_argument("--out", type=Path, help="write the raw figures to this JSON file")
    return top


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The text as it was written, and every option's default."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    report = BENCHMARKS[options.name].run(options)
    report.settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
    }
    console = Console()
    report.show(console if console.is_terminal else Console(width=150))
    if options.out is not None:
        report.write(options.out)


if __name__ == "__main__":
    main()
