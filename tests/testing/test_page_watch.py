"""The page watch judges orders: each of the four that must hold, left out, is named with both
accesses, and so is a read of what nobody wrote."""

from __future__ import annotations

import numpy as np
import pytest

from scalesim.batch import Batch
from scalesim.core import Fence
from scalesim.memory.links.link import Copies
from scalesim.memory.pools.page_pool import PagePool
from scalesim.testing.page_watch import PageWatch, UnwrittenError
from scalesim.testing.races import RaceError
from tests.testing.test_tag_runner import SIZE, batch


def watch() -> PageWatch:
    """Row 1's blocks lie in pages 1 to 7; host page 3 was written, and seen to be."""
    made = PageWatch(8, 8, SIZE, 3, 7)
    made.submits([1], Copies("out", [], [3], source=object()), None)  # type: ignore[arg-type]
    made.ended(1, arrived=True)
    return made


def step(number: int = 0, start: int = 0) -> Batch:
    """Writes its four tokens' page, and reads all up to it."""
    return batch(number, start, [5, 6, 7, 8])


def test_last_read_before_copy_in() -> None:
    for after in (Fence("compute", 0), None):
        made = watch()
        made.launches(step())
        if after is None:
            with pytest.raises(
                RaceError,
                match="device page 1 is written by copy in, tickets 7 to 8, and was written by "
                "step 0; copy in, tickets 7 to 8 is ordered after number 0 of compute only",
            ):
                made.submits([7, 8], Copies("in", [1], [3]), after)
        else:
            made.submits([7, 8], Copies("in", [1], [3]), after)


def test_copy_in_before_first_read() -> None:
    for seen in (True, False):
        made = watch()
        made.submits([7, 8], Copies("in", [1], [3]), None)
        made.ended(7, arrived=True)
        if seen:
            made.ended(8, arrived=True)
            made.launches(step(start=SIZE))
        else:
            with pytest.raises(RaceError, match="device page 1 is read by step 0, and was written"):
                made.launches(step(start=SIZE))


def test_write_before_copy_out() -> None:
    for seen in (True, False):
        made = watch()
        made.launches(step())
        if seen:
            made.collected(0)
            made.submits([7], Copies("out", [1], [4]), None)
        else:
            with pytest.raises(RaceError, match="page 1 is read by copy out, tickets 7 to 7"):
                made.submits([7], Copies("out", [1], [4]), None)


def test_copy_out_before_reuse() -> None:
    for seen in (True, False):
        made = watch()
        made.launches(step())
        made.collected(0)
        made.submits([7], Copies("out", [1], [4]), None)
        if seen:
            made.ended(7, arrived=True)
            made.launches(step(1))
        else:
            with pytest.raises(RaceError, match="page 1 is written by step 1, and was read by co"):
                made.launches(step(1))


def test_reads_of_what_was_not_written() -> None:
    made = watch()
    pool = made.pool(PagePool)(8, first=1)
    with pytest.raises(UnwrittenError, match=r"row 1, position 0: page 1 was not written"):
        made.launches(step(start=SIZE))
    made = watch()
    pool = made.pool(PagePool)(8, first=1)
    made.launches(step())
    made.collected(0)
    assert 1 in (pool.allocate(7) or [])  # handed out anew: what lies there was another's
    with pytest.raises(UnwrittenError, match="tickets 2 to 2: of device pages"):
        made.submits([2], Copies("out", [1], [5]), None)


def test_a_copy_that_failed_left_nothing() -> None:
    made = watch()
    made.submits([7], Copies("in", [1], [3]), None)
    made.ended(7, arrived=False)
    with pytest.raises(UnwrittenError):
        made.launches(step(start=SIZE))


def test_copy_on_write_copies_what_was_written() -> None:
    made = watch()
    made.launches(batch(0, 0, [1, 2, 3]))
    pages = np.array([7, 2, 3, 4, 5, 6, 1], np.int32)
    copy = np.array([[1, 7]], np.int32)
    made.launches(batch(1, 3, [9], table_pages=pages, page_copies=copy))
    pages = np.array([6, 2, 3, 4, 5, 7, 1], np.int32)
    copy = np.array([[5, 6]], np.int32)  # of a page that nobody wrote
    with pytest.raises(UnwrittenError, match="row 1, position 0: page 6"):
        made.launches(batch(2, 3, [9], table_pages=pages, page_copies=copy))


def test_a_copy_that_arrived_tells_of_what_it_waited_for() -> None:
    for arrived in (True, False):
        made = watch()
        made.launches(step())
        made.submits([7], Copies("in", [1], [3]), Fence("compute", 0))
        made.ended(7, arrived=arrived)
        if arrived:
            made.submits([8], Copies("out", [1], [4]), None)  # the step was not collected
        else:
            with pytest.raises(RaceError, match="page 1 is written by copy in, tickets 8 to 8"):
                made.submits([8], Copies("in", [1], [3]), None)
