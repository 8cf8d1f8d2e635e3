"""An engine that writes down what it is told, and answers without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


@dataclass
class Notebook:
    """As much of an engine, or of a client, as adapters use. ``told`` has what was said, in order:
    ``("tick", n)`` and ``("expect", times)``; who is expected must be known."""

    told: list[tuple[str, Any]] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    calls: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)

    def agent(self, id: str) -> Writer:
        self.known.add(id)
        return Writer(self, id)

    def expect(self, agents: str | Mapping[str, float], ticks: float | None = None) -> None:
        times = dict(agents) if isinstance(agents, Mapping) else {agents: ticks}
        assert self.known >= times.keys()
        self.told.append(("expect", times))

    def tick(self, n: float = 1) -> None:
        self.told.append(("tick", n))

    @property
    def expected(self) -> list[dict[str, float]]:
        return [what for kind, what in self.told if kind == "expect"]


@dataclass
class Writer:
    """An agent of a ``Notebook``."""

    notebook: Notebook
    id: str

    def generate(self, prompt: Any, **options: Any) -> Any:
        self.notebook.calls.append((self.id, prompt, options))
        return SimpleNamespace(text=f"{self.id} speaks")

    def choose(self, prompt: Any, options: Sequence[str]) -> Any:
        self.notebook.calls.append((self.id, prompt, {"options": options}))
        scores = tuple(SimpleNamespace(logprob=-float(len(option))) for option in options)
        index = max(range(len(options)), key=lambda place: scores[place].logprob)
        return SimpleNamespace(index=index, option=options[index], scores=scores)


class AsyncNotebook(Notebook):
    """The same with coroutines, as ``AsyncClient`` has them."""

    async def expect(self, agents: Any, ticks: float | None = None) -> None:  # type: ignore[override]
        super().expect(agents, ticks)

    async def tick(self, n: float = 1) -> None:  # type: ignore[override]
        super().tick(n)
