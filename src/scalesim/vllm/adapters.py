"""LoRA adapters by next use, as far as vLLM lets them be moved: ``EngineCore.add_lora``.

vLLM keeps adapters in two LRU caches, on the device and in host memory, and takes no other order.
But ``add_lora`` of an adapter that is there makes it the most recent one. So those that are used
next are named anew, the soonest last: what vLLM then evicts is what is used last.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from scalesim.core import AgentId
from scalesim.order.board import MAX_BOARD_AGENTS, CallBoard
from scalesim.vllm.compat import adapter_slots

_log = logging.getLogger(__name__)


class AgentAdapters:
    """The adapter that each agent called with last, as vLLM's ``LoRARequest``."""

    def __init__(self, board: CallBoard) -> None:
        self._board = board
        self._of: OrderedDict[AgentId, Any] = OrderedDict()
        self.num_loaded_ahead = 0

    def __len__(self) -> int:
        return len(self._of)

    def note(self, agent: AgentId, adapter: Any) -> None:
        """``agent`` calls with ``adapter``; ``None`` for the base model."""
        self.forget([agent])
        if adapter is not None:
            self._of[agent] = adapter
            if len(self._of) > MAX_BOARD_AGENTS:
                self._of.popitem(last=False)

    def forget(self, agents: Iterable[AgentId]) -> None:
        """``agents`` will not call again."""
        for agent in agents:
            self._of.pop(agent, None)

    def arrange(self, core: Any, running: Iterable[Any], max_loads: int) -> None:
        """Make the adapters that are used next the most recent ones in vLLM's caches, as many as
        the device has slots: first those of ``running`` calls. At most ``max_loads`` of agents that
        call in this tick are read from disk, while the engine waits: any earlier, they would only
        take a slot."""
        slots, this_tick = adapter_slots(core), self._board.clock.now + 1.0
        soonest = {adapter.lora_int_id: adapter for adapter in running}
        due = []
        for owner in self._board.soonest(4 * slots):  # agents may share adapters, or have none
            adapter = None if owner.name is None else self._of.get(owner.name)
            if adapter is not None and adapter.lora_int_id not in soonest:
                soonest[adapter.lora_int_id] = adapter
                if owner.next_use is not None and owner.next_use < this_tick:
                    due.append(adapter)
        held = core.list_loras()
        here = [adapter for number, adapter in soonest.items() if number in held]
        self._name(core, here[:slots])
        first = list(soonest.values())[:slots]
        absent = [each for each in due if each in first and each.lora_int_id not in held]
        if absent := self._name(core, absent[:max_loads]):  # each displaces the last of ``here``
            self.num_loaded_ahead += len(absent)
            self._name(core, [each for each in first if each in here or each in absent])

    def _name(self, core: Any, adapters: list[Any]) -> list[Any]:
        """Make ``adapters``, the soonest first, the most recent ones in this order. Returns those
        that vLLM has then."""
        named = []
        for adapter in reversed(adapters):
            try:
                core.add_lora(adapter)
                named.append(adapter)
            except Exception:  # its call will fail with vLLM's own words, if there is one
                _log.exception("adapter %r cannot be loaded ahead", adapter.lora_name)
                self.forget([agent for agent, its in self._of.items() if its == adapter])
        return named
