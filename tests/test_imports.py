"""Imports go one way, torch-free parts stay torch-free, and ``import scalesim`` is quick.

The import graph is read from the source: imports inside functions and under TYPE_CHECKING count
too. A new module at the top of ``scalesim`` needs a row in ``MAY_IMPORT``.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "scalesim": ROOT / "src" / "scalesim",
    "scalesim_kernels": ROOT / "kernels" / "scalesim_kernels",
}

VALUES = (
    "scalesim.checks",
    "scalesim.core",
    "scalesim.errors",
    "scalesim.foreign",
    "scalesim.interrupts",
    "scalesim.object_store",
    "scalesim.regular_file",
    "scalesim.strict_json",
    "scalesim._version",
)
MEMORY = (
    *VALUES,
    "scalesim.device",
    "scalesim.memory.counters",
    "scalesim.memory.geometry",
    "scalesim.memory.timing",
)
"""What any room of memory may use; the rooms below each are in its row."""
TREE = (*MEMORY, "scalesim.memory.links", "scalesim.memory.pools", "scalesim.memory.tree")
BELOW = (*TREE, "scalesim.memory.eviction", "scalesim.memory.tiers")
"""What decides and makes the moves of pages."""
DOOR = (
    "scalesim.memory.audit.auditor",
    "scalesim.memory.counters",
    "scalesim.memory.disk.disk_link",
    "scalesim.memory.disk.slot_files",
    "scalesim.memory.disk.slot_objects",
    "scalesim.memory.disk.slot_store",
    "scalesim.memory.eviction.policies",
    "scalesim.memory.geometry",
    "scalesim.memory.image",
    "scalesim.memory.image_columns",
    "scalesim.memory.kinds",
    "scalesim.memory.lease",
    "scalesim.memory.leases.adapters",
    "scalesim.memory.leases.weights",
    "scalesim.memory.leases.blobs",
    "scalesim.memory.links",
    "scalesim.memory.manager",
    "scalesim.memory.misses",
    "scalesim.memory.pools",
    "scalesim.memory.prefetch.config",
    "scalesim.memory.state",
    "scalesim.memory.timing",
    "scalesim.memory.owners",
    "scalesim.memory.tiers",
)
"""Memory for its callers: the manager, values, and what is made outside and handed to it."""
SCHEDULING = (
    *VALUES,
    "scalesim.batch",
    "scalesim.batch_options",
    "scalesim.config",
    *DOOR,
    "scalesim.sampling",
    "scalesim.scheduler",
)
ENGINE = (
    *SCHEDULING,
    "scalesim.chat",
    "scalesim.device",
    "scalesim.distance",
    "scalesim.engine",
    "scalesim.model",
    "scalesim.requests",
    "scalesim.snapshot",
    "scalesim.trace",
    "scalesim_kernels",
)

# Who may import what, beside itself; the row of the longest matching name counts.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "scalesim_kernels": ("torch", "triton"),
    "scalesim._version": (),
    "scalesim.errors": (),
    "scalesim.checks": ("scalesim.errors", "scalesim.interrupts"),
    "scalesim.core": ("scalesim.errors",),
    "scalesim.foreign": ("scalesim.checks", "scalesim.errors", "scalesim.interrupts"),
    "scalesim.interrupts": (),
    "scalesim.object_store": ("scalesim.foreign",),
    "scalesim.regular_file": ("scalesim.errors",),
    "scalesim.strict_json": ("scalesim.errors",),
    "scalesim.batch": ("scalesim.batch_options", "scalesim.core"),
    "scalesim.batch_options": ("scalesim.core",),
    "scalesim.distance": VALUES,
    "scalesim.distance.sources": (*VALUES, "scalesim.distance"),
    "scalesim.distance.learned": (*VALUES, "scalesim.distance"),
    "scalesim.device": VALUES,
    "scalesim.device.cuda": (*VALUES, "scalesim.device", "torch"),
    "scalesim.memory.counters": (),
    "scalesim.memory.geometry": VALUES,
    "scalesim.memory.timing": VALUES,
    "scalesim.memory.pools": MEMORY,
    "scalesim.memory.pools.pinned": (*MEMORY, "scalesim.memory.pools", "torch"),
    "scalesim.memory.pools.storage": (*MEMORY, "scalesim_kernels", "torch"),
    "scalesim.memory.links": (*MEMORY, "scalesim.memory.pools", "scalesim_kernels", "torch"),
    "scalesim.memory.page_log": (*MEMORY, "scalesim.memory.links", "scalesim.memory.pools"),
    "scalesim.memory.tree": (*MEMORY, "scalesim.memory.links"),
    "scalesim.memory.tiers": TREE,
    "scalesim.memory.eviction": (*TREE, "scalesim.memory.tiers"),
    "scalesim.memory.transfers": TREE,
    "scalesim.memory.compaction": (*BELOW, "scalesim.memory.drops"),
    "scalesim.memory.drops": BELOW,
    "scalesim.memory.room": (*BELOW, "scalesim.memory.drops"),
    "scalesim.memory.disk": (*MEMORY, "scalesim.memory.links", "scalesim.memory.pools"),
    "scalesim.memory.disk.moves": (*BELOW, "scalesim.memory.room", "scalesim.memory.transfers"),
    "scalesim.memory.residency": (
        *BELOW,
        "scalesim.memory.compaction",
        "scalesim.memory.disk.moves",
        "scalesim.memory.drops",
        "scalesim.memory.room",
        "scalesim.memory.transfers",
    ),
    "scalesim.memory.owners": (*TREE, "scalesim.memory.eviction", "scalesim.memory.prefetch"),
    "scalesim.memory.prefetch": (*TREE, "scalesim.memory.eviction", "scalesim.memory.residency"),
    "scalesim.memory.kinds": (*MEMORY, "scalesim.memory.links"),
    "scalesim.memory.lease": TREE,
    "scalesim.memory.misses": (*TREE, "scalesim.memory.lease", "scalesim.memory.prefetch"),
    "scalesim.memory.leases": (
        *TREE,
        "scalesim.memory.eviction",
        "scalesim.memory.kinds",
        "scalesim.memory.lease",
        "scalesim.memory.misses",
        "scalesim.memory.owners",
        "scalesim.memory.prefetch",
        "scalesim.memory.residency",
    ),
    "scalesim.memory.manager": (*MEMORY, "scalesim.memory"),
    "scalesim.memory.parts": (*MEMORY, "scalesim.memory"),
    "scalesim.memory.audit": (*MEMORY, "scalesim.memory"),
    "scalesim.memory": VALUES,
    "scalesim.config": (*VALUES, *DOOR),
    "scalesim.sampling": (
        *VALUES,
        "scalesim.batch",
        "scalesim.batch_options",
        "scalesim.config",
        "scalesim.model.checkpoint",
        "scalesim.model.text",
    ),
    "scalesim.scheduler": SCHEDULING,
    "scalesim.model": (
        *VALUES,
        "scalesim.batch",
        "scalesim.batch_options",
        "scalesim.device",
        "scalesim.memory.geometry",
        "scalesim.memory.kinds",
        "scalesim.memory.leases.adapters",  # what a read adapter is to memory
        "scalesim.memory.links",  # the timeline of fences that a runner and a link share
        "scalesim_kernels",
        "torch",
    ),
    **dict.fromkeys(
        ("scalesim.model.layers.hosted", "scalesim.model.layers.hosting"),
        (*VALUES, "scalesim.model", "scalesim_kernels", "torch", "transformers"),
    ),
    "scalesim.order": (  # for caches that are not ours; the order itself is the engine's
        *VALUES,
        "scalesim.distance",
        "scalesim.memory.eviction.lazy_heap",
        "scalesim.memory.tree.next_use",
        "scalesim.memory.tree.owner",
    ),
    "scalesim.vllm": (*VALUES, "scalesim.distance", "scalesim.order"),
    "scalesim.vllm.compat": ("vllm",),
    "scalesim.sglang": (
        *VALUES,
        "scalesim.order",
        "scalesim.memory.tree.next_use",
        "scalesim.memory.tree.owner",
    ),
    "scalesim.sglang.plugin": ("scalesim.sglang", "sglang"),
    "scalesim.vllm.plugin": ("scalesim.vllm", "vllm"),
    "scalesim.snapshot": VALUES,
    "scalesim.trace": VALUES,
    "scalesim.requests": (
        *SCHEDULING,
        "scalesim.distance",
        "scalesim.model.text",
    ),
    "scalesim.chat": (
        *VALUES,
        "scalesim.model.text",
        "scalesim.requests",
        "scalesim.sampling",
    ),
    "scalesim.engine": ENGINE,
    "scalesim.testing": (
        *VALUES,
        "scalesim.batch",
        "scalesim.batch_options",
        "scalesim.memory",
    ),
    "scalesim.testing.kind_contract": (
        *VALUES,
        "scalesim.memory.kinds",
        "scalesim.testing.contracts",
        "torch",
    ),
    "scalesim.testing.tag_parts": (
        *SCHEDULING,
        "scalesim.engine.parts",
        "scalesim.requests",
        "scalesim.testing",
    ),
    "scalesim.replay": (
        *SCHEDULING,
        "scalesim.distance",
        "scalesim.engine.loop",
        "scalesim.engine.parts",
        "scalesim.requests",
        "scalesim.testing",
        "scalesim.trace",
    ),
    "scalesim.replay.peers": (*VALUES, "scalesim.memory"),  # other planners, and other orders
    "scalesim.replay.bound": (),  # shares nothing with what it judges
    "scalesim.profile": (*VALUES, "scalesim.distance", "scalesim.trace"),
    "scalesim.doctor": (*ENGINE, "torch"),
    "scalesim.server": (*ENGINE, "scalesim.chat"),
    "scalesim.client": ("scalesim.checks", "scalesim.errors"),
    "scalesim.integrations": ("scalesim.checks", "scalesim.errors"),
    "scalesim.proxy": (
        *VALUES,
        "scalesim.profile",
        "scalesim.replay",
        "scalesim.server.identity",
        "scalesim.trace",
    ),
    "scalesim.village": (),
    "scalesim.cli": ("scalesim", "scalesim_kernels", "torch"),
    "scalesim.__main__": ("scalesim.cli",),
    "scalesim": ENGINE,  # the lazy names
}
WATCHED = (
    "scalesim",
    "scalesim_kernels",
    "torch",
    "triton",
    "transformers",
    "peft",
    "vllm",
    "sglang",
)
TORCH_FREE = (
    "batch", "batch_options", "core", "errors", "config", "device", "distance", "memory",
    "order", "profile", "replay", "scheduler", "snapshot", "testing", "trace", "village",
)  # fmt: skip
TORCH_MODULES = (
    "scalesim.device.cuda",
    "scalesim.memory.pools.pinned",
    "scalesim.memory.pools.storage",
    "scalesim.testing.kind_contract",  # views are made of tensors
)


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


MODULES = dict(modules())


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of each import; ``from a import b`` gives a.b if that is a module."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*up, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in MODULES else base


def allowed(module: str) -> tuple[str, ...]:
    rows = [name for name in MAY_IMPORT if is_in(module, name)]
    if module.count(".") and rows == ["scalesim"]:
        pytest.fail(f"{module} has no row in MAY_IMPORT: say what it may import")
    row = max(rows, key=len)
    return (*MAY_IMPORT[row], row) if row != "scalesim" else MAY_IMPORT[row]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module: str) -> None:
    may = allowed(module)
    wrong = [
        f"line {line} imports {name}"
        for line, name in imports(module, MODULES[module])
        if name.split(".")[0] in WATCHED and not any(is_in(name, other) for other in may)
    ]
    assert not wrong, f"{module} may import {', '.join(may)} only"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, by whatever way: what can be taken away neither from above
    nor from below."""
    while True:
        imported = set().union(*graph.values())
        ends = {name for name, uses in graph.items() if not uses or name not in imported}
        if not ends:
            return [[name, *sorted(uses)] for name, uses in graph.items()]
        graph = {name: uses - ends for name, uses in graph.items() if name not in ends}


