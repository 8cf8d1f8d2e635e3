"""Installed versions against the required ones, without importing the packages."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from scalesim._version import __version__
from scalesim.doctor.findings import Section, Settings

DISTRIBUTION = "scalesim-runtime"
SHOWN = ("torch", "triton", "numpy", "numba", "safetensors", "tokenizers", "transformers")
DRIVER = Path("/proc/driver/nvidia/version")


def probe(settings: Settings) -> Section:
    section = Section("versions", {"scalesim": __version__})
    section.facts["python"] = f"{platform.python_implementation()} {platform.python_version()}"
    section.facts["system"] = platform.platform()
    section.facts |= {name: version_of(name) for name in SHOWN}
    section.facts["nvidia_driver"] = driver_version()
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        section.find(
            "note",
            f"{DISTRIBUTION} is not installed, its source is imported: what it requires was not "
            "compared with what is there",
            "pip install -c constraints.txt .",
        )
        required = []
    check(section, required)
    return section


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def driver_version(path: Path = DRIVER) -> str | None:
    """The version of NVIDIA's kernel module; ``None`` if none is loaded."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match.group(1) if match else None


def check(section: Section, required: Iterable[str]) -> None:
    """Add an error for each unmet requirement; requirements of extras are skipped."""
    for line in required:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        there = version_of(requirement.name)
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            section.find(
                "error",
                f"{requirement.name} {there or 'is missing'}: {requirement} is required",
                f'{sys.executable} -m pip install "{requirement.name}{requirement.specifier}"',
            )
