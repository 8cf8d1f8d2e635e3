"""The auditor: checks memory's records while an engine runs, and reports what is wrong.

The engine's loop calls it on its thread: after each step to compare counts, and when there is
nothing to do to compare everything. The auditor finds and reports; the loop acts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Literal

from scalesim.foreign import Foreign, report
from scalesim.memory.audit.counts import AccountError, Suspects, check_accounts, find_suspects
from scalesim.memory.audit.integrity import IntegrityError, check_integrity
from scalesim.memory.lease import Lease
from scalesim.memory.manager import MemoryManager

Integrity = Literal["quarantine", "raise", "off"]
SWEEP_SHARE = 0.01  # of the time, at most, for full checks
_REPORTED = 40  # page events that are logged
_log = logging.getLogger(__name__)


class Auditor:
    """Audits ``memory``. ``leases`` gives the leases that are open now. With ``mode`` ``"off"``
    nothing is checked."""

    def __init__(
        self,
        memory: MemoryManager,
        leases: Callable[[], Iterable[Lease]],
        mode: Integrity,
        time_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.memory, self.mode = memory, mode
        self.num_sweeps = 0
        self.last_report = ""
        self._leases, self.time_s = leases, time_s
        self._next_sweep_s = 0.0
        self._swept_at = -1

    def after_step(self) -> None:
        """Check that the counts of pages add up. O(running requests). Raises ``AccountError``."""
        if self.mode != "off":
            check_accounts(self.memory, self._leases())

    def when_idle(self) -> None:
        """Check all invariants, if a step was launched since the last full check and full checks
        have not taken more than their share of the time. Raises ``IntegrityError``."""
        launched = self.memory.timing.last_launched
        if self.mode == "off" or launched == self._swept_at:
            return
        start_s = self.time_s()
        if start_s < self._next_sweep_s:
            return
        self._swept_at = launched
        self.num_sweeps += 1
        check_integrity(self.memory, self._leases())
        end_s = self.time_s()
        self._next_sweep_s = end_s + (end_s - start_s) / SWEEP_SHARE

    def examine(self, error: BaseException) -> Suspects:
        """Report ``error`` with the last page events, and return the pages and leases that are
        suspect. Only records that disagree make pages suspect: after any other error, a reset
        leaves nothing wrong behind."""
        log = self.memory.page_log
        self.last_report = "" if log is None else log.dump()
        recent = "\n".join(self.last_report.splitlines()[-_REPORTED:])
        report(_log, "beginning anew after %r; the last page events:\n%s", error, recent)
        if not is_violation(error):
            return Suspects()
        with Foreign() as raised:
            return find_suspects(self.memory, self._leases())
        message = "the books cannot be read: every request is in question"
        report(_log, message, error=raised.error)
        return Suspects(leases=list(self._leases()))


def is_violation(error: BaseException) -> bool:
    """Whether ``error`` says that memory's records disagree, rather than that an operation
    failed."""
    return isinstance(error, (AccountError, IntegrityError))
