"""Where adapters are at home: the shapes of a model, and what makes adapters for these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from scalesim.core import Bytes2D
from scalesim.memory.leases.adapters import AdapterContent

ReadAdapter = Callable[["str | Path"], AdapterContent]
PackAdapter = Callable[[AdapterContent, Mapping[str, Any]], AdapterContent]
"""Makes of an adapter and tensors an adapter of the same layout. Raises ``AdapterError``."""
RebuildAdapter = Callable[[Any, Bytes2D], AdapterContent]
"""Makes an adapter of the form of an ``AdapterContent`` and its pages. Raises ``AdapterError``."""


@dataclass(frozen=True, eq=False, slots=True)
class AdapterHome:
    """The shapes that adapters are made for: how such adapters are read, packed, and rebuilt from a
    snapshot. ``mark`` says which shapes these are, where they are not the engine's own model's."""

    read: ReadAdapter | None
    pack: PackAdapter | None
    rebuild: RebuildAdapter | None
    mark: bytes = b""

    def own(self, content: AdapterContent) -> AdapterContent:
        """``content`` under a digest that no adapter of another home has."""
        if not self.mark:
            return content
        digest = blake2b(self.mark + content.digest, digest_size=16).digest()
        return replace(content, digest=digest)
