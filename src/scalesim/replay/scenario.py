"""Scenarios: a workload or a trace, on a machine whose pools are sized by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from scalesim.errors import ConfigError, TraceError
from scalesim.replay.arms import Machine
from scalesim.replay.hardware import HARDWARE, MODELS, CostModel, named
from scalesim.replay.workloads import Kind, Knobs, generate
from scalesim.trace import TraceStep, with_truth
from scalesim.trace_file import read_trace

ADAPTER_BYTES = 77 << 20  # rank 16 on the seven linear layers of Qwen2.5-7B, bf16


@dataclass(frozen=True, slots=True)
class Sizes:
    """``residency``: of all agents' state, what the device pool holds. ``host``: of the same, what
    the host pool holds. ``running``: requests at once. ``link_share``: of the link's rate.
    ``adapter``: each agent has one, as pages of its own before its prompt."""

    hardware: str = "h100"
    model: str = "qwen2.5-7b"
    residency: float = 0.25
    host: float = 4.0
    running: int = 32
    link_share: float = 1.0
    adapter: bool = False

    def __post_init__(self) -> None:
        for name in ("residency", "host", "link_share"):
            if getattr(self, name) <= 0.0:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True)
class Scenario:
    """``pages``: all agents' state between calls. ``steps`` gives the same steps each time."""

    name: str
    steps: Callable[[], Iterable[TraceStep]]
    pages: int
    max_len: int
    first_tokens: int = 0

    def machine(self, sizes: Sizes) -> Machine:
        cost = cost_of(sizes)
        size = cost.model.geometry().block_size
        longest = self.max_len // size + 1
        return Machine(
            cost,
            device_pages=max(int(self.pages * sizes.residency), longest),
            host_pages=int(self.pages * sizes.host),
            max_len=self.max_len,
            max_num_seqs=sizes.running,
            link_share=sizes.link_share,
            first_tokens=self.first_tokens,
        )


def cost_of(sizes: Sizes) -> CostModel:
    """Raises ``ConfigError`` for a name that is in no table."""
    return CostModel(
        named(HARDWARE, sizes.hardware, "hardware"), named(MODELS, sizes.model, "model")
    )


def of_workload(kind: Kind, knobs: Knobs, sizes: Sizes) -> Scenario:
    geometry = cost_of(sizes).model.geometry()
    first = 0
    if sizes.adapter:
        first = -(-ADAPTER_BYTES // geometry.page_bytes) * geometry.block_size
    pages = knobs.pages(geometry.block_size) + knobs.agents * first // geometry.block_size
    return Scenario(
        kind.name, lambda: generate(kind, knobs, first), pages, knobs.max_len + first, first
    )


def of_trace(path: Path, sizes: Sizes) -> Scenario:
    """A trace, read whole: what is to come must be known to ``oracle``."""
    if not path.exists():
        raise TraceError(f"{path} is neither a workload nor a file")
    steps = with_truth(read_trace(path))
    turns = [turn for step in steps for turn in step.turns]
    if not turns:
        raise TraceError(f"{path} has no calls")
    size = cost_of(sizes).model.geometry().block_size
    last = {turn.agent: turn.prompt_len for turn in turns}
    longest = max(turn.prompt_len + turn.output.length for turn in turns)
    return Scenario(path.name, lambda: steps, sum(n // size + 1 for n in last.values()), longest)
