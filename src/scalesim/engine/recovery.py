"""Recovery: what the loop does when something broke inside.

State is made anew, not mended: everything else can be computed again from prompts and the tokens
that were generated so far, so open calls go on from these.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from scalesim.batch import LaunchedStep
from scalesim.core import AgentId
from scalesim.engine.parts import EngineParts
from scalesim.engine.stats import EngineStats
from scalesim.errors import KernelError
from scalesim.foreign import Foreign
from scalesim.memory.audit.auditor import Auditor
from scalesim.requests.bindings import Bindings
from scalesim.scheduler.restart import restart
from scalesim.scheduler.sequence import Sequence

MAX_RESTARTS_IN_VAIN = 8


class Recovery:
    """Begins anew, until that has brought no token ``MAX_RESTARTS_IN_VAIN`` times in a row.

    ``interrupt`` is a Ctrl-C that struck inside all the same: state was made anew, and what drives
    the loop has to raise the interrupt.
    """

    def __init__(
        self,
        parts: EngineParts,
        auditor: Auditor,
        stats: EngineStats,
        bindings: Iterable[Bindings[Any]],
    ) -> None:
        self.interrupt: KeyboardInterrupt | None = None
        self._parts, self._auditor, self._stats, self._bindings = parts, auditor, stats, bindings
        self._restarts_in_vain = 0  # restarts since a token was collected last
        self._kernel_error: str | None = None  # what a kernel raised last

    @property
    def awaits_token(self) -> bool:
        """Whether no token was collected since the last restart."""
        return self._restarts_in_vain > 0

    def token_came(self) -> None:
        self._restarts_in_vain = 0

    def begin_anew(
        self,
        error: BaseException,
        launched: deque[LaunchedStep],
        sequences: Iterable[Sequence],
        forgetting: Iterable[AgentId],
    ) -> None:
        """Forget the steps that were ``launched`` and all of memory. ``sequences`` go on; the
        forgetting of the agents ``forgetting`` is done again. Raises ``error`` if beginning anew
        has no prospect or is not wanted."""
        self._check_hope(error)
        memory, scheduler = self._parts.memory, self._parts.scheduler
        suspects = self._auditor.examine(error)
        self._stats.restarts += 1
        while launched:
            with Foreign():  # also a step that failed is over
                self._parts.runner.collect(launched.popleft())
        memory.reset(suspects.pages)
        for agent in forgetting:
            memory.forget(agent)
        self._stats.lost_pages = memory.num_lost_pages
        restart(scheduler, sequences, {id(lease) for lease in suspects.leases})
        for bindings in self._bindings:
            bindings.restore()

    def _check_hope(self, error: BaseException) -> None:
        self._restarts_in_vain += 1
        is_wanted = self._parts.integrity == "quarantine"
        if isinstance(error, KeyboardInterrupt):
            self.interrupt, is_wanted = error, True  # it says nothing of the books
        if not is_wanted or self._restarts_in_vain > MAX_RESTARTS_IN_VAIN:
            raise error
        if isinstance(error, KernelError):  # a function of its inputs: what it raised, it will
            if str(error) == self._kernel_error and self._restarts_in_vain > 1:
                raise error
            self._kernel_error = str(error)
