"""The demo's picture: the live view as it is at the end, the table and the verdict, as SVG."""

from __future__ import annotations

import re
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType

from scalesim.cli.screen import WIDE

_FONT_FROM_THE_NET = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def write_picture(path: Path, title: str, parts: Iterable[RenderableType]) -> None:
    """Draw ``parts``, one below the other, as a terminal shows them. Raises ``OSError``."""
    console = Console(
        record=True, width=WIDE, file=StringIO(), force_terminal=True, color_system="truecolor"
    )
    for part in parts:
        console.print(part, highlight=False)
    svg = console.export_svg(title=title, unique_id="demo")
    path.write_text(_FONT_FROM_THE_NET.sub("", svg), encoding="utf-8")  # none is loaded anyway
