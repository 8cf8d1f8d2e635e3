"""Segments, leases and agents keep their own fields: nobody outside their files writes one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import scalesim
from scalesim.memory import lease
from scalesim.memory.tree import owner as agents
from scalesim.memory.tree import run, segment

SOURCE = Path(scalesim.__file__).parent
CLASSES = {
    lease: (lease.Lease,),
    agents: (agents.AgentState,),
    run: (run.Run,),
    segment: (segment.Segment,),
}
# Hooks that the structures beside them keep in an agent: in which bucket it waits, and whether a
# ranking has something of its own.
OF_OTHERS = {"wake_bucket": {"wake_queue.py"}, "may_be_ranked": {"owners.py", "ranking.py"}}
NAMED = {"lease", "segment", "partial", "adapter"}  # what they are called outside of memory
CHANGES = {"add", "append", "clear", "extend", "insert", "pop", "remove", "setdefault", "update"}


def fields() -> dict[str, Path]:
    return {
        name: Path(str(module.__file__))
        for module, classes in CLASSES.items()
        for kind in classes
        for name in vars(kind)["__slots__"]
    }


def written(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Attributes that are assigned, deleted, or changed in place."""
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = list(node.targets)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            targets = [node.func.value] * (node.func.attr in CHANGES)
        while targets:
            target = targets.pop()
            if isinstance(target, ast.Tuple | ast.List):
                targets += target.elts
            elif isinstance(target, ast.Subscript | ast.Starred):
                targets.append(target.value)
            elif isinstance(target, ast.Attribute):
                yield target


def receiver(attribute: ast.Attribute) -> str:
    value = attribute.value
    if isinstance(value, ast.Attribute):
        return value.attr
    return value.id if isinstance(value, ast.Name) else ""


def test_nobody_outside_writes_a_field() -> None:
    known = fields()
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        of_memory = SOURCE / "memory" in path.parents
        for attribute in written(ast.parse(path.read_text(encoding="utf-8"))):
            name, whose = attribute.attr, receiver(attribute)
            if name not in known or known[name] == path or whose == "self":
                continue
            if (of_memory or whose in NAMED) and path.name not in OF_OTHERS.get(name, ()):
                found.append(f"{path.relative_to(SOURCE)}:{attribute.lineno}: {whose}.{name}")
    assert not found, "\n".join(found)
