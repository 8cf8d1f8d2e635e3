"""ScaleSim: a memory runtime and inference engine for simulations with thousands of LLM agents.

The public names, loaded on first use: ``import scalesim`` itself needs neither torch nor triton.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scalesim._version import __version__

if TYPE_CHECKING:
    from scalesim import errors
    from scalesim.chat.chat_request import ChatRequest
    from scalesim.chat.reply import ChatReply
    from scalesim.config import EngineConfig
    from scalesim.engine.agent import Agent, Reply, Request
    from scalesim.engine.engine import Engine
    from scalesim.memory.kinds import StateKind
    from scalesim.requests.adapter import Adapter
    from scalesim.sampling.params import SamplingParams

__all__ = [
    "Adapter",
    "Agent",
    "ChatReply",
    "ChatRequest",
    "Engine",
    "EngineConfig",
    "Reply",
    "Request",
    "SamplingParams",
    "StateKind",
    "__version__",
    "errors",
]

_HOME = {
    "Adapter": "scalesim.requests.adapter",
    "Agent": "scalesim.engine.agent",
    "ChatReply": "scalesim.chat.reply",
    "ChatRequest": "scalesim.chat.chat_request",
    "Engine": "scalesim.engine.engine",
    "EngineConfig": "scalesim.config",
    "Reply": "scalesim.engine.agent",
    "Request": "scalesim.engine.agent",
    "SamplingParams": "scalesim.sampling.params",
    "StateKind": "scalesim.memory.kinds",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("scalesim.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'scalesim' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
