"""Continuous batching: which sequences are admitted, what a step computes, what its tokens mean.

Called on the engine's thread: ``schedule`` makes the next batch, ``update`` takes in what a batch
gave. The scheduler reserves memory by leases, in blocks, and never sees a page. It knows neither
model, clock nor threads.
"""

from __future__ import annotations

from collections import deque

from scalesim.batch import Batch, StepOutput
from scalesim.config import SchedulerConfig
from scalesim.core import Bools, FinishReason, Int64s
from scalesim.errors import AttachmentError
from scalesim.memory.lease import Lease
from scalesim.memory.manager import MemoryManager
from scalesim.scheduler import failures
from scalesim.scheduler.batch_builder import BatchBuilder, InFlight
from scalesim.scheduler.expected_work import ExpectedWork
from scalesim.scheduler.finish import Finisher
from scalesim.scheduler.forecast import QueueForecast
from scalesim.scheduler.masks import fill_masks, without
from scalesim.scheduler.queue import RequestQueue, rank
from scalesim.scheduler.running import Running
from scalesim.scheduler.sequence import Chunk, Phase, Sequence
from scalesim.scheduler.slots import Slots
from scalesim.scheduler.step_costs import StepCosts

MAX_ATTACHMENT_FAILURES = 8


class Scheduler:
    """``max_len`` bounds the tokens of a sequence, prompt and output; the pool must hold one such
    sequence. A running sequence has pages up to its next safe point, where it asks for more.
    ``costs`` say how much prefill runs beside decodes; without them, a step takes all it may."""

    def __init__(
        self,
        memory: MemoryManager,
        config: SchedulerConfig,
        max_len: int,
        costs: StepCosts | None = None,
    ) -> None:
        self.memory, self.config = memory, config
        self.max_len = max_len
        self.num_steps = self.num_admissions = 0
        self.slots = Slots(config.max_num_seqs, max_len)
        self.queue, self.running = RequestQueue(config), Running(self.slots, config, costs)
        self.work = ExpectedWork()
        self.finisher = Finisher(memory, self.slots, self.queue, self.running, self.work)
        self._costs = costs
        self._batch_builder = BatchBuilder(self.slots, memory)
        self._in_flight: deque[InFlight] = deque()

    # -- what the engine asks -----------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return self.config.max_num_seqs - self.slots.num_free

    @property
    def num_waiting(self) -> int:
        return len(self.queue)

    @property
    def forecast(self) -> QueueForecast:
        return QueueForecast(self.slots, self.queue, self.memory)

    @property
    def has_work(self) -> bool:
        return bool(self.num_waiting or self.num_running)

    def leases(self) -> list[Lease]:
        """The leases of all running sequences."""
        return [sequence.lease for sequence in self.slots.sequences.values() if sequence.lease]

    def check_fits(self, num_tokens: int) -> None:
        """Raise ``PromptTooLongError`` if a request of ``num_tokens`` in all could never run."""
        if num_tokens > self.max_len:
            raise failures.too_long(num_tokens, self.max_len)

    def add(self, sequence: Sequence) -> None:
        self.check_fits(sequence.limit)
        self.queue.line.add(sequence)

    def add_behind(self, leader: Sequence, sequence: Sequence) -> None:
        """Add ``sequence`` when ``leader`` has computed the prompt of both, or has ended: it then
        finds the prompt in memory. Until then ``sequence`` can only be cancelled."""
        self.check_fits(sequence.limit)
        if leader.phase is Phase.FINISHED or leader.first_step is not None:
            self.queue.line.add(sequence)
        else:
            leader.followers.append(sequence)

    def end(self, sequence: Sequence, reason: FinishReason, error: Exception | None) -> None:
        """End ``sequence``, wherever it stands. What a step in flight computes of it is ignored."""
        if sequence.phase is not Phase.FINISHED:
            self.finisher.finish(sequence, reason, error)

    @property
    def has_ended(self) -> bool:
        """Whether sequences ended since ``take_ended``: others may run on what they held."""
        return bool(self.finisher.ended)

    def take_ended(self) -> list[Sequence]:
        """The sequences that ended since the last call."""
        ended, self.finisher.ended = self.finisher.ended, []
        return ended

    def clear(self) -> None:
        """Forget all sequences. Each that was running keeps the tokens that are known of it."""
        for sequence in self.slots.sequences.values():
            sequence.tokens = self.slots.known_tokens(sequence.slot)
        self.slots.clear()
        self.queue.clear()
        self.running.clear()
        self._in_flight.clear()
        self.finisher.ended.clear()

    # -- a step -------------------------------------------------------------------------------

    def schedule(self) -> Batch | None:
        """Admit what fits, and make the next batch; ``None`` if nothing can run now."""
        self._wake(self.memory.poll())
        if self.num_waiting and self.slots.num_free:
            self._admit()
        decodes = self._ready_decodes()
        chunks = self.running.chunks(decodes)
        if self.slots.logits.num_constrained:
            failed = fill_masks(self.slots, decodes, chunks)
            for slot, error in failed.items():  # a constraint that fails ends its own sequence
                self.finisher.finish(self.slots.sequences[slot], "error", error)
            if failed:
                decodes, chunks = without(failed, decodes, chunks)
        if not len(decodes) and not chunks:
            return None
        return self._make_batch(decodes, chunks)

    def update(self, output: StepOutput) -> None:
        """Take in what the oldest launched batch gave."""
        step, slots = self._in_flight.popleft(), self.slots
        if self._costs is not None:
            num_decodes = len(step.slots) - len(step.prefills)
            self._costs.took(num_decodes, step.prefill_tokens, output.compute_s)
        failed, sampled = step.deliver(slots, output)
        for slot in failed:
            self.finisher.not_finite(int(slot))
        slot_ids, tokens = step.slots[sampled], output.token_ids[sampled]
        slots.take_tokens(slot_ids, tokens)
        if output.digests is not None:
            for slot, digest in zip(slot_ids, output.digests[sampled], strict=True):
                slots.sequences[int(slot)].add_digest(int(digest))
        for sequence in step.prefills:
            self._prefilled(sequence)
        stopped = (slots.stop_ids[slot_ids] == tokens[:, None]).any(axis=1)
        full = slots.known[slot_ids] >= slots.limit[slot_ids]
        for index in (stopped | full | slots.watched[slot_ids]).nonzero()[0]:
            self.finisher.look_at(int(slot_ids[index]), int(tokens[index]))

    def _prefilled(self, sequence: Sequence) -> None:
        """A chunk of the prompt of ``sequence`` was collected."""
        if sequence.phase is not Phase.PREFILL and sequence.phase is not Phase.DECODE:
            return
        assert sequence.lease is not None
        done = int(self.slots.done[sequence.slot])
        tokens = self.slots.token_bytes(sequence.slot, done)
        self.memory.commit(sequence.lease, tokens, done)
        if sequence.followers and sequence.phase is Phase.DECODE:
            self.finisher.release_followers(sequence)
        if sequence.limit == sequence.prompt_len <= done:  # nothing is to be generated
            self.finisher.finish(sequence, "length", None)

    # -- admission ----------------------------------------------------------------------------

    def _admit(self) -> None:
        backlog = sum(map(self.slots.num_unlaunched, self.running.prefilling))
        while self.slots.num_free and self.num_waiting:
            if backlog >= self.config.max_num_batched_tokens:
                return  # another could not start in this step, and would hold pages for nothing
            sequence = self.queue.next(self.memory.first_resident)
            try:
                lease = self._acquire(sequence, backlog)
            except AttachmentError as error:  # the attachment was removed meanwhile
                self.end(sequence, "error", error)
                continue
            if lease is None:
                return
            self.queue.admitted(sequence)
            self._start(sequence, lease)
            if lease.is_ready:
                backlog += self.slots.num_unlaunched(sequence)

    def _acquire(self, sequence: Sequence, backlog: int) -> Lease | None:
        """A lease for the tokens of ``sequence`` and its growth to the next safe point, or none.
        ``backlog`` tokens are computed before."""
        reserve_len = min(sequence.limit, len(sequence.tokens) + self.config.safe_point_tokens)
        max_loading = self.memory.num_pages // 2 if self.num_running else None
        lease = self.memory.acquire(
            sequence.agent, sequence.tokens[: sequence.usable].tobytes(),
            self.num_blocks(sequence, reserve_len), attachments=sequence.attachments,
            salt=sequence.salt, max_loading_pages=max_loading, backlog=backlog,
        )  # fmt: skip
        if lease is not None and sequence.leaves_nothing:
            self.memory.make_temporary(lease)
        return lease

    def _start(self, sequence: Sequence, lease: Lease) -> None:
        self.slots.enter(sequence, lease)
        if not sequence.admission:
            self.num_admissions += 1
        sequence.admitted(lease, self.num_admissions)
        if lease.is_ready:
            self.running.prefill(sequence)
        else:
            self.running.wait(sequence, lease)

    def _wake(self, leases: list[Lease]) -> None:
        """The loads of ``leases`` are over. A sequence whose load failed waits again; with an error
        that another try cannot mend, it ends."""
        for lease in leases:
            sequence = self.running.loaded(lease)
            if lease.failed is None:
                self.running.prefill(sequence)
                continue
            self.memory.fail(lease)
            sequence.lease = None
            self.slots.leave(sequence)
            self._requeue(sequence)
            error = lease.error
            sequence.attachment_failures += lease.attachment_failed
            gives_up = sequence.attachment_failures > MAX_ATTACHMENT_FAILURES
            if gives_up or isinstance(error, AttachmentError):
                self.end(sequence, "error", error)

    def _requeue(self, sequence: Sequence) -> None:
        """``sequence``, which was admitted, holds nothing any more."""
        sequence.phase = Phase.WAITING
        self.queue.requeue(sequence)

    # -- what a step computes -----------------------------------------------------------------

    def _ready_decodes(self) -> Int64s:
        """The decoding slots that have a token to compute and a page to put it in."""
        slots = self.slots
        wanted = self.running.wanted_decodes()
        short = wanted[slots.launched[wanted] >= slots.capacity[wanted]]
        if not len(short):
            return wanted
        for slot in short:
            sequence = slots.sequences.get(slot)
            if sequence is not None:  # else it was preempted for a slot before
                self._grow(sequence)
        wanted = self.running.wanted_decodes()
        has_room: Bools = slots.launched[wanted] < slots.capacity[wanted]
        return wanted[has_room]

    def _make_batch(self, decodes: Int64s, chunks: list[Chunk]) -> Batch:
        step = self.num_steps
        batch, in_flight = self._batch_builder.build(step, decodes, chunks)
        self._in_flight.append(in_flight)
        self.num_steps += 1
        self.memory.launched(step, in_flight.prefill_tokens)
        prefills = in_flight.prefills
        self.running.decode([s for s in prefills if self.slots.num_unlaunched(s) <= 0], step)
        return batch

    # -- growth and preemption ----------------------------------------------------------------

    def _grow(self, sequence: Sequence) -> None:
        """Reserve pages for ``sequence`` up to its next safe point. If there are too few, the least
        urgent and youngest running sequence is preempted; the most urgent and oldest never is. If
        pages become free when a copy ends, ``sequence`` sits this step out."""
        assert sequence.lease is not None
        slot, memory = sequence.slot, self.memory
        reserve_len = min(
            int(self.slots.limit[slot]),
            int(self.slots.launched[slot]) + self.config.safe_point_tokens,
        )
        while not memory.grow(sequence.lease, self.num_blocks(sequence, reserve_len)):
            if memory.is_moving:
                return
            least_urgent = max(self.slots.sequences.values(), key=rank)
            most_urgent = min(self.slots.sequences.values(), key=rank)
            if least_urgent is most_urgent:
                raise AssertionError(
                    f"one running sequence of limit {sequence.limit} does not fit "
                    f"{memory.num_pages} pages of {sequence.lease.block_size} tokens"
                )
            self._preempt(least_urgent)
            if least_urgent is sequence:
                return
        self.slots.capacity[slot] = sequence.lease.num_tokens

    def _preempt(self, sequence: Sequence) -> None:
        """Take the pages of ``sequence``. Full blocks stay in the tree until others need their
        pages."""
        sequence.tokens = self.slots.known_tokens(sequence.slot)
        sequence.num_preemptions += 1
        self.memory.preempted()
        self.finisher.leave(sequence)
        self._requeue(sequence)

    def num_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` of ``sequence``."""
        return -(-num_tokens // self.memory.block_size_of(sequence.attachments))
