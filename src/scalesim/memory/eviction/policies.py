"""The policies, by name. All use the same link, copies and overlap; they differ in order and look-
ahead only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scalesim.checks import shown, text
from scalesim.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Policy:
    """``order``: what leaves first is what will be used last, or what was used longest ago.
    ``host``: state may be kept in host memory, else it is dropped and rebuilt.
    ``look_ahead``: state is loaded before it is asked for, when its start window opens.
    ``weighs``: what would be there sooner if it were computed again is not loaded.
    ``limited``: the device pool has the configured size, else all that the machine can give.
    ``foresight``: is told what really comes, which only a replay can do.
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
    """The policy called ``name``; raises ``ConfigError`` with the names there are."""
    if (policy := policies.get(text("policy", name, ConfigError))) is None:
        known = ", ".join(policies)
        raise ConfigError(f"unknown policy {shown(name)}; policy must be one of: {known}")
    return policy
