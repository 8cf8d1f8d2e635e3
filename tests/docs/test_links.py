"""Links from the README and between pages lead to files, and to headings that are there.

``nox -s docs`` checks the site's; this also checks what is read outside of it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, inline_code, name_of

NAMES_FILES = [ROOT / "CONTRIBUTING.md", DOCS / "design.md"]
FOLDERS = [ROOT, *(ROOT / name for name in ("src/scalesim", "kernels/scalesim_kernels"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The headings of ``page`` as their links are written."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-") for text in headings}


def wrong_links(page: Path) -> list[str]:
    wrong = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        there = (page.parent / target).resolve() if target else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert wrong_links(page) == []


@pytest.mark.parametrize("page", NAMES_FILES, ids=name_of)
def test_files_that_are_named_are_there(page: Path) -> None:
    paths = [code for code in inline_code(page) if re.fullmatch(r"[\w/.]+(\.\w+|/\w+)", code)]
    files = [path for path in paths if path.endswith((".py", ".md", ".txt")) or "/" in path]
    assert files
    assert [path for path in files if not any((at / path).exists() for at in FOLDERS)] == []


def test_wrong_links_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading, here\n[a](page.md#a-heading-here) [b](#nothing) [c](none.md)\n")
    assert wrong_links(page) == ["#nothing", "none.md"]
