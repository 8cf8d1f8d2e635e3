"""What docstrings and comments name in double backticks is there: a rename takes them along."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("src/scalesim", "kernels/scalesim_kernels", "benchmarks")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
NAMED = re.compile(r"``([A-Za-z_]\w*(?:\.\w+)*)(?:\([^`]*\))?``")
FOREIGN = {
    "adapter_config.json", "adapter_model.safetensors", "added_tokens.json", "asyncio.wrap_future",
    "concurrent.futures", "dynamo.agentic_mooncake", "dynamo.request.trace.v1", "ptx", "qkv_proj",
    "structured", "tokenizer_config.json",
    # vLLM's
    "ChunkStatus", "EndpointPlugin", "FreeKVCacheBlockQueue", "KVCacheBlock", "KvHintsEnvelope",
    "vllm.endpoint_plugins", "vllm.general_plugins",
    # SGLang's
    "EvictionStrategy", "sglang.srt.plugins",
}  # fmt: skip
"""Files, formats and libraries of others."""


def names_in(tree: ast.AST) -> set[str]:
    """Every identifier of a file, and every string that is one."""
    names: set[str] = set()
    for node in ast.walk(tree):
        for field in ("name", "id", "attr", "arg", "asname", "value"):
            value = getattr(node, field, None)
            if isinstance(value, str) and re.fullmatch(r"[\w.]+", value):
                names.update(value.split("."))
    return names


@pytest.fixture(scope="module")
def known() -> set[str]:
    names = {*dir(builtins), *keyword.kwlist, "py", "md"}
    for folder in (*FOLDERS, "tests"):
        for path in (ROOT / folder).rglob("*.*"):
            names.update((*path.parts, path.stem))
            if path.suffix == ".py":
                names |= names_in(ast.parse(path.read_text(encoding="utf-8")))
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_things_are_there(path: Path, known: set[str]) -> None:
    found = NAMED.findall(path.read_text(encoding="utf-8"))
    wrong = [
        name for name in found if name not in FOREIGN and not known.issuperset(name.split("."))
    ]
    assert wrong == []


def test_a_wrong_name_is_seen(known: set[str]) -> None:
    assert NAMED.findall("``PagePool`` and ``page_pool.allocate(1)``") == [
        "PagePool", "page_pool.allocate",
    ]  # fmt: skip
    assert {"PagePool", "allocate"} <= known and "Standing" + "s" not in known
