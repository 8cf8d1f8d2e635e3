"""The engine's loop at its smallest: schedule, launch, collect, update, around a tag runner and a
link.

No clock, no threads, no texts: agents' requests are arrays of tokens, and their answers are
compared with what the tokens alone say.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from scalesim.config import SchedulerConfig
from scalesim.core import SamplingParams, Step
from scalesim.memory.adapters import AdapterUse
from scalesim.memory.links import Link, ThreadLink, Timeline
from scalesim.memory.manager import MemoryManager
from scalesim.memory.policies import policy_named
from scalesim.memory.storage import allocate_pages
from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.sequence import Sequence
from scalesim.testing.hostile_link import HostileLink
from scalesim.testing.integrity import check_integrity
from scalesim.testing.tag_runner import TagRunner, expected_text, page_bytes_for

VOCAB = 97


@dataclass(frozen=True)
class Setting:
    """``pages`` of the device pool; ``host`` is the host pool's share of it; ``link`` is the
    kind."""

    pages: int = 64
    host: float = 1.0
    policy: str = "deadline"
    block_size: int = 4
    steps_in_flight: int = 1
    link: str = "hostile"
    failure_rate: float = 0.0
    seed: int = 0
    scheduler: SchedulerConfig = field(
        default_factory=lambda: SchedulerConfig(
            max_num_seqs=8, max_num_batched_tokens=24, safe_point_tokens=6, max_skips=4
        )
    )


class Loop:
    """Runs requests to their end. ``bad_tokens``: sampling one of them is a bad step."""

    def __init__(self, setting: Setting, *, max_len: int | None = None) -> None:
        self.setting = setting
        size = setting.block_size
        max_seqs = setting.scheduler.max_num_seqs
        num_host = int(setting.pages * setting.host)
        device = allocate_pages(setting.pages + 1, page_bytes_for(size))
        host = allocate_pages(max(1, num_host), page_bytes_for(size))
        timeline = Timeline()
        self.link: Link = (
            ThreadLink(device, host, timeline)
            if setting.link == "thread"
            else HostileLink(
                device, host, timeline, seed=setting.seed, failure_rate=setting.failure_rate
            )
        )
        self.memory = MemoryManager(
            block_size=size,
            page_bytes=page_bytes_for(size),
            device_pages=setting.pages + 1,
            host_pages=num_host,
            num_rows=2 * max_seqs + 1,
            policy=policy_named(setting.policy),
            link=self.link,
        )
        self.max_len = max_len or setting.pages * size
        self.scheduler = Scheduler(self.memory, setting.scheduler, self.max_len)
        self.bad_tokens: frozenset[int] = frozenset()
        self.runner = TagRunner(
            device,
            size,
            max_num_seqs=max_seqs,
            max_num_rows=2 * max_seqs + 1,
            max_blocks_per_row=-(-self.max_len // size) + 1,
            steps_in_flight=setting.steps_in_flight,
            timeline=timeline,
            vocab_size=VOCAB,
            bad=lambda slot, token: token in self.bad_tokens,
        )
        self.flights: deque[Step] = deque()
        self.ended: list[Sequence] = []
        self.num_steps = 0
        self._ids = itertools.count()

    def add(
        self, agent: int | None, prompt: list[int], max_tokens: int, *, temperature: float = 1.0,
        adapter: AdapterUse | None = None,
    ) -> Sequence:  # fmt: skip
        number = next(self._ids)
        sequence = Sequence(
            id=number,
            agent=agent,
            domain="model",
            tokens=np.array(prompt, np.int32),
            prompt_len=len(prompt),
            limit=len(prompt) + max_tokens,
            params=SamplingParams(max_tokens=max_tokens, temperature=temperature),
            key=number * 7919 + 1,
            adapter=adapter,
        )
        self.scheduler.add(sequence)
        return sequence

    def turn(self) -> None:
        """One turn of the loop: launch if something can run, collect if enough is in flight."""
        self.num_steps += 1
        batch = self.scheduler.schedule()
        if batch is not None:
            self.flights.append(self.runner.launch(batch))
            if isinstance(self.link, HostileLink):
                self.link.step()
        if self.flights and (batch is None or len(self.flights) == self.setting.steps_in_flight):
            step = self.flights.popleft()
            self.scheduler.update(self.runner.collect(step))
        elif batch is None:
            self.link.wait(5.0)
        self.ended += self.scheduler.take_ended()
        self.memory.look_ahead.plan(0.0)

    def run(self, max_turns: int, *, check_every: int = 0) -> None:
        """Until nothing is left to do; raises if that takes more than ``max_turns``."""
        start = self.num_steps
        while self.scheduler.has_work or self.flights:
            spent = self.num_steps - start
            assert spent < max_turns, (
                f"{self.scheduler.num_waiting} waiting and {self.scheduler.num_running} running "
                f"after {spent} turns"
            )
            self.turn()
            if check_every and self.num_steps % check_every == 0:
                self.check()
        self.ended += self.scheduler.take_ended()

    def check(self) -> None:
        leases = [s.lease for s in self.scheduler.slots.sequences if s is not None and s.lease]
        check_integrity(self.memory, leases)

    def close(self) -> None:
        """Everything is let go: no page is held and no ticket is alive."""
        memory, residency = self.memory, self.memory.residency
        while residency.transfers:
            assert self.link.wait(5.0), f"{len(residency.transfers)} tickets do not end"
            assert memory.poll() == []
        self.check()
        memory.clear()
        self.check()
        for pool in (memory.device, memory.host):
            assert pool.num_free == pool.num_usable, f"{pool.num_used} pages are not free"
        assert memory.tree.num_segments == 0 and memory.loading_pages == 0
        assert memory.table.num_free == memory.table.num_rows - 1
        if isinstance(self.link, HostileLink):
            assert self.link.num_open == 0
        self.link.close()


def expected(sequence: Sequence, prompt: list[int]) -> list[int]:
    use = sequence.adapter
    return expected_text(
        prompt,
        sequence.limit - sequence.prompt_len,
        key=sequence.key,
        temperature=sequence.params.temperature,
        vocab_size=VOCAB,
        adapter=0 if use is None else use.layout >> 8,
        start=0 if use is None else use.start,
    )
