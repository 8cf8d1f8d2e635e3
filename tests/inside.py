"""What a running object is made of, found by class: tests need not know who keeps it, nor where."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeVar

from scalesim.engine.ask import ask
from scalesim.engine.engine import Engine
from scalesim.engine.inbox import Inbox
from scalesim.engine.thread import EngineThread
from scalesim.memory.audit.integrity import check_integrity

T = TypeVar("T")


def below(thing: Any) -> list[tuple[str, Any]]:
    """What an object of ours, a container or a closure refers to, by name."""
    kind = type(thing)
    if kind in (dict, OrderedDict):
        keys = [("key", key) for key in thing]
        return keys + [(f"[{key!r:.40}]", value) for key, value in thing.items()]
    if kind in (list, tuple, set, frozenset, deque) or issubclass(kind, tuple):
        return [("[]", item) for item in thing]
    if kind is FunctionType:
        return [("closure", cell.cell_contents) for cell in thing.__closure__ or ()]
    if kind is MethodType:
        return [("self", thing.__self__)]
    if kind is partial:
        return [("partial", item) for item in (thing.func, *thing.args)]
    if not kind.__module__.startswith(("scalesim", "tests")):
        return []
    slots = [name for made in kind.__mro__ for name in getattr(made, "__slots__", ())]
    names = [*getattr(thing, "__dict__", ()), *(name for name in slots if hasattr(thing, name))]
    return [(name, getattr(thing, name)) for name in names]


def reachable(thing: object, but: tuple[type, ...] = ()) -> Iterator[tuple[str, Any]]:
    """All that hangs from ``thing``, the nearest first, with the path to it; not what hangs from an
    object of a kind in ``but``."""
    seen: set[int] = set()
    line = deque([(type(thing).__name__, thing)])
    while line:
        path, found = line.popleft()
        if type(found) is not str:
            if id(found) in seen:
                continue
            seen.add(id(found))
        yield path, found
        if not isinstance(found, but):
            line += [(f"{path}.{name}", item) for name, item in below(found)]


def part(thing: object, kind: type[T]) -> T:
    """The nearest ``kind`` that ``thing`` is made of."""
    return next(found for _, found in reachable(thing) if isinstance(found, kind))


def between_steps(engine: Engine, question: Callable[[], T]) -> T:
    """What ``question`` says on the engine's thread. On any other thread it would read, or change,
    what a step is changing: an engine goes on after its last reply, with loads for the next."""
    return ask(part(engine, EngineThread), part(engine, Inbox), question)


def check_memory(engine: Engine) -> None:
    """``check_integrity`` of an engine that runs."""
    parts = engine.parts
    between_steps(engine, lambda: check_integrity(parts.memory, parts.scheduler.leases()))


def let_copies_end(engine: Engine) -> None:
    """Wait until no copy is under way."""
    while between_steps(engine, lambda: engine.parts.memory.is_moving):
        pass
