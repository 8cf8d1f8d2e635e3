"""What the GPU benchmark hands back: ``gpu.json`` for machines, ``gpu.md`` for people.

Plain standard library: a GPU machine may have little installed.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
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
    changed: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    def add(self, *cells: Any) -> None:
        """One more row. What there is is written at once: a section may be cut off at any time."""
        self.rows.append(list(cells))
        self.changed()

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
    file: Path | None = None  # a part of a run, written at each change

    def table(self, title: str, columns: Sequence[str]) -> Table:
        self.tables.append(Table(title, columns, changed=self.save))
        return self.tables[-1]

    def whole(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        tables = [{"title": t.title, "columns": t.columns, "rows": t.rows} for t in self.tables]
        lines = [asdict(line) for line in self.lines]
        own = {name: getattr(self, name) for name in ("environment", "settings", "is_rehearsal")}
        more = {name: getattr(self, name) for name in ("left_out", "seconds", "figures")}
        return {**own, "tables": tables, "lines": lines, **more}

    def save(self) -> None:
        """Replace ``file`` by what there is, in one step."""
        if self.file is not None:
            text = json.dumps(self.whole(), indent=1, default=str) + "\n"
            made = self.file.with_suffix(".new")
            made.write_text(text, encoding="utf-8")
            made.replace(self.file)

    def joined(self, parts: Iterable[Path]) -> Report:
        """This report and those of ``parts``, in their order; a part that is not there is left
        out."""
        whole = replace(
            self, tables=[*self.tables], lines=[*self.lines], left_out=[*self.left_out],
            seconds=dict(self.seconds), figures=dict(self.figures),
        )  # fmt: skip
        for path in parts:
            if not path.exists():
                continue
            part = json.loads(path.read_text(encoding="utf-8"))
            whole.environment |= part["environment"]
            whole.tables += [Table(t["title"], t["columns"], t["rows"]) for t in part["tables"]]
            whole.lines += [Line(**line) for line in part["lines"]]
            whole.left_out += [(what, why) for what, why in part["left_out"]]
            whole.seconds |= part["seconds"]
            whole.figures |= part["figures"]
        return whole

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
        self.save()

    def leave_out(self, what: str, why: object) -> None:
        self.left_out.append((what, str(why)))
        self.save()

    @property
    def failed(self) -> list[Line]:
        """Missed floors; of a rehearsal, the sections that ended with an error."""
        missed = [line for line in self.lines if line.kind == "floor" and not line.met]
        return [line for line in missed if not self.is_rehearsal or line.bound == NO_ERROR]

    def error(self, section: str, why: str) -> None:
        self.left_out.append((section, f"failed: {why}"[:300]))
        self.lines.append(Line(f"section {section} runs", "floor", NO_ERROR, 0.0, False))
        self.save()

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
        text = json.dumps(self.whole(), indent=1, default=str) + "\n"
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
