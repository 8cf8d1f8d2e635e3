"""Every Python example of the documentation runs: page by page, on tiny models of the names that
the pages use. What is not run says why in its title, and is shown as skipped."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scalesim.engine.engine import Engine
from tests.docs.folders import write_folders, write_model
from tests.docs.pages import DOCS, LANGUAGES, NOT_RUN, PAGES, ROOT, Block, blocks_of, name_of

SMALL = {"device_memory": "64MB", "host_memory": "256MB"}
COMPILING = "scalesim_kernels.cpu_kernel"  # says that kernels are compiled, the first time
ALL = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in ALL if block.language == "python"]
BY_PAGE = {
    name_of(page): found
    for page in PAGES
    if (found := [b for b in PYTHON if b.page == page and b.is_run and not b.is_program])
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, from which docs/examples can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(DOCS / "examples"))
    return tmp_path


@pytest.mark.parametrize("page", BY_PAGE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # numpy's, in masked lanes
def test_the_examples_of_a_page_run_in_order(
    page: str, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = BY_PAGE[page]
    write_folders(here, blocks)
    names: dict[str, Any] = {"__name__": "__main__"}
    with ExitStack() as stack:
        if not makes_engine(blocks):
            names["engine"] = Engine(write_model(here / "model"), **SMALL)
        for block in blocks:
            run(block, names)
        for value in names.values():  # an engine that the page leaves open for its reader
            if type(value).__name__ == "Engine":
                stack.callback(value.close)
    logged = [record for record in caplog.records if record.name != COMPILING]
    assert not logged  # what fails on the engine's thread and is advice only, is logged


def makes_engine(blocks: list[Block]) -> bool:
    """Whether a page's code gives a meaning to ``engine``; where it does not, it is one that is
    there already."""
    stored = (
        node.id
        for block in blocks
        for node in ast.walk(ast.parse(block.code))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    return "engine" in stored


def run(block: Block, names: dict[str, Any]) -> None:
    """Like a cell of a notebook: ``await`` may stand outside of functions. Lines of a traceback are
    the page's."""
    source = "\n" * (block.line - 1) + block.code
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(source, str(block.page), "exec", flags=flags, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, names))
    else:
        exec(code, names)


@pytest.mark.parametrize("block", [b for b in PYTHON if b.is_program], ids=str)
def test_programs_run(block: Block, here: Path) -> None:
    assert block.title is not None
    write_folders(here, [block])
    (here / block.title).write_text(block.code, encoding="utf-8")
    path = os.pathsep.join([str(DOCS / "examples"), *sys.path])
    env = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, block.title],
        capture_output=True,
        text=True,
        env={**env, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_what_is_not_run_is_python_at_least() -> None:
    left_out = [block for block in PYTHON if not block.is_run]
    for block in left_out:
        compile(block.code, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if left_out:
        pytest.skip(", ".join(f"{block} {block.title}" for block in left_out))


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "json"], ids=str)
def test_json_parses(block: Block) -> None:
    try:
        json.loads(block.code)
    except ValueError:
        for line in block.code.splitlines():
            json.loads(line)


def test_every_block_says_what_it_is() -> None:
    assert [f"{b}: {b.language!r}" for b in ALL if b.language not in LANGUAGES] == []
    titles = {block.title for block in PYTHON if not block.is_program} - {None, *NOT_RUN}
    assert not titles, f"{titles}: a title is a program's name or one of {NOT_RUN}"


def test_the_quick_start_is_the_same_wherever_it_stands() -> None:
    pages = (ROOT / "README.md", DOCS / "index.md", DOCS / "start.md")
    programs = [[block.code for block in blocks_of(page) if block.is_run] for page in pages]
    assert programs[0] == programs[1] == programs[2]


def test_the_pages_are_really_read() -> None:
    run = {name_of(block.page) for block in PYTHON if block.is_run}
    assert {"README.md", "docs/start.md", "docs/embedding.md", "docs/distance.md"} <= run
    assert (ROOT / "docs" / "examples" / "my_kernel.py").exists()
