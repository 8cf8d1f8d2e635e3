"""The scheduler's world: schedule, launch, collect, update, around a test bed and an adversary.

The engine's loop at its smallest: no clock, no threads, no texts. Agents' requests are arrays of
tokens, and their answers are compared with what the tokens alone say. Whenever the host has done
something, a schedule decides what the device and the link do next.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from scalesim.batch import LaunchedStep
from scalesim.config import SchedulerConfig
from scalesim.core import Int64s
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.leases.adapters import AdapterContent, adapter_spec
from scalesim.memory.links.link import InMemorySource
from scalesim.sampling.params import SamplingParams
from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.sequence import Phase, Sequence
from scalesim.testing.bed import OURS, Bed, Factories
from scalesim.testing.contents import adapter_bytes, digest_of
from scalesim.testing.hostile_link import DeviceEvent
from scalesim.testing.tags import adapter_layout, expected_text
from tests.machines.progress import LivenessError, Progress
from tests.machines.schedules import RandomWalk, Schedule

VOCAB = 97
SMALL = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=24, safe_point_tokens=6, max_skips=4)


@dataclass(frozen=True)
class Setting:
    """``pages`` of the device pool; ``host`` is the host pool's share of it; with
    ``failure_rate``, so many of a hostile link's copies fail."""

    pages: int = 64
    host: float = 1.0
    policy: str = "deadline"
    block_size: int = 4
    steps_in_flight: int = 1
    failure_rate: float = 0.0
    seed: int = 0
    max_len: int | None = None  # of a sequence; what the pool holds if None
    scheduler: SchedulerConfig = SMALL


