"""The entry point ``vllm.general_plugins``: makes the plug-in's names known to vLLM.

vLLM runs ``register`` in each of its processes, once or more, and does not start if that raises:
so it never does. What it cannot do with the installed vLLM is logged, and left to vLLM.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

SUPPORTED = ("0.32",)
"""vLLM's releases that the plug-in is tested with."""
_log = logging.getLogger(__name__)


def register() -> None:
    """Make ``ScaleSimConnector``, ``ScaleSimOffloadingSpec`` and ``NextUseCachePolicy`` known by
    name, and give the engine's core the methods that the routes call."""
    try:
        release = installed_release()
        if release is None:
            return
        if not release.startswith(SUPPORTED):
            _log.warning(
                "the ScaleSim plug-in is tested with vLLM %s; this is %s",
                ", ".join(SUPPORTED), release,
            )  # fmt: skip
        _register_names()
        _add_core_methods()
    except Exception:
        _log.exception("the ScaleSim plug-in is off: this vLLM is not one that it knows")


def installed_release() -> str | None:
    """vLLM's release; ``None`` where there is no vLLM."""
    try:
        from vllm.version import __version__
    except ImportError:
        return None
    return str(__version__)


def _register_names() -> None:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory
    from vllm.v1.kv_offload.factory import OffloadingSpecFactory

    _once(
        KVConnectorFactory.register_connector,
        "ScaleSimConnector", "scalesim.vllm.connector", "ScaleSimConnector",
    )  # fmt: skip
    _once(
        OffloadingSpecFactory.register_spec,
        "ScaleSimOffloadingSpec", "scalesim.vllm.spec", "ScaleSimOffloadingSpec",
    )  # fmt: skip
    _once(
        CachePolicyFactory.register_cache_policy,
        "NextUseCachePolicy", "scalesim.vllm.policy", "NextUseCachePolicy",
    )  # fmt: skip


def _once(add: Callable[[str, str, str], Any], name: str, module: str, attribute: str) -> None:
    try:
        add(name, module, attribute)
    except ValueError:  # vLLM's word for a name that is there: ``register`` was run before
        _log.debug("%s is known to vLLM already", name)


def _add_core_methods() -> None:
    from vllm.v1.engine.core import EngineCore

    from scalesim.vllm import core_calls

    for name, method in core_calls.METHODS.items():
        setattr(EngineCore, name, method)
