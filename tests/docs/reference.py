"""What the reference pages show, as objects: the names that are public, and what documents them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from tests.docs.pages import DOCS

DIRECTIVE = re.compile(r"^::: ([\w.]+)\n((?:    .*\n|\n(?=    ))*)", re.M)
MEMBERS = re.compile(r"members: \[([^\]]*)\]")
OURS = ("scalesim", "scalesim_kernels")


def directives() -> Iterator[tuple[str, str]]:
    """(dotted path, options as they are written) of each ``:::`` on the reference pages."""
    for page in sorted((DOCS / "reference").glob("*.md")):
        yield from DIRECTIVE.findall(page.read_text(encoding="utf-8") + "\n")


@cache
def shown() -> dict[str, Any]:
    """Every class and function that the pages show, and their members, by path."""
    found: dict[str, Any] = {}
    for path, options in directives():
        names = MEMBERS.search(options)
        only = [name.strip() for name in names[1].split(",") if name.strip()] if names else None
        found |= with_members(path, resolve(path), only)
    return found


@cache
def made_elsewhere() -> set[str]:
    """Classes whose pages leave out how they are made: users do not make them."""
    return {path for path, options in directives() if "merge_init_into_class: false" in options}


def resolve(path: str) -> Any:
    """The object of a dotted path."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ImportError(path)


def with_members(path: str, thing: Any, only: list[str] | None) -> dict[str, Any]:
    """``thing`` with its public members, or ``only`` these; of a module, the members alone."""
    if isinstance(thing, ModuleType):
        found: dict[str, Any] = {}
        for name in names_of(thing) if only is None else only:
            found |= with_members(f"{path}.{name}", getattr(thing, name), None)
        return found
    if not callable(thing):
        return {}
    members = public_members(thing) if only is None else only
    return {path: thing} | {f"{path}.{n}": inspect.getattr_static(thing, n) for n in members}


def names_of(module: ModuleType) -> list[str]:
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return list(getattr(module, "__all__", own))


def public_members(thing: Any) -> list[str]:
    """Methods and properties of a class, inherited ones too; ``__call__`` if that is its
    contract."""
    return list(
        dict.fromkeys(
            name
            for base in ours(thing)
            for name, value in vars(base).items()
            if (not name.startswith("_") or name == "__call__")
            and isinstance(value, (property, staticmethod, classmethod, Callable))  # type: ignore[arg-type]
            and name not in fields_of(thing)
        )
    )


def ours(thing: Any) -> list[type]:
    """A class and what it inherits from, as far as it is this project's."""
    bases = thing.__mro__ if inspect.isclass(thing) else ()
    return [base for base in bases if base.__module__.split(".")[0] in OURS]


def is_record(thing: Any) -> bool:
    return inspect.isclass(thing) and dataclasses.is_dataclass(thing)


def fields_of(thing: Any) -> list[str]:
    """Names of a record's public fields."""
    found = dataclasses.fields(thing) if is_record(thing) else ()
    return [field.name for field in found if not field.name.startswith("_")]


def function_of(thing: Any) -> Any:
    """The function behind a method, a property, a static or class method."""
    if isinstance(thing, property):
        return thing.fget
    return inspect.unwrap(getattr(thing, "__func__", thing))


def owner_of(path: str) -> Any:
    """The class that a member is shown in; ``None`` for others."""
    owner = shown().get(path.rpartition(".")[0])
    return owner if inspect.isclass(owner) else None


def doc_of(thing: Any) -> str:
    """Its own docstring; not the one that ``dataclasses`` makes up."""
    text = (thing.__doc__ if inspect.isclass(thing) else function_of(thing).__doc__) or ""
    made_up = is_record(thing) and text.startswith(f"{thing.__name__}(")
    return "" if made_up else text


def own_docs(path: str) -> list[str]:
    """Docstrings of what ``path`` names: a method's may stand where it is inherited from, an op's
    at its call."""
    name, owner = path.rpartition(".")[2], owner_of(path)
    if owner is not None:
        return [doc_of(vars(base)[name]) for base in ours(owner) if name in vars(base)]
    thing = shown()[path]
    call = vars(thing).get("__call__") if inspect.isclass(thing) else None
    return [doc_of(thing), *([doc_of(call)] if call else [])]


def contract(path: str) -> str:
    """All that is said of ``path``: its docstrings, its class's and its bases', its module's."""
    classes = ours(owner_of(path) or shown()[path])
    makers = [vars(each).get("__init__") for each in classes]
    texts = [*own_docs(path), *map(doc_of, classes), *(m.__doc__ or "" for m in makers if m)]
    texts += [module.__doc__ or "" for name, module in shown_modules() if path.startswith(name)]
    return "\n".join(texts)


@cache
def shown_modules() -> list[tuple[str, ModuleType]]:
    """Modules whose own docstring is on a page: it says what all that is in them has in common."""
    found = [(f"{path}.", resolve(path)) for path, _ in directives()]
    return [(name, thing) for name, thing in found if isinstance(thing, ModuleType)]
