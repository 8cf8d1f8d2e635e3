"""Where commands print and write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from scalesim.errors import ConfigError


class Output(Console):
    """Stdout. Where nobody reads it any more, ``main`` says how the command ends."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def check_writable(path: Path, option: str) -> None:
    """Raise ``ConfigError`` for a file that ``option`` names and nobody could write; before the
    work, for it would be lost."""
    folder = path.parent
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; give a file's name")
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"{option} {path}: no permission to write it")
