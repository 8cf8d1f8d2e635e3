"""How a Python function becomes a kernel: numba compiles it to a C function of one job, once for a
processor, and keeps it on disk.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cfunc, from_dtype, types

SLOW_S = 0.5  # a kernel from the cache takes a tenth of it
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Compilations:
    """What it took to have the kernels of this process: those compiled anew, their seconds, and
    whether the compiled ones could be kept."""

    names: list[str]
    seconds: float = 0.0
    kept: bool = True


compilations = Compilations([])


def job(name: str, integers: str, reals: str = "") -> type[ctypes.Structure]:
    """A job's arguments: numbers, strides in elements, and addresses; first the next item."""
    fields: list[tuple[str, Any]] = [
        (field, ctypes.c_int64) for field in ("next", "num_items", *integers.split())
    ]
    fields += [(field, ctypes.c_float) for field in reals.split()]
    fields += [("padding", ctypes.c_float)] * (len(reals.split()) % 2)
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def kernel(arguments: type[ctypes.Structure]) -> Callable[[Callable[..., None]], Any]:
    """Compile a function of a pointer to ``arguments``, or take it from numba's cache, which is
    beside this file, or in the user's cache folder where that cannot be written to."""
    record = from_dtype(np.dtype(arguments))

    def compiled(function: Callable[..., None]) -> Any:
        signature = types.void(types.CPointer(record))
        timer = threading.Timer(SLOW_S, say)
        timer.daemon = True
        timer.start()
        start = time.perf_counter()
        try:
            made = cfunc(signature, cache=True, error_model="numpy")(function)
        except RuntimeError:  # no folder that numba may write to
            compilations.kept = False
            made = cfunc(signature, error_model="numpy")(function)
        finally:
            timer.cancel()
        if not made.cache_hits:
            compilations.names.append(function.__name__)
            compilations.seconds += time.perf_counter() - start
        return made

    return compiled


def say() -> None:
    """Tell whoever waits for a kernel why; once."""
    if not compilations.names:
        _log.warning(
            "compiling the kernels of this processor: some twenty seconds, the first time only"
        )
