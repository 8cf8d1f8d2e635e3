"""The pages that users read, and the fenced blocks in them.

What a block is follows from its first line, which readers of the site see too:

    python                          runs, after the blocks above it on its page
    python title="name.py"          a program of its own, run by a Python of its own
    python title="Needs a GPU"      not run: shown as skipped
    python title="Needs a download" likewise; so "Needs a server", "Needs a framework"
    sh                              commands, checked against the programs' own parsers
    json                            must parse, line by line or as a whole
    text                            for people only
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
LANGUAGES = ("python", "sh", "json", "text")
NOT_RUN = ("Needs a GPU", "Needs a download", "Needs a server", "Needs a framework")

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`\n]*)$")
_TITLE = re.compile(r'title="([^"]*)"')
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its page, the line of its first code, its language, title and code."""

    page: Path
    line: int
    language: str
    title: str | None
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_program(self) -> bool:
        return self.title is not None and self.title.endswith(".py")

    @property
    def is_run(self) -> bool:
        return self.language == "python" and self.title not in NOT_RUN


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of ``page``, in order."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        number += 1
        if opened is None:
            continue
        first, closing = number, opened["indent"] + opened["ticks"]
        while lines[number].rstrip() != closing:  # an open fence runs into IndexError
            number += 1
        language, _, rest = opened["info"].strip().partition(" ")
        title = _TITLE.search(rest)
        code = "\n".join(line[len(opened["indent"]) :] for line in lines[first:number]) + "\n"
        found.append(Block(page, first + 1, language, title and title[1], code))
        number += 1
    return found


def inline_code(page: Path) -> list[str]:
    """What stands in single backticks outside of blocks."""
    text = page.read_text(encoding="utf-8")
    return _CODE.findall(re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.S | re.M))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
