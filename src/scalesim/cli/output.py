"""Output of commands: stdout, and checks of files to write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from scalesim.errors import ConfigError


class Output(Console):
    """A console on stdout that raises if stdout is closed, so that ``main`` ends the command."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def check_writable(path: Path, option: str) -> None:
    """Raise ``ConfigError`` if ``path``, given as ``option``, cannot be written; called before the
    work, whose result would be lost."""
    folder = path.parent
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; give a file's name")
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"{option} {path}: no permission to write it")
