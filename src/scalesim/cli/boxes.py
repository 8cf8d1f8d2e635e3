"""Conversion of the parser's framed messages to one line."""

from __future__ import annotations

import re

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_TOP, _BOTTOM, _SIDE = "╭╰│"
_RULE = re.compile(r"^[─-]{3,}$", re.M)
_OFFERED = re.compile(r"^(--[\w-]+)", re.M)


def in_one_line(box: str) -> str:
    """A framed message as a sentence: its first part, and the options or commands that it offers.
    Parts are divided by rules. With ASCII-only output there is no frame, but a rule below the
    title."""
    lines = [line.strip(f"{_SIDE} ") for line in _STYLE.sub("", box).splitlines()]
    is_framed = any(line.startswith(_TOP) for line in lines)
    text = "\n".join(line for line in lines if not line.startswith((_TOP, _BOTTOM)))
    title, *parts = _RULE.split(text)
    first, *others = [title, *parts] if is_framed or not parts else parts
    sentence = " ".join(first.split()).removeprefix("Error parsing ").rstrip(".")
    offered = list(dict.fromkeys(_OFFERED.findall("\n".join(others))))
    if sentence.startswith("Unrecognized") and offered:
        sentence += f"; did you mean {' or '.join(offered[:3])}?"
    for part in others:
        if part.strip().startswith("Available subcommands"):
            sentence += f"; {' '.join(part.split()).replace('Available subcommands', 'there are')}"
    return sentence
