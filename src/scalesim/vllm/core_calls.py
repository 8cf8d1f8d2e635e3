"""What the HTTP routes ask of the engine's core, in the scheduler's process: methods that the
plug-in gives to vLLM's ``EngineCore``, called by name. Plain values go in and come out."""

from __future__ import annotations

from typing import Any

from scalesim.vllm.host_tier import HostTier


def expect(core: Any, times: dict[str, float], absolute: bool) -> dict[str, float]:
    """Agents call next at these times, or in so many ticks. Returns the counts, as do the others:
    empty where neither the connector nor the policy is in use."""
    found = _door(core)
    if found is not None:
        found.expect(times, absolute=absolute)
    return stats(core)


def tick(core: Any, n: float, to: float | None) -> dict[str, float]:
    """Move the clock by ``n`` ticks, or to ``to``."""
    found = _door(core)
    if found is not None:
        found.tick(n, to=to)
    return stats(core)


def forget(core: Any, agents: list[str]) -> dict[str, float]:
    """These agents will not call again."""
    found = _door(core)
    if found is not None:
        found.forget(agents)
    return stats(core)


def stats(core: Any) -> dict[str, float]:
    """What the plug-in counts, and its clock."""
    found = _door(core)
    return {} if found is None else found.stats()


def _door(core: Any) -> Any:
    """What hears hints: the connector's side of the scheduler, else the policy of the host tier."""
    connector = core.scheduler.get_kv_connector()
    side = getattr(connector, "side", None)
    if side is not None:
        return side
    scheduler = getattr(connector, "connector_scheduler", None)
    tier = getattr(getattr(scheduler, "manager", None), "tier", None)
    return tier if isinstance(tier, HostTier) else None


METHODS = {
    "scalesim_expect": expect,
    "scalesim_tick": tick,
    "scalesim_forget": forget,
    "scalesim_stats": stats,
}
