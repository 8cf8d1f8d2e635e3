"""What a forked child finds of an engine: the objects, and none of the threads that make them work.

A lock that another thread held is held for ever there, and a call that waits waits for ever. So an
engine is told of a fork, in the child, before anything else runs there.
"""

from __future__ import annotations

import os
import weakref
from functools import partial
from typing import Protocol

from scalesim.foreign import Foreign


class Forked(Protocol):
    """Told of a fork, in the child. It must take no lock."""

    def after_fork(self) -> None: ...


_told: dict[int, weakref.ref[Forked]] = {}


def tell(engine: Forked) -> None:
    """Have ``engine``, while it lives, told of every fork."""
    key = id(engine)
    _told[key] = weakref.ref(engine, partial(_told.pop, key))  # no Python runs where it dies


def _in_child() -> None:
    for reference in list(_told.values()):
        engine = reference()
        if engine is not None:
            with Foreign():  # whoever fails must not keep the others from being told
                engine.after_fork()
    _told.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