@dataclass
class SchedulerWorld:
    """Runs requests to their end. ``bad_tokens``: sampling one of them is a bad step. ``schedule``
    moves a hostile link and the device; ``progress`` raises where requests wait in vain."""

    setting: Setting
    factories: Factories = OURS
    schedule: Schedule | None = None
    bad_tokens: frozenset[int] = frozenset()
    ended: list[Sequence] = field(default_factory=list)
    num_iterations: int = 0
    in_turn: bool = False  # the host is between launch and collect: it takes no calls
    asks_always: bool = False  # the schedule, also when nothing may happen

    def __post_init__(self) -> None:
        setting, config = self.setting, self.setting.scheduler
        max_len = setting.max_len or setting.pages * setting.block_size
        self.bed = Bed(
            self.factories,
            pages=setting.pages,
            host_pages=int(setting.pages * setting.host),
            block_size=setting.block_size,
            policy=setting.policy,
            max_num_seqs=config.max_num_seqs,
            max_blocks=-(-max_len // setting.block_size) + 1,
            steps_in_flight=setting.steps_in_flight,
            seed=setting.seed,
            vocab_size=VOCAB,
            bad=lambda slot, token: token in self.bad_tokens,
            reader=self._reader,
        )
        if self.bed.hostile is not None:
            self.bed.hostile.failure_rate = setting.failure_rate
        if self.schedule is None:
            self.schedule = RandomWalk(setting.seed)
        self.memory = self.bed.memory
        self.scheduler = Scheduler(self.memory, config, max_len)
        self.progress = Progress(self.scheduler)
        self.flights: deque[LaunchedStep] = deque()
        self.num_tags = 0
        self.num_copies_ended = 0
        self._ids = itertools.count()

    # -- requests -----------------------------------------------------------------------------

    def add(
        self,
        agent: int | None,
        prompt: list[int],
        max_tokens: int,
        *,
        temperature: float = 1.0,
        adapter: AttachmentSpec | None = None,
        key: int | None = None,
    ) -> Sequence:
        """A request; its draws are keyed by its number, if not by ``key``."""
        number = next(self._ids)
        sequence = Sequence(
            id=number,
            agent=agent,
            tokens=np.array(prompt, np.int32),
            prompt_len=len(prompt),
            limit=len(prompt) + max_tokens,
            params=SamplingParams(max_tokens=max_tokens, temperature=temperature),
            key=number * 7919 + 1 if key is None else key,
            attachments=() if adapter is None else (adapter,),
        )
        self.scheduler.add(sequence)
        self.progress.add(sequence)
        return sequence

    def add_adapter(self, num_pages: int) -> AttachmentSpec:
        """An adapter that nobody had before, in force from the start; every other one is given
        with its pages."""
        self.num_tags += 1
        tag = self.num_tags
        pages = adapter_bytes(tag, num_pages, self.bed.device.shape[1])
        layout = adapter_layout(tag, num_pages)
        content = AdapterContent(
            digest_of(tag),
            layout,
            num_pages,
            None,
            InMemorySource(pages),
            pages if tag % 2 else None,
        )
        self.memory.add_adapter(content)
        return adapter_spec(digest_of(tag), layout)

    # -- the loop -----------------------------------------------------------------------------

    def iterate(self) -> None:
        """One iteration: launch if something can run, collect if enough is in flight."""
        self.num_iterations += 1
        batch = self.scheduler.schedule()
        if batch is not None:
            self.flights.append(self.bed.runner.launch(batch))
            self.in_turn = True
            self.fidget()
            self.in_turn = False
        if self.flights and (batch is None or len(self.flights) == self.setting.steps_in_flight):
            step = self.flights.popleft()
            self.scheduler.update(self.bed.runner.collect(step))
        elif batch is None and self.scheduler.has_work:
            self._stall()
        self.ended += self.scheduler.take_ended()
        self.memory.plan(0.0, self.scheduler.forecast)
        self.progress.observe(self._copies_ended())
        self.fidget()

    def fidget(self) -> None:
        """The host did something: the device and the link may go on meanwhile."""
        assert self.schedule is not None
        while (events := self.events()) or self.asks_always:
            pick = self.schedule.pick(events, must=False)
            if pick is None:
                return
            self.do(events[pick])

    def events(self) -> list[DeviceEvent]:
        """What may happen without the host."""
        running = [DeviceEvent("compute", step) for step in self.bed.tags.waiting[:1]]
        return running + (self.bed.hostile.events() if self.bed.hostile is not None else [])

    def do(self, event: DeviceEvent) -> None:
        if event.queue == "compute":
            self.bed.tags.run_next()
        elif self.bed.hostile is not None:
            self.bed.hostile.do(event)

    def _stall(self) -> None:
        """Nothing can run until a copy arrives: something has to happen."""
        assert self.schedule is not None
        if not self.memory.is_moving:
            raise LivenessError(
                f"requests wait, and no copy is under way:\n{self.progress.wait_for()}"
            )
        if self.bed.hostile is None:
            self.bed.raw_link.wait(5.0)
        elif events := self.events():
            pick = self.schedule.pick(events, must=True)
            if pick is not None:  # else the host was given something to do
                self.do(events[pick])

    def _copies_ended(self) -> int:
        """Since the last call."""
        if self.bed.hostile is None:
            return 0
        before, self.num_copies_ended = self.num_copies_ended, self.bed.hostile.num_ended
        return self.num_copies_ended - before

    def run(self, max_iterations: int, *, check_every: int = 0) -> None:
        """Until nothing is left to do; raises if that takes more than ``max_iterations``."""
        start = self.num_iterations
        while self.scheduler.has_work or self.flights:
            spent = self.num_iterations - start
            assert spent < max_iterations, f"after {spent} iterations:\n{self.progress.wait_for()}"
            self.iterate()
            if check_every and self.num_iterations % check_every == 0:
                self.check()
        self.ended += self.scheduler.take_ended()

    # -- what must hold -----------------------------------------------------------------------

    def check(self) -> None:
        leases = [s.lease for s in self.scheduler.slots.sequences.values() if s.lease]
        check_integrity(self.memory, leases)

    def close(self) -> None:
        """Everything is let go: no page is held and no ticket is alive."""
        for _ in range(10_000):
            if not self.memory.is_moving:
                break
            self.bed.link.wait(1.0)
            assert self.memory.poll() == []
        self.check()
        for adapter in list(self.memory.tree.root("adapters").children):
            self.memory.remove_adapter(adapter)
        self.memory.clear()
        self.check()
        self.bed.check_all_free()
        self.bed.link.close()

    def _reader(self, slot: int) -> Int64s:
        slots = self.scheduler.slots
        return slots.tokens[slot, : slots.known[slot]].astype(np.int64)


def expected(sequence: Sequence, prompt: list[int]) -> list[int]:
    """The text of ``sequence``, if it ends by its length: from its tokens alone."""
    use = next(iter(sequence.attachments), None)
    return expected_text(
        prompt,
        sequence.limit - sequence.prompt_len,
        key=sequence.key,
        temperature=sequence.params.temperature,
        vocab_size=VOCAB,
        adapter=0 if use is None else use.layout >> 8,
        start=0 if use is None else use.start,
    )


def assert_as_expected(sequence: Sequence, prompt: list[int]) -> None:
    """Ended by its length, with the text that its tokens alone give."""
    assert sequence.phase is Phase.FINISHED, sequence
    assert sequence.finish_reason == "length", (sequence.finish_reason, sequence.error)
    assert sequence.output.tolist() == expected(sequence, prompt), sequence
