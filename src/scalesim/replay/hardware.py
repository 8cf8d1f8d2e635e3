"""A roofline model of hardware: the duration of a step, and the rate of the link.

A step takes the longer of its arithmetic and its reading, plus a fixed overhead. Peak rates are
from the makers' data sheets. The attained shares of them are assumptions, stated in ``Hardware``
and the same for all devices. The figures are meant for ratios between policies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from scalesim.config import parse_bytes
from scalesim.errors import ConfigError
from scalesim.memory.geometry import PageGeometry
from scalesim.scheduler.step_costs import StepCosts

KV_BYTES = 2  # of an element of K and V, which are bf16
Order: TypeAlias = 'Literal["longest", "arrival"]'
"""``SchedulerConfig.order``."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device and its link to host memory; rates are per second, and per direction of the link.

    ``peak_flops``: dense bf16 with fp32 accumulation. ``gemm_share``, ``memory_share``: shares of
    the peaks that large products and streaming reads attain. ``step_overhead_s``: launches,
    sampling and work of the host that does not overlap.
    """

    name: str
    peak_flops: float
    memory_bytes_per_s: float
    memory_bytes: float
    link_bytes_per_s: float
    gemm_share: float = 0.7
    memory_share: float = 0.8
    step_overhead_s: float = 0.002


# Peaks: NVIDIA H100 (PCIe, SXM5), H200, A100 80GB SXM data sheets, Ada white paper (RTX 4090).
# Links: PCIe 5 ×16 carries 64 GB/s, of which pieces of 64 KiB and more reached 52 GB/s on an H100
# (vLLM pull request 42212); the same share of PCIe 4's 32 GB/s is 26.
HARDWARE = {
    device.name: device
    for device in (
        Hardware("h100", 756e12, 2.0e12, 80e9, 52e9),
        Hardware("h100-sxm", 989e12, 3.35e12, 80e9, 52e9),
        Hardware("h200", 989e12, 4.8e12, 141e9, 52e9),
        Hardware("a100", 312e12, 2.039e12, 80e9, 26e9),
        Hardware("rtx4090", 165e12, 1.008e12, 24e9, 26e9),
    )
}


# Sequential reads and writes: PCIe 4 NVMe drives are sold with 5 to 7 GB/s, SATA 3 carries 0.55.
DISKS = {"nvme": 5e9, "sata": 0.5e9}
"""Bytes a second of a disk, each way."""


def disk_rate(text: str) -> float:
    """The rate of a disk in ``DISKS``, or of one like ``"2GB"`` a second. Raises ``ConfigError``
    for a rate of 0 and for what is none."""
    if text in DISKS:
        return DISKS[text]
    try:
        rate = parse_bytes(text, "the disk's rate")
    except ConfigError as error:
        raise ConfigError(f"{error}; or name one of: {', '.join(DISKS)}") from error
    if not rate:
        raise ConfigError(f"a disk of {text} bytes a second moves nothing: leave it out")
    return float(rate)


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """The properties of a model that cost time.

    A step reads ``num_params`` parameters (without the input embedding) and multiplies each token
    with them; in a mixture of experts, with ``active_params`` of them. ``head_params`` of them are
    the head's; the input embedding is the same matrix if ``tied``, else another one of that size.
    Weights, K and V are bf16.
    """

    name: str
    num_params: float
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_params: float
    tied: bool = False
    active_params: float | None = None

    @property
    def part_bytes(self) -> tuple[float, ...]:
        """Bytes of the weights' parts, each of which lies in one piece: the embedding with the
        head, then each layer."""
        ends = self.head_params * (1 if self.tied else 2)
        layer = (self.num_params - self.head_params) / self.num_layers
        return (2.0 * ends, *[2.0 * layer] * self.num_layers)

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of one token over all layers."""
        return 2 * KV_BYTES * self.num_layers * self.num_kv_heads * self.head_dim

    def geometry(self, block_size: int | None = None) -> PageGeometry:
        return PageGeometry.choose(
            self.num_layers, self.num_kv_heads, self.head_dim, KV_BYTES, block_size
        )


# From the models' own config.json files.
MODELS = {
    model.name: model
    for model in (
        ModelCosts("qwen2.5-7b", 7.07e9, 28, 28, 4, 128, 5.45e8),
        ModelCosts("llama-3.1-8b", 7.50e9, 32, 32, 8, 128, 5.25e8),
        ModelCosts("llama-3.2-1b", 1.24e9, 16, 32, 8, 64, 2.63e8, tied=True),
        ModelCosts("qwen2.5-0.5b", 4.94e8, 24, 14, 2, 64, 1.36e8, tied=True),
    )
}


@dataclass(frozen=True, slots=True)
class StepWork:
    """The work of a step: query tokens; context tokens read by its sequences, each once; and (query
    token, context token) pairs of attention."""

    num_tokens: int
    context_tokens: int
    pairs: int


@dataclass(frozen=True, slots=True)
class CostModel(StepCosts):
    """The cost of steps of ``model`` on ``hardware``, in seconds."""

    hardware: Hardware
    model: ModelCosts

    def flops(self, work: StepWork) -> float:
        model = self.model
        attention = 4.0 * model.num_layers * model.num_heads * model.head_dim * work.pairs
        params = model.num_params if model.active_params is None else model.active_params
        return 2.0 * params * work.num_tokens + attention

    def balanced_tokens(self, num_decodes: int, context_tokens: int, position: int) -> float:
        read_s = self.read_s(self.read_bytes(StepWork(0, context_tokens, 0)))
        decodes_s = self.compute_s(self.flops(StepWork(num_decodes, 0, context_tokens)))
        token_s = self.compute_s(self.flops(StepWork(1, 0, position)))
        return (read_s - decodes_s) / token_s

    def read_bytes(self, work: StepWork) -> float:
        """Bytes that a step reads: the weights, and the KV that it attends to."""
        return 2.0 * self.model.num_params + self.kv_bytes(work.context_tokens)

    def kv_bytes(self, num_tokens: int) -> float:
        return float(self.model.token_bytes) * num_tokens

    def compute_s(self, flops: float) -> float:
        return flops / (self.hardware.peak_flops * self.hardware.gemm_share)

    def read_s(self, num_bytes: float) -> float:
        return num_bytes / (self.hardware.memory_bytes_per_s * self.hardware.memory_share)

    def step_s(self, work: StepWork) -> float:
        least_s = max(self.compute_s(self.flops(work)), self.read_s(self.read_bytes(work)))
        return least_s + self.hardware.step_overhead_s


_Named = TypeVar("_Named", Hardware, ModelCosts)


def named(table: dict[str, _Named], name: str, what: str) -> _Named:
    """The entry called ``name``. Raises ``ConfigError``, naming the known ones."""
    if name not in table:
        raise ConfigError(f"unknown {what} {name!r}; there are: {', '.join(table)}")
    return table[name]
