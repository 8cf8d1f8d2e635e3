"""A machine: a device with its costs, its pools, and what uses them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from scalesim.memory.geometry import PageGeometry
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.replay.hardware import CostModel, Order
from scalesim.replay.models import BoundModels


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with its pools, in pages of the model's page size.

    ``link_share`` is the share of the link's rate that is used. The first ``first_tokens`` of each
    prompt stand for an adapter's pages. ``max_num_batched_tokens`` bounds a step without decodes;
    beside decodes, the costs choose less (Sarathi-Serve, OSDI 2024). ``order`` is the scheduler's.
    The disk has ``disk_pages`` (0: there is none), and ``disk_bytes_per_s`` each way. With
    ``models``, their weights are in pages too, and ``cost`` is that of the one with the widest KV.
    """

    cost: CostModel
    device_pages: int
    host_pages: int
    max_len: int
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    block_size: int | None = None
    link_share: float = 1.0
    first_tokens: int = 0
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    order: Order = "longest"
    disk_pages: int = 0
    disk_bytes_per_s: float = 0.0
    models: BoundModels | None = None

    @property
    def geometry(self) -> PageGeometry:
        return self.cost.model.geometry(self.block_size)

    def block_size_of(self, number: int) -> int:
        """The tokens of model ``number`` whose KV a page holds; 0 is the model beside the pool."""
        geometry = self.geometry
        if self.models is None or not number:
            return geometry.block_size
        return self.models.block_size(number, geometry.page_bytes)

    @property
    def costs(self) -> tuple[CostModel, ...]:
        """The costs of each model, by number; model 0 has its weights beside the pool."""
        beside = () if self.models is None else self.models.costs
        return (self.cost, *(replace(self.cost, model=model) for model in beside))

    @property
    def link_bytes_per_s(self) -> float:
        return self.cost.hardware.link_bytes_per_s * self.link_share