def test_no_circles() -> None:
    graph = {
        module: {name for _, name in imports(module, path) if name in MODULES} - {module}
        for module, path in MODULES.items()
    }
    assert not circles(graph), "of each module, what it imports within a circle"
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"c"}}) == [["b", "c"], ["c", "b"]]


def parts_of_memory() -> set[str]:
    """What the manager is made of: all that it keeps, but values."""
    path = MODULES["scalesim.memory.parts"]
    parts = next(
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "MemoryParts"
    )
    kept = {
        node.attr
        for node in ast.walk(parts)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
    }
    return kept - {"block_size", "counters", "page_bytes", "policy"}


def behind_the_door(module: str) -> list[str]:
    """Where ``module`` goes through the manager into one of its parts."""
    parts = parts_of_memory()
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in parts
        and ast.unparse(node.value).split(".")[-1].lstrip("_") in ("memory", "manager")
    ]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_memory_is_reached_through_its_door(module: str) -> None:
    """Only memory itself, with its audit, and ``scalesim.testing`` look at the manager's parts."""
    if not any(is_in(module, name) for name in ("scalesim.memory", "scalesim.testing")):
        assert not behind_the_door(module)


def test_what_is_behind_the_door_is_seen() -> None:
    assert {"residency", "ranking", "owners", "planner", "timing"} <= parts_of_memory()
    assert behind_the_door("scalesim.memory.audit.integrity")


