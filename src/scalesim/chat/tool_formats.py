"""How models write the calls of tools: the formats, and which of them a chat template teaches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scalesim.errors import RequestError
from scalesim.model.text.chat import ChatTemplate
from scalesim.sampling.frame import FramedCalls

BLANKS = " \t\r\n"


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A format: ``begin``, a JSON object of name and arguments, ``end``; ``between`` two of them.

    ``arguments`` is what the object calls the arguments. ``signs`` are what the templates that teach
    the format write, one of them at least. ``is_bare``: models leave ``begin`` out
    where a call is the first thing that they say, so that only its name tells it from an answer in
    JSON.
    """

    name: str
    begin: str
    end: str
    between: str
    arguments: str
    signs: tuple[str, ...]
    is_bare: bool = False

    @property
    def separators(self) -> str:
        """Characters that may stand between two calls."""
        return BLANKS + self.between.strip()

    def framed(self, tools: Sequence[Mapping[str, Any]], several: bool) -> FramedCalls:
        """What a text is that does nothing but call ``tools``, once or ``several`` times."""
        begin, end = ("", "") if self.is_bare else (f"{self.begin}\n", f"\n{self.end}")
        schema = json.dumps(self._schema(tools), ensure_ascii=False)
        return FramedCalls(schema, begin, end, self.between if several else None)

    def _schema(self, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The JSON schema of one call of ``tools``, each a function's name and parameters. Each
        tool's own schema lies below ``$defs``, where its references lead as well."""
        schemas = {f"tool{i}": _rebased(tool, f"#/$defs/tool{i}") for i, tool in enumerate(tools)}
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["name"]},
                    self.arguments: {"$ref": f"#/$defs/tool{i}"},
                },
                "required": ["name", self.arguments],
                "additionalProperties": False,
            }
            for i, tool in enumerate(tools)
        ]
        return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": schemas}


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>", "\n", "arguments", ("<tool_call>",))
"""Hermes, Qwen 2.5 and 3, and what was trained on their data."""
LLAMA3 = ToolFormat(
    "llama3", "<|python_tag|>", "", "; ", "parameters", ("<|python_tag|>", '"parameters": '),
    is_bare=True,
)  # fmt: skip
"""Llama 3.1 to 3.3."""


def taught_format(template: ChatTemplate) -> ToolFormat | None:
    """The format that ``template`` teaches, if it is one of these."""
    for known in (HERMES, LLAMA3):
        if any(template.mentions(sign, with_tools=True) for sign in known.signs):
            return known
    return None


def tool_format(template: ChatTemplate) -> ToolFormat:
    """The format that ``template`` teaches. Raises ``RequestError`` for a template that says
    nothing of tools, or teaches another format."""
    known = taught_format(template)
    if known is not None and template.reads("tools", with_tools=True):
        return known
    if not template.reads("tools", with_tools=True):
        why = "has no place for them, so that the model would not know of any"
    else:
        why = "teaches the calls neither of Hermes and Qwen (<tool_call>) nor of Llama 3"
    raise RequestError(
        f"tools given, but the model's chat template {why}; leave them out, or give a template "
        "with chat_template="
    )


_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OF_DATA = ("const", "enum", "default", "examples")
_OPENS = {"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"}


def _rebased(tool: Mapping[str, Any], root: str) -> dict[str, Any]:
    """The schema of the parameters of ``tool`` with its references below ``root``. Parameters that
    it does not name are ruled out, unless it may speak of them: no function takes them."""
    schema = tool.get("parameters") or {"type": "object", "properties": {}}
    moved: dict[str, Any] = _moved(schema, root)
    if "properties" in moved and not _OPENS & moved.keys():
        moved["additionalProperties"] = False
    return moved


def _moved(schema: Any, root: str) -> Any:
    if isinstance(schema, list):
        return [_moved(part, root) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = root + value[1:]
        elif key in _OF_SCHEMAS and isinstance(value, dict):
            moved[key] = {name: _moved(part, root) for name, part in value.items()}
        else:
            moved[key] = value if key in _OF_DATA else _moved(value, root)
    return moved
