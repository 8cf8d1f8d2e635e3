"""Runs probes in a child process, and continues in another one if a probe ends the child.

Loading torch on an unusual machine can end a process, and so can a kernel; a driver can hang. The
child prints a line of JSON for each section. The first missing section becomes a finding, and the
probes after it run in another child.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from scalesim.doctor.findings import Section, Settings, failed, reason_of

PROBES = ("versions", "device", "host", "kernels", "rows", "link", "disk", "model")
SECONDS_EACH = 180.0  # a first run compiles every kernel


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a child: the sections up to the first missing one, and why that is missing."""

    sections: list[Section]
    reason: str


Spawn = Callable[[Sequence[str], Settings], Ran]


def examine(
    settings: Settings, names: Sequence[str] = PROBES, spawn: Spawn | None = None
) -> list[Section]:
    """A section for each of ``names``, in order. Raises nothing but ``KeyboardInterrupt``."""
    pending, found = list(names), list[Section]()
    for name in ("disk", "model"):
        if getattr(settings, name) is None and name in pending:
            pending.remove(name)
    while pending:
        ran = (spawn or spawn_child)(pending, settings)
        found += ran.sections
        pending = pending[len(ran.sections) :]
        if pending:
            found.append(failed(pending.pop(0), ran.reason))
    return found


def spawn_child(
    names: Sequence[str], settings: Settings, seconds_each: float = SECONDS_EACH
) -> Ran:
    """Run the probes ``names`` in a new process."""
    asked = json.dumps({"names": list(names), "settings": asdict(settings)})
    command = [sys.executable or "python", "-m", "scalesim.doctor", asked]
    seconds = seconds_each * len(names)
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired as late:
        return Ran(sections_in(late.stdout or b"", names), f"no answer within {seconds:.0f} s")
    except (OSError, ValueError) as error:
        return Ran([], f"no process could be started: {reason_of(error)}")
    return Ran(sections_in(done.stdout, names), how_it_ended(done.returncode, done.stderr))


def sections_in(output: bytes, names: Sequence[str]) -> list[Section]:
    """The sections of ``names`` in a child's output, up to the first missing one; other output is
    skipped."""
    found: list[Section] = []
    for line in output.splitlines():
        try:
            section = Section.from_json(json.loads(line))
        except (ValueError, TypeError, KeyError):
            continue
        if len(found) < len(names) and section.name == names[len(found)]:
            found.append(section)
    return found


def how_it_ended(code: int, stderr: bytes) -> str:
    said = stderr.decode(errors="replace").strip().splitlines()
    last = f"; it said: {said[-1][:400]}" if said else ""
    if code >= 0:
        return f"its process ended with exit code {code}{last}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its process was ended by {name}{last}"
