"""Python's garbage collector, while a large document is parsed or written."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_num_pauses = 0
_was_on = False


@contextmanager
def paused_collector() -> Iterator[None]:
    """No collection starts in the block, on any thread.

    Values of JSON have no cycles, so there is nothing to collect. Yet each 700 lists or objects
    start a collection, which looks at all that there are, and stops every thread meanwhile.
    """
    global _num_pauses, _was_on
    with _lock:
        if not _num_pauses:
            _was_on = gc.isenabled()
            gc.disable()
        _num_pauses += 1
    try:
        yield
    finally:
        with _lock:
            _num_pauses -= 1
            if not _num_pauses and _was_on:
                gc.enable()
