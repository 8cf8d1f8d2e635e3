"""What the GPU benchmark hands back: ``gpu.json`` for machines, ``gpu.md`` for people.

Plain standard library: a GPU machine may have little installed.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

NO_ERROR = "no error"
PACKAGES = ("torch", "triton", "numpy", "transformers", "flashinfer-python", "flash-attn", "xxhash")


@dataclass(frozen=True)
class Line:
    """A figure held against a bound. A missed floor fails the run; a missed goal is a gap."""

    what: str
    kind: str  # "floor" or "goal"
    bound: str
    value: float
    met: bool


@dataclass
class Table:
    title: str
    columns: Sequence[str]
    rows: list[Sequence[Any]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", row(self.columns), row(["---"] * len(self.columns))]
        return "\n".join([*lines, *(row([cell(each) for each in cells]) for cells in self.rows)])


@dataclass
class Report:
    environment: dict[str, Any]
    settings: dict[str, Any]
    is_rehearsal: bool = False  # on a CPU: no figure means anything, only that it ran
    tables: list[Table] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (what, why)
    seconds: dict[str, float] = field(default_factory=dict)  # by section
    figures: dict[str, Any] = field(default_factory=dict)

    def table(self, title: str, columns: Sequence[str]) -> Table:
        self.tables.append(Table(title, columns))
        return self.tables[-1]

    def hold(
        self, kind: str, what: str, value: float, *, least: float | None = None,
        most: float | None = None,
    ) -> None:  # fmt: skip
        """Hold ``value`` against the one bound given."""
        bound = least if least is not None else most
        assert bound is not None and kind in ("floor", "goal")
        met = value >= bound if least is not None else value <= bound
        sign = "≥" if least is not None else "≤"
        self.lines.append(Line(what, kind, f"{sign} {bound:g}", value, bool(met)))

    @property
    def failed(self) -> list[Line]:
        """Missed floors; of a rehearsal, the sections that ended with an error."""
        missed = [line for line in self.lines if line.kind == "floor" and not line.met]
        return [line for line in missed if not self.is_rehearsal or line.bound == NO_ERROR]

    def error(self, section: str, error: Exception) -> None:
        self.left_out.append((section, f"failed: {type(error).__name__}: {error}"[:300]))
        self.lines.append(Line(f"section {section} runs", "floor", NO_ERROR, 0.0, False))

    def markdown(self) -> str:
        facts = [f"- {name}: {value}" for name, value in self.environment.items()]
        held = Table("Floors and goals", ["what", "kind", "bound", "measured", "met"])
        held.rows = [[x.what, x.kind, x.bound, x.value, "yes" if x.met else "NO"]
                     for x in self.lines]  # fmt: skip
        out = Table("Left out", ["what", "why"], list(self.left_out))
        spent = Table("Seconds", ["section", "s"], list(self.seconds.items()))
        parts = [held, out, *self.tables, spent]
        title = "# GPU benchmark"
        if self.is_rehearsal:
            title += " (a rehearsal on a CPU: no figure here is a measurement)"
        return "\n\n".join([title, "\n".join(facts), *(p.markdown() for p in parts)])

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        whole = asdict(self)
        text = json.dumps(whole, indent=1, default=str) + "\n"
        (folder / "gpu.json").write_text(text, encoding="utf-8")
        (folder / "gpu.md").write_text(self.markdown() + "\n", encoding="utf-8")


def row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(each) for each in cells) + " |"


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "/")


def environment(torch: Any, place: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "command": " ".join(sys.argv),
        "packages": {name: package_version(name) for name in PACKAGES},
    }
    if place.startswith("cuda"):
        found = torch.cuda.get_device_properties(place)
        facts |= {
            "device": found.name,
            "device_bytes": found.total_memory,
            "processors": found.multi_processor_count,
            "capability": f"{found.major}.{found.minor}",
            "cuda": torch.version.cuda or torch.version.hip,
            "driver": driver(),
        }
    return facts | {"place": place}


def driver() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    return text.splitlines()[0]


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
