"""Validation of the signatures of a kernel set, when the set is given and not in the first step.

An engine passes arguments by position, as in ``contracts``. Only attention's two options are passed
by keyword, for models that have them, and a plan's dtype, with KV in fp8.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, get_type_hints

from .contracts import KernelSet

OPTIONS = {
    "plan": ("dtype",),
    "paged_decode": ("window", "soft_cap"),
    "paged_prefill": ("window", "soft_cap"),
}
"""Keywords that an op may lack; it then serves the engines without these options."""


def ops() -> list[str]:
    """The names of a set's functions."""
    return [op.name for op in fields(KernelSet) if op.name not in ("name", "row_multiple")]


def signature_fault(op: str, function: Any, needed: Iterable[str] = ()) -> str | None:
    """Why ``function`` cannot stand as ``op`` of a set for a model that has the options ``needed``;
    ``None`` if it can, or if Python cannot tell."""
    if not callable(function):
        return f"{op} is {type(function).__name__}, not a function"
    contract = inspect.signature(get_type_hints(KernelSet)[op].__call__)
    options = OPTIONS.get(op, ())
    given = [
        parameter
        for parameter in contract.parameters.values()
        if parameter.name not in ("self", *options)
    ]
    calls = [given, [parameter for parameter in given if parameter.default is parameter.empty]]
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # not written in Python
        return None
    name = getattr(function, "__qualname__", type(function).__qualname__)
    for wanted in ([parameter.name for parameter in call] for call in calls):
        try:
            signature.bind(*wanted)
        except TypeError as error:
            return f"{op}: {name}{signature} cannot be called with ({', '.join(wanted)}): {error}"
    if lacking := [
        parameter for parameter in needed if parameter in options and lacks(signature, parameter)
    ]:
        return (
            f"{op}: {name} takes no {lacking[0]!r}: it serves engines without, and this one has it"
        )
    return None


def lacks(signature: inspect.Signature, name: str) -> bool:
    parameters = signature.parameters.values()
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return not any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD
        or (parameter.name == name and parameter.kind in by_name)
        for parameter in parameters
    )
