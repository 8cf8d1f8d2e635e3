"""What this machine can do for an engine: versions, devices, kernels, link, memory, a model.

``scalesim doctor`` shows it. Each part is a *probe*, which looks at one thing and gives a
``Section``; ``examine`` runs them in a process of their own, so that one that crashes or hangs is a
finding like any other. Changes nothing on the machine and downloads nothing.
"""

from __future__ import annotations

from scalesim.doctor.children import examine
from scalesim.doctor.findings import Finding, Section, Settings

__all__ = ["Finding", "Section", "Settings", "examine"]