def test_the_graph_is_really_read() -> None:
    found = {name for module, path in MODULES.items() for _, name in imports(module, path)}
    assert {"scalesim.core", "scalesim.memory.geometry", "scalesim_kernels", "torch"} <= found


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torch_free_parts_load_without_torch() -> None:
    names = [
        module
        for module in MODULES
        if any(is_in(module, f"scalesim.{part}") for part in TORCH_FREE)
        and module not in TORCH_MODULES
    ]
    loads = "".join(f"import {name}\n" for name in names)
    found = python(f"{loads}import sys\nprint({{'torch', 'triton'}} & set(sys.modules))")
    assert found == "set()", f"{found} came with one of {names}"


def test_the_plug_in_loads_neither_torch_nor_the_engine_it_plugs_into() -> None:
    """What vLLM finds by its entry points, and what needs no class of vLLM's."""
    parts = ("", ".core_calls", ".device_tier", ".host_tier", ".plugin", ".routes", ".settings")
    loads = "".join(f"import scalesim.vllm{part}\n" for part in parts)
    loads += "import scalesim.sglang.plugin\n"
    found = python(f"{loads}import sys\nprint({{'torch', 'vllm', 'sglang'}} & set(sys.modules))")
    assert found == "set()"


def test_import_scalesim_loads_neither_torch_nor_triton() -> None:
    code = "import scalesim, sys; scalesim.SamplingParams; scalesim.errors.RequestError"
    assert python(f"{code}; print({{'torch', 'triton'}} & set(sys.modules))") == "set()"


def test_public_names_are_there() -> None:
    import scalesim

    assert [name for name in scalesim.__all__ if not hasattr(scalesim, name)] == []
    assert dir(scalesim) == sorted(scalesim.__all__)
    with pytest.raises(AttributeError, match="module 'scalesim' has no attribute 'Enigne'"):
        _ = scalesim.Enigne


def test_import_scalesim_is_quick() -> None:
    def seconds(code: str) -> float:
        begin = os.times()  # of the processor: other work on the machine counts for nothing
        python(code)
        end = os.times()
        return end.children_user + end.children_system - begin.children_user - begin.children_system

    best = {code: min(seconds(code) for _ in range(5)) for code in ("pass", "import scalesim")}
    assert best["import scalesim"] - best["pass"] < 0.3
