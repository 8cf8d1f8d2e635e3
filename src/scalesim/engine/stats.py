"""What an engine counts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Counts since the start. ``steps`` are the engine's; ``compute_s`` is the runner's time."""

    steps: int = 0
    calls: int = 0  # that gave a reply
    failed: int = 0  # calls that ended with an error
    prompt_tokens: int = 0  # of the calls that have ended
    cached_tokens: int = 0  # of the prompts, found in memory
    output_tokens: int = 0  # of the calls that have ended
    compute_s: float = 0.0
    restarts: int = 0  # something broke inside, and all state was made anew
    lost_pages: int = 0  # that left circulation for it, of both pools

    @property
    def turns(self) -> int:
        """The deprecated name of ``calls``."""
        warnings.warn("stats.turns is named calls now", DeprecationWarning, stacklevel=2)
        return self.calls
