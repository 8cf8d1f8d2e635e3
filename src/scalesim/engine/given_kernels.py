"""Kernels that a caller gives: their signatures are checked when they are given, and what they
raise later names the op and the function. Used by ``engine.build``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scalesim_kernels import KernelSet
from scalesim_kernels.signatures import ops, signature_fault

from scalesim.errors import ConfigError, KernelError
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.loader import LoadedModel


def given_kernels(kernels: KernelSet, loaded: LoadedModel, kv_dtype: str = "auto") -> KernelSet:
    """``kernels`` for this model, those of a caller's own named in what they raise. Raises
    ``ConfigError`` for what cannot be called as the model and ``kv_dtype`` need."""
    if not isinstance(kernels, KernelSet):
        raise ConfigError(
            f"kernels={kernels!r} is no KernelSet; dataclasses.replace(scalesim_kernels.select(), "
            "paged_decode=mine) makes one"
        )
    if type(kernels.row_multiple) is not int or kernels.row_multiple < 1:
        raise ConfigError(
            f"row_multiple={kernels.row_multiple!r}: must be a whole number from 1 on"
        )
    needed = options_of(loaded) | ({"dtype"} if kv_dtype == "fp8" else set())
    mine: dict[str, Any] = {}
    for op in ops():
        function = getattr(kernels, op)
        if (fault := signature_fault(op, function, needed)) is not None:
            raise ConfigError(f"kernel {fault}; docs/kernels.md has what each is called with")
        if not module_of(function).startswith("scalesim_kernels."):
            mine[op] = named(op, function)
    return replace(kernels, **mine) if mine else kernels


def options_of(loaded: LoadedModel) -> set[str]:
    """What the model's layers give attention by keyword."""
    shape = loaded.config
    if isinstance(shape, ModelConfig):
        return {name for i in range(shape.num_layers) for name in shape.attention_options(i)}
    calls = getattr(getattr(loaded.model, "layers", None), "calls", {})
    return {"window"} if any(call.window is not None for call in calls.values()) else set()


def module_of(function: Any) -> str:
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}."


def named(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    name = getattr(function, "__qualname__", type(function).__qualname__)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise KernelError(
                f"kernel {op} ({module_of(function)}{name}) raised {type(error).__name__}: "
                f"{reason}; python -m scalesim_kernels check judges it alone"
            ) from error

    return call
