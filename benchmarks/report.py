"""What a benchmark hands back: tables for people, raw figures for machines, and where it ran."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("scalesim-runtime", "torch", "transformers", "numpy")


@dataclass
class Report:
    """``figures`` is anything JSON takes. ``verdicts`` are (what, target, measured, met or not)."""

    name: str
    tables: list[Table] = field(default_factory=list)
    verdicts: list[tuple[str, str, str, bool]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def verdict(self, what: str, value: float, *, least: float | None = None,
                most: float | None = None, unit: str = "") -> None:  # fmt: skip
        """Hold ``value`` against the one bound given."""
        bound = least if least is not None else most
        assert bound is not None
        met = value >= bound if least is not None else value <= bound
        sign = "≥" if least is not None else "≤"
        self.verdicts.append((what, f"{sign} {bound:g}{unit}", f"{value:.3g}{unit}", met))

    def show(self, console: Console) -> None:
        where = environment()
        console.print(
            f"[bold]{self.name}[/bold]: {where['cpu']}, {where['cores']} cores, "
            f"Python {where['python']}, load {where['load_1min']}"
        )
        tables = [*self.tables, *([self._targets()] if self.verdicts else [])]
        for each in tables:
            console.print(each)
        for note in self.notes:
            console.print(f"- {note}", highlight=False)

    def _targets(self) -> Table:
        rows = [[what, bound, value, "yes" if met else "NO"]
                for what, bound, value, met in self.verdicts]  # fmt: skip
        return table("Targets", ["what", "target", "measured", "met"], rows)

    def write(self, path: Path) -> None:
        verdicts = [dict(zip(("what", "target", "measured", "met"), verdict, strict=True))
                    for verdict in self.verdicts]  # fmt: skip
        whole = {
            "benchmark": self.name,
            "settings": self.settings,
            "environment": environment(),
            "figures": self.figures,
            "targets": verdicts,
            "notes": self.notes,
        }
        path.write_text(json.dumps(whole, indent=2, default=str) + "\n", encoding="utf-8")


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """The first column is words, the others are numbers."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        made.add_row(*row)
    return made


def save_svg(
    path: Path, inches: tuple[float, float], draw: Callable[..., None], num_axes: int = 1
) -> None:
    """Write a plot that ``draw`` makes on axes side by side. The same plot gives the same bytes.
    Needs matplotlib, which nothing else does."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "scalesim"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, num_axes, figsize=inches, squeeze=False)
    draw(*axes[0])
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def environment() -> dict[str, Any]:
    """Versions, processor, threads. Of torch only what is loaded already."""
    torch = sys.modules.get("torch")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cpu": cpu_name(),
        "cores": num_cores(),
        "torch_threads": torch.get_num_threads() if torch else None,
        "load_1min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
    }


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
