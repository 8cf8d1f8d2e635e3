"""What a forked child finds of an engine: the objects, and none of the threads that make them work.

A lock that another thread held is held for ever there, and a call that waits waits for ever. So an
engine is told of a fork, in the child, before anything else runs.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_told: dict[int, weakref.WeakMethod[Callable[[], Any]]] = {}


def tell(method: Callable[[], Any]) -> None:
    """Have ``method``, of an object that may go meanwhile, called in each child that is forked. It
    must take no lock."""
    key = id(method.__self__)  # type: ignore[attr-defined]
    _told[key] = weakref.WeakMethod(method, lambda _: _told.pop(key, None))


def _in_child() -> None:
    for reference in list(_told.values()):
        method = reference()
        if method is not None:
            method()
    _told.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
