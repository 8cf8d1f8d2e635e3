"""A version of a model beside the engine's own, as calls run on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.leases.weights import WeightsContent, weights_spec
from scalesim.requests.adapter_home import AdapterHome
from scalesim.requests.prompt import TextModel


@dataclass(frozen=True, eq=False)
class AddedModel:
    """A version of a model beside the engine's own. The runner knows it by ``number``, until
    ``forget`` is called on the engine's thread. ``digest`` is of its weights alone; that of
    ``weights`` covers all that KV depends on beside tokens and adapters. A page holds
    ``block_size`` tokens of its KV."""

    name: str
    path: str
    dummy_weights: bool
    text: TextModel
    number: int
    weights: WeightsContent
    block_size: int
    home: AdapterHome
    digest: bytes
    forget: Callable[[], None]

    @property
    def spec(self) -> AttachmentSpec:
        """The weights, as a request needs them."""
        return weights_spec(self.weights.digest, self.number, self.block_size)


JoinModel = Callable[[str, "str | Path", int, bool], AddedModel]
"""``(name, model, number, dummy_weights)``: reads a model and makes it known to the runner. Raises
``ModelError``, or what ``load_model`` raises."""
