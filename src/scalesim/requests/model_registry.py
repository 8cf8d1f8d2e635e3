"""The models of an engine, by name: its own, and those that were added beside it.

Used from any thread; a model is read on the thread that adds it. Its weights are the pools' from
then on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scalesim.checks import flag, path_of, shown, text
from scalesim.core import AgentId
from scalesim.errors import ModelError
from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.leases.weights import WeightsContent, weights_spec
from scalesim.requests.adapter_registry import AdapterHome
from scalesim.requests.prompt import TextModel

if TYPE_CHECKING:
    from scalesim.memory.manager import MemoryManager


@dataclass(frozen=True, slots=True)
class AddedModel:
    """A model as it joined an engine: the runner knows it by ``number``. The mark of its ``home``
    says all that its KV depends on beside tokens and adapters."""

    text: TextModel
    number: int
    weights: WeightsContent
    home: AdapterHome

    @property
    def spec(self) -> AttachmentSpec:
        """The weights, as a request needs them."""
        return weights_spec(self.weights.digest, self.number)


JoinModel = Callable[["str | Path", int, bool], AddedModel]
"""``(model, number, dummy_weights)``: reads a model and makes it known to the runner. Raises
``ModelError``, or what ``load_model`` raises."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model beside the engine's own: its folder or hub id, and the pages of its weights."""

    name: str
    path: str
    num_pages: int
    digest: str


class ModelRegistry:
    """The models beside the engine's ``own``. ``post`` runs a function on the engine's thread;
    ``check`` raises in a process that is not the engine's."""

    def __init__(
        self,
        own: TextModel,
        home: AdapterHome,
        join: JoinModel | None,
        memory: MemoryManager,
        post: Callable[[Callable[[], None]], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.own, self._home = own, home
        self._join, self._memory, self._post, self._check = join, memory, post, check
        self._lock = threading.RLock()
        self._by_name: dict[str, AddedModel] = {}
        self._added: dict[str, tuple[str, bool]] = {}  # path, dummy_weights
        self._bound: dict[AgentId, str] = {}
        self._num_joined = 0

    def add(self, name: str, path: str | Path, dummy_weights: bool) -> None:
        """``Engine.add_model``."""
        self._check()
        name = text("model name", name, ModelError, empty=False)
        path_of("path", path, ModelError)
        flag("dummy_weights", dummy_weights, ModelError)
        if self._join is None:
            raise ModelError("this engine's parts take no further models (join_model)")
        with self._lock:
            if name in self._by_name:
                raise ModelError(
                    f"model name {name!r} is taken, by {self._added[name][0]}; choose another"
                )
            self._num_joined += 1
            found = self._join(path, self._num_joined, dummy_weights)
            found = replace(found, home=found.home._replace(model=name))
            self._post(lambda: self._memory.add_weights(found.weights))
            self._by_name[name], self._added[name] = found, (str(path), dummy_weights)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    # -- for the engine -----------------------------------------------------------------------

    def image(self) -> list[tuple[str, str, bool, str]]:
        """(name, path, dummy_weights, digest) of each model, in the order in which they were
        added."""
        with self._lock:
            return [
                (name, *self._added[name], found.weights.digest.hex())
                for name, found in self._by_name.items()
            ]

    def known(self, name: str) -> AddedModel:
        """The model of this name. Raises ``ModelError``."""
        found = self._by_name.get(name) if isinstance(name, str) else None
        if found is None:
            names = ", ".join(sorted(self._by_name)[:8]) or "none"
            raise ModelError(
                f"model {shown(name)} is unknown; engine.add_model() adds one; there are: {names}"
            )
        return found

    def text_of(self, name: str | None) -> TextModel:
        """The text model of this name; ``None``: the engine's own."""
        return self.own if name is None else self.known(name).text

    def home_of(self, name: str | None) -> AdapterHome:
        """The home of a model's adapters; ``None``: of the engine's own."""
        return self._home if name is None else self.known(name).home

    def num_pages(self, name: str | None) -> int:
        """Device pages that the weights of a model take; 0 for the engine's own."""
        return 0 if name is None else self.known(name).weights.num_pages

    def bind(self, agent: AgentId, name: str | None) -> None:
        """Note that ``agent`` uses the model ``name``: its weights are moved by the agent's next
        use as well. ``None``: the engine's own model."""
        with self._lock:
            if name is None and agent not in self._bound:
                return
            digest = None if name is None else self.known(name).weights.digest
            self._note(agent, name)
            self._post(lambda: self._memory.bind_weights(agent, digest))

    def fork(self, parent: AgentId, child: AgentId) -> None:
        """Note the model of ``parent`` for ``child`` as well; memory's own fork binds it."""
        with self._lock:
            if parent in self._bound:
                self._note(child, self._bound[parent])

    def unbind(self, agents: Iterable[AgentId]) -> None:
        """Note that ``agents`` are forgotten. Their models stay."""
        with self._lock:
            for agent in agents:
                self._note(agent, None)

    def _note(self, agent: AgentId, name: str | None) -> None:
        self._bound.pop(agent, None)
        if name is not None:
            self._bound[agent] = name

    def restore(self) -> None:
        """Tell memory all weights and bindings again, after a reset. On the engine's thread."""
        with self._lock:
            for found in self._by_name.values():
                self._memory.add_weights(found.weights)
            for agent, name in self._bound.items():
                self._memory.bind_weights(agent, self._by_name[name].weights.digest)

    def list(self) -> list[ModelInfo]:
        """The models beside the engine's own, sorted by name."""
        with self._lock:
            return [
                ModelInfo(
                    name, self._added[name][0], found.weights.num_pages, found.weights.digest.hex()
                )
                for name, found in sorted(self._by_name.items())
            ]
