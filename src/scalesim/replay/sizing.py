"""Sizing for ``scalesim plan``: a closed form for capacity, call rate and the binding resource.

The result is the long-run average of a simulation with a known order of calls. The share
``1 - resident share`` of an agent's calls finds its state on the host: the miss ratio of Belady's
rule on a cyclic order, which is lower on any other order. Compute and link work concurrently, so
the slower one sets the rate. What has no room on the host is read from a disk, if there is one, or
computed again, in the split that is sooner. Bursts, warm-up and wrong hints are not modelled;
replay does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scalesim.errors import ConfigError
from scalesim.replay.hardware import CostModel, Hardware, ModelCosts, StepWork

Binds = Literal["compute", "link", "disk", "host memory"]
_RESERVED = 0.1  # share of device memory for activations, workspace and the allocator


@dataclass(frozen=True, slots=True)
class Load:
    """The load: ``agents``, of which a share ``active`` calls once per tick. A prompt has
    ``shared`` tokens common to all agents, ``prefix`` tokens of the agent's earlier calls and
    ``new`` tokens; the answer has ``output`` tokens. Each agent's adapter has ``adapter_bytes``."""

    agents: int
    active: float = 0.2
    shared: int = 0
    prefix: int = 2048
    new: int = 256
    output: int = 100
    adapter_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk for state: ``num_bytes``, and bytes a second each way."""

    num_bytes: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Fit:
    """The result, in bytes, seconds and rates.

    ``resident`` agents have their state on the device. Of all calls, the share ``missing`` does not
    find its state there; the share ``on_disk`` reads it from the disk, and the share ``rebuilt``
    computes it again. A call costs ``compute_s`` of compute, ``link_s`` of the link and ``disk_s``
    of the disk; ``binds`` names the resource that sets ``turns_per_s``.
    """

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
    on_disk: float = 0.0
    disk_s: float = 0.0
    disk_needed_bytes: int = 0


def fit(
    load: Load,
    model: ModelCosts,
    hardware: Hardware,
    host_bytes: int,
    disk: Disk | None = None,
) -> Fit:
    """How ``load`` fits. Raises ``ConfigError`` if the model, or one agent beside it, does not fit
    the device."""
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
    # running calls hold half of the pool; the other half is for the calls that come next
    running = max(1, min(256, load.agents, int(resident if resident == load.agents
                                               else resident / 2)))  # fmt: skip
    missing = 1.0 - resident / load.agents
    needed = state * load.agents
    beyond = min(missing, max(0.0, 1.0 - (pool + host_bytes) / needed)) if missing else 0.0
    saved = (load.new + load.output) * token_bytes if missing else 0
    on_disk, disk_s, fits = 0.0, 0.0, not beyond
    if disk is not None and beyond:
        kept = min(beyond, disk.num_bytes / needed)
        again_s = _compute_s(load, cost, running, 1.0) - _compute_s(load, cost, running, 0.0)
        each_s = max(state, saved / beyond) / disk.bytes_per_s  # reads and writes at the same time
        least_s = _compute_s(load, cost, running, beyond)
        fits = kept == beyond
        on_disk = min(kept, least_s / (each_s + again_s))  # then both take as long
        disk_s = on_disk * each_s
    rebuilt = beyond - on_disk
    compute_s = _compute_s(load, cost, running, rebuilt)
    loaded = (missing - rebuilt) * state
    link_s = max(loaded, saved) / hardware.link_bytes_per_s  # in and out go at the same time
    turn_s = max(compute_s, link_s, disk_s)
    binds: Binds = "compute" if compute_s >= link_s else "link"
    if disk_s > max(compute_s, link_s) or (fits and rebuilt > 0.0):
        binds = "disk"
    if not fits and compute_s > _compute_s(load, cost, running, 0.0) and binds == "compute":
        binds = "host memory"
    turns = load.agents * load.active
    return Fit(
        fits=fits,
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
        on_disk=on_disk,
        disk_s=disk_s,
        disk_needed_bytes=max(0, needed - pool - host_bytes) if missing else 0,
    )


def _compute_s(load: Load, cost: CostModel, running: int, rebuilt: float) -> float:
    """Seconds of compute per call: its prefill, and its share of decode steps with ``running``
    agents."""
    context = load.shared + load.prefix + load.new
    prefill = load.new + rebuilt * load.prefix
    flops = cost.flops(StepWork(1, 1, 0)) * prefill
    flops += cost.flops(StepWork(0, 0, int(prefill * context)))
    prefill_s = cost.compute_s(flops)
    context_tokens = running * (context + load.output // 2)
    decode = StepWork(running, context_tokens, context_tokens)
    return prefill_s + load.output * cost.step_s(decode) / running
