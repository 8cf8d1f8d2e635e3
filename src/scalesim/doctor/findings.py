"""Results of probes, as values that convert to JSON: facts and findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

Level = Literal["note", "warning", "error"]
Fact: TypeAlias = "str | int | float | bool | None"


@dataclass(frozen=True, slots=True)
class Settings:
    """What to examine: ``device`` as in ``EngineConfig``, a model's folder, if any, and a folder
    for state on a disk, if any."""

    device: str = "auto"
    model: str | None = None
    disk: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding. ``error``: an engine would not run. ``warning``: an engine runs, at a cost that
    ``text`` names. ``note``: information. ``knob`` is what to change."""

    level: Level
    text: str
    knob: str


@dataclass(slots=True)
class Section:
    """The result of a probe. Facts have their unit in the name (``_bytes``, ``_bytes_per_s``,
    ``_s``); ``None`` stands for an unknown value."""

    name: str
    facts: dict[str, Fact] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def find(self, level: Level, text: str, knob: str) -> None:
        self.findings.append(Finding(level, text, knob))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Section:
        findings = [Finding(**finding) for finding in raw["findings"]]
        return Section(str(raw["name"]), dict(raw["facts"]), findings)


def failed(name: str, reason: str) -> Section:
    """The section for a probe that returned none."""
    section = Section(name)
    section.find(
        "error",
        f"the part {name!r} could not be examined: {reason}",
        "an engine would meet the same; repair what the message names, or report it",
    )
    return section


def reason_of(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__
