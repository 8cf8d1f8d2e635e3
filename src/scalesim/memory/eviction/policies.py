"""The policies by name. All have the same link, copies and overlap; they differ in the eviction
order and in what is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scalesim.checks import shown, text
from scalesim.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Policy:
    """What is evicted first, and what is loaded.

    ``order``: evict first what is used last by the hints (``"next_use"``), or what was used longest
    ago (``"last_use"``). ``host``: evicted state may be kept in host memory; otherwise it is
    dropped and computed again. ``look_ahead``: state is loaded when its turn comes, before
    it is asked for. ``weighs``: state is not loaded if computing it again is sooner. ``limited``:
    the device pool has the configured size; otherwise it takes all that the machine can give.
    ``foresight``: the policy is told the true next uses, which only a replay can do.
    """

    name: str
    order: Literal["next_use", "last_use"]
    host: bool
    look_ahead: bool
    weighs: bool = False
    limited: bool = True
    foresight: bool = False


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("deadline", order="next_use", host=True, look_ahead=True, weighs=True),
        Policy("lru-swap", order="last_use", host=True, look_ahead=False),
        Policy("lru-recompute", order="last_use", host=False, look_ahead=False),
        Policy("oracle", order="next_use", host=True, look_ahead=True, weighs=True, foresight=True),
        Policy("resident", order="last_use", host=False, look_ahead=False, limited=False),
    )
}

ENGINE_POLICIES = tuple(name for name, policy in POLICIES.items() if not policy.foresight)


def policy_named(name: str, policies: Mapping[str, Policy] = POLICIES) -> Policy:
    """The policy called ``name``. Raises ``ConfigError`` with the names that exist."""
    if (policy := policies.get(text("policy", name, ConfigError))) is None:
        known = ", ".join(policies)
        raise ConfigError(f"unknown policy {shown(name)}; policy must be one of: {known}")
    return policy
