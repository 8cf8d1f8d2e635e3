"""What an engine counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Counts since the start. ``steps`` are the engine's; ``compute_s`` is the runner's time."""

    steps: int = 0
    turns: int = 0  # calls that gave a reply
    failed: int = 0  # calls that ended with an error
    prompt_tokens: int = 0  # of the calls that have ended
    cached_tokens: int = 0  # of the prompts, found in memory
    output_tokens: int = 0  # of the calls that have ended
    compute_s: float = 0.0
    restarts: int = 0  # something broke inside, and all state was made anew
    lost_pages: int = 0  # that left circulation for it, of both pools
