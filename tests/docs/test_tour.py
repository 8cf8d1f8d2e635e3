"""The tour leads through the tree as it is: its files and names are there, and its budgets hold.

A real request is run and watched: every file of the package that takes part is on the path that
the tour gives, or in its table of what a first reading can leave out.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import scalesim
from tests.docs.pages import DOCS
from tests.engine.world import tiny_engine

TOUR = DOCS / "tour.md"
PACKAGE = Path(scalesim.__file__).parent
MAX_FILES, MAX_LINES = 25, 4_000
STOPS = 12


@dataclass(frozen=True)
class Row:
    """A row of a table whose first cell is a file: its path, and the other cells."""

    path: str
    cells: tuple[str, ...]

    @property
    def budget(self) -> int:
        return int(self.cells[0])


def section(title: str) -> str:
    text = TOUR.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"the tour has no section {title!r}"
    return found[1]


def rows_of(title: str) -> list[Row]:
    rows = []
    for line in section(title).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            rows.append(Row(cells[0].strip("`"), tuple(cells[1:])))
    return rows


NOTHING_CALLED = {"requests/request.py", "requests/reply.py"}
"""Plain records: read, but without functions of their own that a request calls."""
PATH, OFF_PATH = rows_of("The path of a request"), rows_of("Off the path")
STOP = re.compile(r"^## (\d+)\. .+: `([\w/]+\.py)`$", re.M)


def num_lines(path: str) -> int:
    return len((PACKAGE / path).read_text(encoding="utf-8").splitlines())


def test_stops_are_files_in_order() -> None:
    stops = STOP.findall(TOUR.read_text(encoding="utf-8"))
    assert [int(number) for number, _ in stops] == list(range(1, STOPS + 1))
    assert [path for _, path in stops if not (PACKAGE / path).is_file()] == []


def test_names_of_a_stop_are_in_its_file() -> None:
    text = TOUR.read_text(encoding="utf-8")
    parts = re.split(r"^## ", text, flags=re.M)
    wrong = []
    for part in parts:
        found = STOP.match("## " + part)
        if found is None:
            continue
        source = (PACKAGE / found[2]).read_text(encoding="utf-8")
        for code in re.findall(r"`([^`\n]+)`", part.partition("\n")[2]):
            name = code.partition("(")[0]
            if re.fullmatch(r"\w+(\.\w+)*", name):
                wrong += [
                    f"{found[2]}: {word}"
                    for word in name.split(".")
                    if not re.search(rf"\b{re.escape(word)}\b", source)
                ]
    assert wrong == []


def test_the_path_keeps_its_budget() -> None:
    assert len(PATH) <= MAX_FILES
    assert [
        f"{row.path}: {num_lines(row.path)}" for row in PATH if num_lines(row.path) > row.budget
    ] == []
    assert sum(num_lines(row.path) for row in PATH) <= MAX_LINES
    assert sum(row.budget for row in PATH) <= MAX_LINES


def test_files_off_the_path_are_there() -> None:
    assert [row.path for row in OFF_PATH if not (PACKAGE / row.path).exists()] == []


@contextmanager
def watched(files: set[str]) -> Iterator[None]:
    """Collect the package's files whose functions are called meanwhile, on every thread."""
    prefix = f"{PACKAGE}/"

    def profile(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(prefix):
            files.add(name[len(prefix) :])

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def test_a_request_meets_no_other_files() -> None:
    files: set[str] = set()
    with tiny_engine(integrity="quarantine") as engine:
        request = engine.agent("ada").request([1, 2, 3, 4] * 10, max_tokens=8)
        with watched(files):  # the engine's thread starts with its first request
            engine.run([request])
    path = {row.path for row in PATH}
    off = tuple(row.path for row in OFF_PATH)
    assert path - files <= NOTHING_CALLED, "no request meets these"
    assert sorted(name for name in files - path if not name.startswith(off)) == []


def test_a_file_is_named_once() -> None:
    paths = [row.path for row in (*PATH, *OFF_PATH)]
    assert len(set(paths)) == len(paths)
