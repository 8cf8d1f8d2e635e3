"""Which tools a model is shown, which of them it may call, and whether it must."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

from scalesim.checks import flag, reading, shown
from scalesim.errors import RequestError
from scalesim.model.text.messages import checked_tools

Tool: TypeAlias = Mapping[str, Any]
ToolChoice: TypeAlias = 'Literal["none", "auto", "required"] | Mapping[str, Any]'


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a chat says of its tools: ``functions`` are shown to the model, ``allowed`` are those
    that it may call where it ``must_call`` one, ``several`` calls or one at most."""

    functions: Sequence[dict[str, Any]] = ()
    allowed: Sequence[dict[str, Any]] = ()
    must_call: bool = False
    several: bool = True

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The functions as templates expect them."""
        return [{"type": "function", "function": function} for function in self.functions]


def tool_use(tools: object, choice: object, several: object) -> ToolUse:
    """What ``tools``, ``tool_choice`` and ``parallel_tool_calls`` say together. Raises
    ``RequestError``."""
    functions = _functions(tools)
    many = flag("parallel_tool_calls", several)
    if choice is None or (isinstance(choice, str) and choice == "auto"):
        return ToolUse(functions, functions, False, many)
    if isinstance(choice, str) and choice == "none":
        return ToolUse()
    if isinstance(choice, str) and choice == "required":
        if not functions:
            raise RequestError("tool_choice='required' needs tools, and there are none")
        return ToolUse(functions, functions, True, many)
    name = _named(choice)
    allowed = [function for function in functions if function["name"] == name]
    if not allowed:
        names = ", ".join(shown(function["name"]) for function in functions[:8])
        raise RequestError(
            f"tool_choice names the function {shown(name)}, which is none of tools: "
            f"{names or 'there are none'}"
        )
    return ToolUse(functions, allowed, True, False)


def _named(choice: object) -> str:
    """The name in ``{"type": "function", "function": {"name": ...}}``."""
    if not isinstance(choice, Mapping):
        _refuse_choice(choice)
    with reading("tool_choice"):
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
        is_function = choice.get("type", "function") == "function"
    if not is_function or not isinstance(name, str):
        _refuse_choice(choice)
    return name


def _refuse_choice(choice: object) -> NoReturn:
    raise RequestError(
        f"tool_choice={shown(choice)} must be 'none', 'auto', 'required' or "
        "{'type': 'function', 'function': {'name': ...}}"
    )


def _functions(given: object) -> list[dict[str, Any]]:
    """The functions in ``tools``, each with its name and its parameters' schema: copies."""
    with reading("tools"):
        tools = checked_tools(given) or []
    functions = [_function(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    seen: set[str] = set()
    for function in functions:
        if function["name"] in seen:
            raise RequestError(
                f"tools has two functions {shown(function['name'])}; their names must differ"
            )
        seen.add(function["name"])
    return functions


def _function(tool: dict[str, Any], where: str) -> dict[str, Any]:
    """A tool's function; the tool may be the function itself."""
    kind = tool.get("type", "function")
    function = tool.get("function", tool)
    if kind != "function" or not isinstance(function, dict):
        raise RequestError(
            f"{where} is of type {shown(kind)}; it must be "
            "{'type': 'function', 'function': {'name': ..., 'parameters': ...}}"
        )
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where}.function.name is {shown(name)}; it must be a name")
    if not (parameters is None or isinstance(parameters, dict)):
        raise RequestError(
            f"{where}.function.parameters is {shown(parameters)}; it must be a JSON schema"
        )
    return function
