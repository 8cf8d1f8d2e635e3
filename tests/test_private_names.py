"""Tests and benchmarks use no private name of what they test: a refactoring changes those freely.

A name with one leading underscore may be used on ``self`` or where the same file makes it (its own
helpers, its own classes). Parts without a public way to them are found by class: ``tests.inside``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("tests", "benchmarks", "src/scalesim/testing")
ALLOWED = {"_", "_version"}
ALLOWED |= {"_replace", "_exit", "_sleep", "_is_protocol"}  # of named tuples, os, torch and typing
IN_A_STRING = re.compile(r"scalesim[\w.]*\._[a-z]\w*")
BY_NAME = ("setattr", "getattr", "delattr", "object")  # (thing, "name", …)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ALLOWED


def own_names(tree: ast.AST) -> set[str]:
    """Private names that a file makes itself, but for methods that it puts in place of a base's."""
    own: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                own.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    return own


def called(node: ast.AST) -> str:
    """The last name of what a call calls."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))


def private_uses(source: str) -> Iterator[str]:
    """Each use of a private name that is not the file's own, with its line."""
    tree = ast.parse(source)
    own = own_names(tree)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            if node.attr not in own or called(node.value) == "super":
                names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scalesim"):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [found.rsplit(".", 1)[1] for found in IN_A_STRING.findall(node.value)]
        elif called(node) in BY_NAME:
            assert isinstance(node, ast.Call)
            names = [
                each.value
                for each in node.args[1:2]
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            ]
        yield from (f"line {node.lineno}: {name}" for name in names if is_private(name))


def test_no_private_name_is_used() -> None:
    uses = [
        f"{path.relative_to(ROOT)}, {use}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for use in private_uses(path.read_text(encoding="utf-8"))
    ]
    assert uses == []


def test_a_private_name_is_seen() -> None:
    source = """
from scalesim.engine import _hidden
class Own(Base):
    def _mine(self):
        self._kept = self._theirs + super()._mine()
patch.setattr(Engine, "_turn", engine._loop)
patch("scalesim.engine!_number")
own._kept, own._mine, point._replace(x=1)
""".replace("!", ".")
    found = [use.rsplit(" ", 1)[1] for use in private_uses(source)]
    assert sorted(found) == ["_hidden", "_loop", "_mine", "_number", "_theirs", "_turn"]
