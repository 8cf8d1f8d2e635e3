"""Several models in one replay: which agent uses which, and their weights as attachments in the
page pool, as in an engine with ``add_model``.

All models have their weights in pages; a page has the bytes that a block of the widest KV takes,
and holds as many tokens of each of the others as fit. Models have no text in common: equal tokens
of two models are different state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scalesim.core import AgentId
from scalesim.errors import ConfigError
from scalesim.memory.geometry import BLOCK_SIZES, PageGeometry
from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.leases.weights import WeightsContent, weights_spec
from scalesim.memory.links.link import InMemorySource
from scalesim.memory.manager import MemoryManager
from scalesim.replay.hardware import KV_BYTES, ModelCosts
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick


@dataclass(frozen=True, slots=True)
class BoundModels:
    """The models ``costs``, numbered from 1 on, and each agent's ``numbers``. Calls without an
    agent are those of an agent ``None``."""

    costs: tuple[ModelCosts, ...]
    numbers: Mapping[AgentId | None, int]

    @classmethod
    def in_turn(cls, costs: Sequence[ModelCosts], agents: Iterable[AgentId | None]) -> BoundModels:
        """The first of ``agents`` uses the first model, the next one the next, and so on around.
        Raises ``ConfigError`` if a model has no agent."""
        numbers = {agent: index % len(costs) + 1 for index, agent in enumerate(agents)}
        if len(numbers) < len(costs):
            raise ConfigError(
                f"{len(costs)} models for {len(numbers)} agents: each model needs an agent that "
                "uses it; give more agents, or fewer --models"
            )
        return cls(tuple(costs), numbers)

    def runs(self, number: int, page_bytes: int) -> tuple[int, ...]:
        """The pages of each part of the weights of model ``number``."""
        parts = self.costs[number - 1].part_bytes
        return tuple(-(-int(part) // page_bytes) for part in parts)

    def num_pages(self, number: int, page_bytes: int) -> int:
        """The pages of the weights of model ``number``."""
        return sum(self.runs(number, page_bytes))

    def largest(self, page_bytes: int) -> int:
        """The pages of the largest model's weights."""
        return max(self.num_pages(number, page_bytes) for number in self.all)

    def block_size(self, number: int, page_bytes: int) -> int:
        """The tokens of model ``number`` whose KV a page holds, as in an engine on a GPU."""
        model = self.costs[number - 1]
        return PageGeometry.fitting(
            model.num_layers, model.num_kv_heads, model.head_dim, KV_BYTES, page_bytes, BLOCK_SIZES
        ).block_size

    @property
    def all(self) -> range:
        """The numbers of all models."""
        return range(1, len(self.costs) + 1)

    def attachment(self, agent: AgentId | None, page_bytes: int) -> AttachmentSpec:
        """The weights that a request of ``agent`` needs."""
        number = self.numbers[agent]
        return weights_spec(_digest(number), number, self.block_size(number, page_bytes))

    def join(self, memory: MemoryManager) -> None:
        """Add all weights to ``memory``, and bind the agents. Their source is in memory: what is
        read from it comes at the link's rate."""
        for number in self.all:
            runs = self.runs(number, memory.page_bytes)
            pages = np.broadcast_to(np.uint8(0), (sum(runs), memory.page_bytes))  # takes no memory
            memory.add_weights(WeightsContent(_digest(number), runs, InMemorySource(pages), pages))
        for agent, number in self.numbers.items():
            if agent is not None:
                memory.bind_weights(agent, _digest(number))

    def apart(self, ticks: Iterable[TraceTick]) -> Iterator[TraceTick]:
        """``ticks`` with contents of each model's own."""
        for tick in ticks:
            yield TraceTick(tick.time, tick.hints, [self._own(call) for call in tick.calls])

    def _own(self, call: TraceCall) -> TraceCall:
        def own(piece: TracePiece) -> TracePiece:
            return piece._replace(content=f"model {number}: {piece.content!r}")

        number = self.numbers[call.agent]
        return replace(call, prompt=tuple(map(own, call.prompt)), output=own(call.output))


def _digest(number: int) -> bytes:
    return number.to_bytes(16, "little")
