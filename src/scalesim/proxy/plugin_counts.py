"""What the plug-in inside the upstream server counts: read before the program and after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2

_PATH = "/scalesim/stats"
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class PluginWork:
    """What the server's caches did while the program ran, in tokens of prompts and in blocks. Calls
    of others that used the server meanwhile are in it."""

    prompt_tokens: int
    device_hit_tokens: int
    host_hit_tokens: int
    saved_blocks: int
    prefetched_blocks: int


def read_counts(upstream: str) -> Mapping[str, float] | None:
    """The plug-in's counts in the server of ``upstream``, a URL that ends in the server's version;
    ``None`` where there is no such plug-in, whatever the reason."""
    parts = urlsplit(upstream)
    try:
        answer = httpx2.get(f"{parts.scheme}://{parts.netloc}{_PATH}", timeout=_TIMEOUT_S)
        counts = answer.json() if answer.is_success else None
    except (httpx2.HTTPError, ValueError):
        return None
    if not isinstance(counts, dict):
        return None
    return {name: each for name, each in counts.items() if isinstance(each, int | float)}


def work_between(
    before: Mapping[str, float], after: Mapping[str, float] | None
) -> PluginWork | None:
    """What was done from ``before`` to ``after``; ``None`` where that cannot be said: no counts of
    prompts (only the host tier is the plug-in's), or a server that was started anew."""
    if after is None:
        return None
    names = PluginWork.__slots__
    if not all(name in before and name in after for name in names):
        return None
    spent = [int(after[name] - before[name]) for name in names]
    return PluginWork(*spent) if min(spent) >= 0 else None
