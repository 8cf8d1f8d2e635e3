"""What the reference shows is documented: each name, each parameter and field, each error raised.

The reference pages say what is public; every ``__all__`` must be on them. A parameter counts as
documented where its name stands in the docstring of the function, of its class, of what that
inherits from or of its module; where one of these names a record of which it is a field; where its
type is one that the reference shows; or, for a field, in a comment or a string of its own. An error
that a function raises itself must stand in one of these docstrings.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import scalesim_kernels
import scalesim_kernels.conformance

import scalesim.distance
import scalesim.errors
import scalesim.testing
from tests.docs.reference import (
    contract,
    doc_of,
    fields_of,
    function_of,
    is_record,
    made_elsewhere,
    own_docs,
    shown,
)

PACKAGES = (scalesim, scalesim.distance, scalesim_kernels, scalesim_kernels.conformance)
CLASSES = {thing.__name__ for thing in shown().values() if inspect.isclass(thing)}
RECORDS = [thing for thing in shown().values() if is_record(thing)]


@pytest.mark.parametrize("path", shown())
def test_has_a_docstring(path: str) -> None:
    assert any(own_docs(path)), f"{path} has no docstring"


@pytest.mark.parametrize("path", sorted(shown().keys() - made_elsewhere()))
def test_parameters_are_documented(path: str) -> None:
    thing, text = shown()[path], contract(path)
    known = commented(thing) | typed(thing)
    for record in RECORDS:
        if f"``{record.__name__}``" in text:
            known |= set(fields_of(record))
    missing = [
        name
        for name in parameters(thing)
        if name not in known and not re.search(rf"\b{name}\b", text)
    ]
    assert not missing, f"{path}: say what {', '.join(missing)} is (unit, shape, meaning)"


def parameters(thing: Any) -> list[str]:
    """Names that a caller may give."""
    if is_record(thing):
        return fields_of(thing)
    is_made = inspect.isclass(thing) and "__init__" in vars(thing)
    if (inspect.isclass(thing) and not is_made) or getattr(thing, "_is_protocol", False):
        return []
    if isinstance(thing, property):
        return []
    signature = inspect.signature(thing if is_made else function_of(thing))
    return [
        name
        for name, parameter in signature.parameters.items()
        if name not in ("self", "cls")
        and not name.startswith("_")
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]


def typed(thing: Any) -> set[str]:
    """Parameters whose type says what they are: a class of the reference, or that or ``None``."""
    made = vars(thing).get("__init__") if inspect.isclass(thing) else function_of(thing)
    notes = vars(thing).get("__annotations__", {}) if is_record(thing) else None
    notes = getattr(made, "__annotations__", {}) if notes is None else notes
    return {name for name, kind in notes.items() if str(kind).split(" | ")[0] in CLASSES}


def commented(thing: Any) -> set[str]:
    """Fields of a record with a comment behind them, a string below, or a help of their own."""
    if not is_record(thing):
        return set()
    source = textwrap.dedent(inspect.getsource(thing))
    nodes: list[Any] = list(ast.parse(source).body[0].body)  # type: ignore[attr-defined]
    lines, found = source.splitlines(), set[str]()
    for node, after in zip(nodes, [*nodes[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            below = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            own = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if below or "  # " in own or "help=" in own:
                found.add(node.target.id)
    return found


@pytest.mark.parametrize("path", shown())
def test_errors_are_documented(path: str) -> None:
    thing = shown()[path]
    functions = [function_of(thing)]
    if inspect.isclass(thing):
        functions = [vars(thing).get(name) for name in ("__init__", "__post_init__")]
        if getattr(thing, "_is_protocol", False):  # its maker is typing's
            functions = []
    raised = {name for function in functions if function for name in raised_by(function)}
    missing = sorted(name for name in raised if name not in contract(path))
    assert not missing, f"{path} raises {', '.join(missing)}; its docstring does not say so"


def raised_by(function: Any) -> Iterator[str]:
    """Names of the exceptions that a function's own body raises anew."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):  # made by dataclasses
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            called = node.exc.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            if name.endswith("Error"):
                yield name


def test_everything_public_is_in_the_reference() -> None:
    there = {id(thing) for thing in shown().values()}
    errors = [error for error in vars(scalesim.errors).values() if inspect.isclass(error)]
    public = {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in (*PACKAGES, scalesim.testing)
        for name in getattr(module, "__all__", ())
    }
    public |= {f"scalesim.errors.{error.__name__}": error for error in errors}
    assert [path for path, it in public.items() if callable(it) and id(it) not in there] == []


def test_the_checks_see_what_is_missing() -> None:
    def silent(size: int) -> None:
        """A docstring."""
        raise scalesim.errors.ConfigError("size")

    @dataclasses.dataclass
    class Record:
        told: int  # bytes
        below: int
        """Seconds."""
        silent: int

    assert list(raised_by(silent)) == ["ConfigError"]
    assert parameters(silent) == ["size"]
    assert parameters(Record) == ["told", "below", "silent"]
    assert commented(Record) == {"told", "below"}
    assert doc_of(Record) == ""
    assert "scalesim.Engine.run" in shown()
