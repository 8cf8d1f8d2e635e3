"""What the HTTP routes ask of the engine's core, in the scheduler's process: methods that the
plug-in gives to vLLM's ``EngineCore``, called by name. Plain values go in and come out; ``None``
comes out where neither the connector nor the host tier of the plug-in is in use."""

from __future__ import annotations

from typing import Any

from scalesim.vllm.host_tier import HostTier
from scalesim.vllm.scheduler_side import SchedulerSide


def expect(
    core: Any, times: dict[str, float], absolute: bool, confidence: dict[str, float]
) -> int | None:
    """Agents call next at these times, or in so many ticks. Returns how many agents were told
    of."""
    listener = _listener(core)
    if listener is None:
        return None
    listener.expect(times, absolute=absolute, confidence=confidence)
    if isinstance(listener, SchedulerSide):
        listener.arrange_adapters(core)
    return len(times)


def tick(core: Any, n: float, to: float | None) -> float | None:
    """Move the clock by ``n`` ticks, or to ``to``. Returns the time."""
    listener = _listener(core)
    if listener is None:
        return None
    listener.tick(n, to)
    if isinstance(listener, SchedulerSide):
        listener.arrange_adapters(core)
    return float(listener.board.clock.now)


def forget(core: Any, agents: list[str]) -> int | None:
    """These agents will not call again. Returns how many of them there were."""
    listener = _listener(core)
    return None if listener is None else int(listener.forget(agents))


def stats(core: Any) -> dict[str, float] | None:
    """What the plug-in counts, and its clock."""
    listener = _listener(core)
    return None if listener is None else listener.stats()


def _listener(core: Any) -> Any:
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
