"""``--config FILE``: options of a command from a YAML file, whose keys are the options' names.

The file becomes words of the command line, in front of those that were typed, so that the parser
judges both alike and what was typed counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scalesim.checks import shown
from scalesim.errors import ConfigError
from scalesim.regular_file import open_regular
from scalesim.strict_json import decode_utf8

MAX_BYTES = 1 << 20
_OPTION = "--config"


def with_config_file(args: Sequence[str]) -> list[str]:
    """``args`` with the options of the file that ``--config`` names. Raises ``ConfigError`` for a
    file that cannot be read."""
    words = list(args)
    index = next((i for i, word in enumerate(words) if word.split("=")[0] == _OPTION), None)
    if index is None:
        return words
    _, sign, path = words.pop(index).partition("=")
    if not sign:
        if index == len(words):
            raise ConfigError(f"{_OPTION} needs a file's name")
        path = words.pop(index)
    command, *typed = words
    has_model = bool(typed) and not typed[0].startswith("-")
    options = _read(Path(path))
    model = options.pop("model", None)
    positional = [typed.pop(0)] if has_model else [] if model is None else [str(model)]
    return [command, *positional, *_words(options), *typed]


def _read(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(
            f"{_OPTION} needs PyYAML: pip install 'scalesim-runtime[server]'"
        ) from error
    with open_regular(path, ConfigError) as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES} bytes; it is no list of options")
    try:
        found = yaml.safe_load(decode_utf8(raw, str(path), ConfigError))
    except (yaml.YAMLError, RecursionError, ValueError) as cause:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(cause).split()):.200}") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(f"{path} must hold options and their values, like 'port: 8000'")
    return {key.removeprefix("--").replace("_", "-"): value for key, value in found.items()}


def _words(options: dict[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        elif isinstance(value, (str, int, float)):
            yield f"--{name}={value}"
        elif isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
            yield from (f"--{name}", *map(str, value))
        elif value is not None:
            raise ConfigError(f"{name}={shown(value)} in {_OPTION} must be a value or a list")
