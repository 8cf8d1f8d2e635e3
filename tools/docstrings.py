"""For the site alone: a docstring's ``name : text`` lines, and its tables of words, become lists,
the comment behind a field its docstring, and the default of ``x: int = setting(64, rule)`` is 64.

A griffe extension, named in mkdocs.yml. The sources keep their layout, which reads well as text.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_PARAMETER = re.compile(r"^(\w[\w, ]*) : (?=\S)")
_TERM = re.compile(r"^(``\w+``|[a-z]+(?:,? [a-z]+)?) {2,}(?=\S)")


def as_list(text: str) -> str:
    """``x : the input`` -> ``- `x`: the input``; a term and its meaning, two spaces between,
    likewise."""
    lines: list[str] = []
    in_list = False
    for line in text.splitlines():
        item = _PARAMETER.sub(r"- `\1`: ", line)
        item = _TERM.sub(r"- **\1**: ", item) if item == line else item
        if item != line and not in_list:
            lines.append("")
        in_list = item != line or (in_list and line.startswith("  "))
        if not in_list and lines and lines[-1].startswith(("- ", "    ")) and line.strip():
            lines.append("")
        lines.append(f"    {item.strip()}" if in_list and item == line else item)
    return "\n".join(lines)


class Lists(griffe.Extension):
    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        value = attr.value
        if isinstance(value, griffe.ExprCall) and str(value.function) == "setting":
            attr.value = value.arguments[0]

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_list(obj.docstring.value)
        elif obj.is_attribute and obj.parent is not None and obj.parent.is_class:
            _, comment, text = " ".join(obj.lines).partition("  # ")
            if comment and not text.startswith(("type:", "noqa")):
                obj.docstring = griffe.Docstring(text.strip(), parent=obj)
