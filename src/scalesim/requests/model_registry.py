"""The models of an engine, by name: its own, and those that were added beside it.

A model is read on the thread that adds it. Its weights are the pools' from then on. A name that is
given other content is a new version of the model. The version that a call runs on is settled when
the call is made of its request, since its tokens are of that version's tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

from scalesim.checks import flag, path_of, shown, text
from scalesim.core import AgentId
from scalesim.errors import ModelError
from scalesim.memory.lease import WEIGHTS
from scalesim.requests.adapter_home import AdapterHome
from scalesim.requests.added_model import AddedModel, JoinModel
from scalesim.requests.bindings import Bindings
from scalesim.requests.prompt import TextModel

if TYPE_CHECKING:
    from scalesim.memory.manager import MemoryManager
    from scalesim.requests.agent_registry import AgentEntry
    from scalesim.requests.call import Call


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model beside the engine's own: its folder or hub id, the pages of its weights, and how many
    tokens of its KV a page holds."""

    name: str
    path: str
    num_pages: int
    digest: str
    block_size: int


class ModelRegistry(Bindings[AddedModel]):
    """``Engine.models``: the models beside the engine's ``own``, whose adapters have ``home``."""

    kind, noun, error = WEIGHTS, "model", ModelError

    def __init__(
        self,
        own: TextModel,
        home: AdapterHome,
        join: JoinModel | None,
        memory: MemoryManager,
        post: Callable[[Callable[[], None]], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(post, check)
        self.own, self._home, self._join_model, self._memory = own, home, join, memory
        self._num_joined = 0
        self._made: WeakSet[AddedModel] = WeakSet()

    def add(
        self, name: str, path: str | Path, dummy_weights: bool = False, replace: bool = False
    ) -> None:
        """``Engine.add_model``."""
        self._check()
        name = text("model name", name, ModelError, empty=False)
        path_of("path", path, ModelError)
        flag("dummy_weights", dummy_weights, ModelError)
        flag("replace", replace, ModelError)
        if self._join_model is None:
            raise ModelError("this engine's parts take no further models (join_model)")
        self._check_free(name, replace)
        with self._lock:
            self._num_joined += 1
            number = self._num_joined
        found = self._join_model(name, path, number, dummy_weights)
        try:
            with self._lock:
                self._check_free(name, replace)  # another thread may have added it meanwhile
                kept = _unread(found)
                self._made.add(kept)
                self._put(name, (found.weights.digest, number), kept, found)
        except BaseException:
            self._post(found.forget)
            raise

    def _check_free(self, name: str, replace: bool) -> None:
        if name in self and not replace:
            raise ModelError(
                f"model name {shown(name)} is taken, by {self.known(name).value.path}; choose "
                "another, or give replace=True"
            )

    def list(self) -> list[ModelInfo]:
        """The models beside the engine's own, sorted by name."""
        return [_info(found) for found in sorted(self.all(), key=lambda found: found.name)]

    # -- for the engine -----------------------------------------------------------------------

    def all(self) -> tuple[AddedModel, ...]:
        """The models beside the engine's own, in the order in which their names came."""
        with self._lock:
            return tuple(version.value for version in self._by_name.values())

    def version_of(self, agent: AgentEntry | None) -> AddedModel | None:
        """The version of a model that calls of ``agent`` run on; ``None``: the engine's own. Raises
        ``ModelError``."""
        name = None if agent is None else agent.model
        return None if name is None else self.known(name).value

    def text_of(self, added: AddedModel | None) -> TextModel:
        """The text model of a version; ``None``: the engine's own."""
        return self.own if added is None else added.text

    def max_len(self, added: AddedModel | None, num_beside: int) -> int:
        """The most tokens of a prompt and its output that fit into the device pool beside the
        weights of ``added`` and ``num_beside`` other pages."""
        model, memory = self.text_of(added), self._memory
        num_beside += 0 if added is None else added.weights.num_pages
        if not num_beside:
            return model.max_len
        block_size = memory.block_size if added is None else added.block_size
        return min(model.max_len, (memory.num_pages - num_beside) * block_size)

    def home_of(self, name: str | None) -> AdapterHome:
        """The home of a model's adapters; ``None``: of the engine's own."""
        return self._home if name is None else self.known(name).value.home

    def is_of(self, call: Call) -> bool:
        """Whether ``call`` runs, or ran, on a model of this engine."""
        return call.model is self.own or call.added in self._made

    def _join(self, value: AddedModel) -> None:
        self._memory.add_weights(value.weights)

    def _leave(self, value: AddedModel, is_last: bool) -> None:
        if is_last:
            self._memory.remove_weights(value.weights.digest)
        value.forget()

    def _own(self, agent: AgentId, digest: bytes | None) -> None:
        self._memory.bind_weights(agent, digest)


def _info(model: AddedModel) -> ModelInfo:
    num_pages, digest = model.weights.num_pages, model.digest.hex()
    return ModelInfo(model.name, model.path, num_pages, digest, model.block_size)


def _unread(model: AddedModel) -> AddedModel:
    """``model`` without its pages, which only the pools keep."""
    return replace(model, weights=replace(model.weights, pages=None))
