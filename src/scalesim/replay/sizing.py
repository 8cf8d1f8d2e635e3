"""Will this many agents fit, how fast, and what binds? A closed form for ``scalesim plan``.

The long-run average of a simulation whose order of turns is known: of an agent's turns, the share
``1 - resident share`` finds its state on the host (Belady on a cyclic order; on any other he misses
less). Compute and link work side by side, so the slower one sets the rate. Bursts, warm-up and
wrong hints are not in it: that is what replay is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scalesim.errors import ConfigError
from scalesim.replay.hardware import CostModel, Hardware, ModelCosts, StepWork

Binds = Literal["compute", "link", "host memory"]
_RESERVED = 0.1  # of device memory: activations, workspace, the allocator


@dataclass(frozen=True, slots=True)
class Load:
    """``agents``, of which a share ``active`` calls once in a tick. Each call's prompt is
    ``shared`` tokens that all have in common, ``prefix`` that the agent has had before, and ``new``
    ones; the answer has ``output`` tokens."""

    agents: int
    active: float = 0.2
    shared: int = 0
    prefix: int = 2048
    new: int = 256
    output: int = 100
    adapter_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes, seconds and rates. ``resident`` agents have their state on the device; ``rebuilt`` is
    the share of turns whose state fits nowhere. A turn costs ``compute_s`` and ``link_s``, each of
    its own resource, and ``binds`` names the one that sets ``turns_per_s``."""

    fits: bool
    state_bytes: int
    pool_bytes: int
    host_bytes: int
    host_needed_bytes: int
    resident: float
    running: int
    missing: float
    rebuilt: float
    compute_s: float
    link_s: float
    turns_per_s: float
    tick_s: float
    binds: Binds


def fit(load: Load, model: ModelCosts, hardware: Hardware, host_bytes: int) -> Fit:
    """Raises ``ConfigError`` where the model, or one agent beside it, does not fit the device."""
    cost = CostModel(hardware, model)
    token_bytes = model.geometry().token_bytes
    state = (load.prefix + load.new + load.output) * token_bytes + load.adapter_bytes
    weights = 2.0 * model.num_params
    pool = int(hardware.memory_bytes * (1.0 - _RESERVED) - weights - load.shared * token_bytes)
    if pool < state:
        raise ConfigError(
            f"{model.name} leaves {max(0, pool) / 1e9:.1f} GB of {hardware.name}'s "
            f"{hardware.memory_bytes / 1e9:.0f} GB for state, and an agent's takes "
            f"{state / 1e9:.2f} GB; take a smaller model or prefix, or a larger device"
        )
    resident = min(float(load.agents), pool / state)
    # those that run hold their pages; the other half is for those that come next
    running = max(1, min(256, load.agents, int(resident if resident == load.agents
                                               else resident / 2)))  # fmt: skip
    missing = 1.0 - resident / load.agents
    needed = state * load.agents
    rebuilt = min(missing, max(0.0, 1.0 - (pool + host_bytes) / needed)) if missing else 0.0
    compute_s = _compute_s(load, cost, running, rebuilt)
    loaded = (missing - rebuilt) * state
    saved = (load.new + load.output) * token_bytes if missing else 0
    link_s = max(loaded, saved) / hardware.link_bytes_per_s  # in and out go at the same time
    turn_s = max(compute_s, link_s)
    binds: Binds = "compute" if compute_s >= link_s else "link"
    if rebuilt and compute_s > _compute_s(load, cost, running, 0.0) and binds == "compute":
        binds = "host memory"
    turns = load.agents * load.active
    return Fit(
        fits=rebuilt == 0.0,
        state_bytes=state,
        pool_bytes=pool,
        host_bytes=host_bytes,
        host_needed_bytes=max(0, needed - pool) if missing else 0,
        resident=resident,
        running=running,
        missing=missing,
        rebuilt=rebuilt,
        compute_s=compute_s,
        link_s=link_s,
        turns_per_s=1.0 / turn_s,
        tick_s=turns * turn_s,
        binds=binds,
    )


def _compute_s(load: Load, cost: CostModel, running: int, rebuilt: float) -> float:
    """Seconds of compute a turn: its prefill, and its share of decode steps of ``running``
    agents."""
    context = load.shared + load.prefix + load.new
    prefill = load.new + rebuilt * load.prefix
    flops = cost.flops(StepWork(1, 1, 0)) * prefill
    flops += cost.flops(StepWork(0, 0, int(prefill * context)))
    prefill_s = cost.compute_s(flops)
    context_tokens = running * (context + load.output // 2)
    decode = StepWork(running, context_tokens, context_tokens)
    return prefill_s + load.output * cost.step_s(decode) / running
