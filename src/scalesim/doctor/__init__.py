"""Examination of a machine for an engine: versions, devices, kernels, link, memory, a disk, a
model.

Each part is a *probe*, which examines one thing and returns a ``Section``. ``examine`` runs the
probes in a child process, so that a crash or a hang becomes a finding like any other. Probes leave
nothing on the machine and download nothing.
"""

from __future__ import annotations

from scalesim.doctor.children import examine
from scalesim.doctor.findings import Finding, Section, Settings

__all__ = ["Finding", "Section", "Settings", "examine"]
