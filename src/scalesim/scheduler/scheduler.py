"""Continuous batching: who is admitted, what a step computes, what its tokens mean.

Called by the engine, on its thread: ``schedule`` makes the next batch, ``update`` takes in what a
batch gave. Knows memory through leases; knows neither model, clock nor threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable

import numpy as np
import numpy.typing as npt

from scalesim.batch import Batch, StepOutput
from scalesim.config import SchedulerConfig
from scalesim.core import FinishReason
from scalesim.errors import AttachmentError, ScaleSimError
from scalesim.foreign import Foreign
from scalesim.memory.lease import Lease
from scalesim.memory.manager import MemoryManager
from scalesim.scheduler import finish as endings
from scalesim.scheduler.batch_builder import BatchBuilder, InFlight
from scalesim.scheduler.forecast import QueueForecast
from scalesim.scheduler.queue import RequestQueue, rank
from scalesim.scheduler.running import Running
from scalesim.scheduler.sequence import Chunk, Phase, Sequence
from scalesim.scheduler.slots import Slots

MAX_FAILED_READS = 8


class Scheduler:
    """``max_len`` bounds a sequence's tokens, prompt and output; the pool must hold one such
    sequence."""

    def __init__(self, memory: MemoryManager, config: SchedulerConfig, max_len: int) -> None:
        self.memory, self.config = memory, config
        self.max_len = max_len
        self.num_steps = 0
        self.num_admissions = 0
        self.slots = Slots(config.max_num_seqs, max_len)
        self.queue, self.running = RequestQueue(config), Running(self.slots)
        self.forecast = QueueForecast(self.slots, self.queue)
        self._batching = BatchBuilder(self.slots, memory)
        self._flights: deque[InFlight] = deque()
        self._ended: list[Sequence] = []

    # -- what the engine asks -----------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return self.config.max_num_seqs - self.slots.num_free

    @property
    def num_waiting(self) -> int:
        return len(self.queue)

    @property
    def has_work(self) -> bool:
        return bool(self.num_waiting or self.num_running)

    def leases(self) -> list[Lease]:
        """Those that are open."""
        return [
            sequence.lease
            for sequence in self.slots.sequences
            if sequence is not None and sequence.lease
        ]

    def check_fits(self, num_tokens: int) -> None:
        """Raise ``PromptTooLongError`` where a request of ``num_tokens`` in all could never run."""
        if num_tokens > self.max_len:
            raise endings.too_long(num_tokens, self.max_len)

    def add(self, sequence: Sequence) -> None:
        self.check_fits(sequence.limit)
        self.queue.line.add(sequence)

    def add_behind(self, leader: Sequence, sequence: Sequence) -> None:
        """Add ``sequence``, of the same prompt, once ``leader`` has computed it (or has ended): its
        full blocks are then found. Until then it can only be cancelled."""
        self.check_fits(sequence.limit)
        if leader.phase is Phase.FINISHED or leader.first_step is not None:
            self.queue.line.add(sequence)
        else:
            leader.followers.append(sequence)

    def cancel(self, sequence: Sequence, reason: FinishReason, error: Exception | None) -> None:
        """End ``sequence`` wherever it stands; a step in flight that still holds it is ignored for
        it."""
        if sequence.phase is Phase.FINISHED:
            return
        if sequence.phase is Phase.WAITING:
            self.queue.discard(sequence)
            sequence.finish_reason, sequence.error = reason, error
            self._end_waiting(sequence)
        else:
            self._finish(sequence, reason, error)

    @property
    def has_ended(self) -> bool:
        """Whether some ended since ``take_ended``: what they held, others may run on."""
        return bool(self._ended)

    def take_ended(self) -> list[Sequence]:
        """The sequences that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    # -- a step -------------------------------------------------------------------------------

    def schedule(self) -> Batch | None:
        """Admit what fits, then the next batch; ``None`` if nothing can run now."""
        self._wake(self.memory.poll())
        if self.num_waiting and self.slots.num_free:
            self._admit()
        decodes = self._ready_decodes()
        chunks = self.running.chunks(self.config.max_num_batched_tokens - len(decodes))
        if self.slots.adjusting.num_guided:
            decodes, chunks = self._ask_guides(decodes, chunks)
        if not len(decodes) and not chunks:
            return None
        return self._launch(decodes, chunks)

    def update(self, output: StepOutput) -> None:
        """Take in the oldest launched batch."""
        flight = self._flights.popleft()
        slots = self.slots
        failed, sampled = flight.deliver(slots, output)
        for slot in failed:
            self._fail(int(slot))
        slot_ids, tokens = flight.slots[sampled], output.token_ids[sampled]
        slots.take_tokens(slot_ids, tokens)
        if output.digests is not None:
            for slot, digest in zip(slot_ids, output.digests[sampled], strict=True):
                sequence = slots.at(int(slot))
                sequence.digest = endings.chain_digests(sequence.digest, int(digest))
        for sequence in flight.prefills:
            self._prefilled(sequence)
        stopped = (slots.stop_ids[slot_ids] == tokens[:, None]).any(axis=1)
        full = slots.known[slot_ids] >= slots.limit[slot_ids]
        for index in (stopped | full | slots.watched[slot_ids]).nonzero()[0]:
            self._look_at(int(slot_ids[index]), int(tokens[index]))

    def _prefilled(self, sequence: Sequence) -> None:
        """A chunk of its prompt was collected."""
        if sequence.phase is not Phase.PREFILL and sequence.phase is not Phase.DECODE:
            return
        self._commit(sequence)
        if sequence.followers and sequence.phase is Phase.DECODE:
            self._release_followers(sequence)
        to_generate = sequence.limit > sequence.prompt_len
        if not to_generate and self.slots.done[sequence.slot] >= sequence.limit:
            self._finish(sequence, "length", None)

    # -- admission ----------------------------------------------------------------------------

    def _admit(self) -> None:
        backlog = sum(self.slots.left(sequence) for sequence in self.running.prefilling)
        while self.slots.num_free and self.num_waiting:
            if backlog >= self.config.max_num_batched_tokens:
                return  # they could not start in this step; pages held for nothing
            sequence = self.queue.next(self.memory.is_resident)
            try:
                lease = self._reserve(sequence)
            except AttachmentError as error:  # removed since the request was made
                self.cancel(sequence, "error", error)
                continue
            if lease is None:
                return
            self.queue.admitted(sequence)
            self._enter(sequence, lease)
            if lease.is_ready:
                backlog += self.slots.left(sequence)

    def _reserve(self, sequence: Sequence) -> Lease | None:
        """Pages for the tokens at hand and for the growth to the next safe point, or nothing."""
        max_len = min(sequence.limit, len(sequence.tokens) + self.config.safe_point_tokens)
        share = self.memory.num_pages // 2 if self.num_running else None
        lease = self.memory.acquire(
            sequence.agent,
            sequence.tokens[: sequence.usable].tobytes(),
            self._blocks(max_len),
            attachments=sequence.attachments,
            max_loading_pages=share,
        )
        if lease is not None and sequence.leaves_nothing:
            self.memory.leave_nothing(lease)
        return lease

    def _enter(self, sequence: Sequence, lease: Lease) -> None:
        self.slots.enter(sequence, lease, self.memory.block_size)
        if not sequence.admission:
            self.num_admissions += 1
        sequence.admitted(lease, self.num_admissions, self.memory.block_size)
        if lease.is_ready:
            self.running.prefill(sequence)
        else:
            self.running.wait(sequence, lease)

    def _wake(self, leases: list[Lease]) -> None:
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
            sequence.failed_reads += lease.could_not_read
            if isinstance(error, AttachmentError) or sequence.failed_reads > MAX_FAILED_READS:
                self.cancel(sequence, "error", error)

    def _requeue(self, sequence: Sequence) -> None:
        sequence.phase = Phase.WAITING
        self.queue.requeue(sequence)

    # -- what a step computes -----------------------------------------------------------------

    def _ready_decodes(self) -> npt.NDArray[np.int64]:
        """The decoding slots that have a token to compute and a page to put it in."""
        slots = self.slots
        wanted = self.running.wanted_decodes()
        short = wanted[slots.launched[wanted] >= slots.capacity[wanted]]
        if not len(short):
            return wanted
        for slot in short:
            sequence = slots.sequences[slot]
            if sequence is not None:  # not preempted for one before it
                self._grow(sequence)
        wanted = self.running.wanted_decodes()
        able: npt.NDArray[np.bool_] = slots.launched[wanted] < slots.capacity[wanted]
        return wanted[able]

    def _ask_guides(
        self, decodes: npt.NDArray[np.int64], chunks: list[Chunk]
    ) -> tuple[npt.NDArray[np.int64], list[Chunk]]:
        """Masks for the guided sequences that sample in this step; a guide that fails ends its
        own."""
        asked = self.running.guided(decodes, chunks)
        tokens = [self.slots.known_tokens(slot) for slot in asked]
        failed = self.slots.adjusting.ask(asked, tokens)
        for slot, error in failed.items():
            self._finish(self.slots.at(slot), "error", error)
        if failed:
            decodes = np.array([slot for slot in decodes if slot not in failed], np.int64)
            chunks = [chunk for chunk in chunks if chunk[0].slot not in failed]
        return decodes, chunks

    def _launch(self, decodes: npt.NDArray[np.int64], chunks: list[Chunk]) -> Batch:
        step = self.num_steps
        batch, flight = self._batching.launch(step, decodes, chunks)
        self._flights.append(flight)
        self.num_steps += 1
        self.memory.launched(step, sum(count for _, count in chunks))
        whole = [sequence for sequence in flight.prefills if self.slots.left(sequence) <= 0]
        self.running.decode(whole, step)
        return batch

    # -- growth and preemption ----------------------------------------------------------------

    def _grow(self, sequence: Sequence) -> None:
        """Reserve to the next safe point, at the cost of the least urgent and youngest; the most
        urgent and oldest never yields. If the pages are only on their way, the sequence sits this
        step out."""
        assert sequence.lease is not None
        slot, memory = sequence.slot, self.memory
        max_len = min(
            int(self.slots.limit[slot]),
            int(self.slots.launched[slot]) + self.config.safe_point_tokens,
        )
        while not memory.grow(sequence.lease, self._blocks(max_len)):
            if memory.is_moving:
                return
            youngest = max(self.slots.entered(), key=rank)
            oldest = min(self.slots.entered(), key=rank)
            if youngest is oldest:
                raise AssertionError(
                    f"one running sequence of limit {sequence.limit} does not fit "
                    f"{memory.num_pages} pages of {memory.block_size} tokens"
                )
            self._preempt(youngest)
            if youngest is sequence:
                return
        self.slots.capacity[slot] = sequence.lease.num_blocks * memory.block_size

    def _preempt(self, sequence: Sequence) -> None:
        """Take its pages; full blocks stay in the tree as long as nobody needs theirs."""
        sequence.tokens = self.slots.known_tokens(sequence.slot)
        sequence.num_preemptions += 1
        self.memory.preempted()
        self._leave(sequence)
        self._requeue(sequence)

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.memory.block_size)

    # -- endings ------------------------------------------------------------------------------

    def _look_at(self, slot: int, token: int) -> None:
        sequence = self.slots.at(slot)
        failure: ScaleSimError | None = None
        reason: FinishReason | None = None
        with Foreign() as raised:  # a request's own callback ends that request
            reason = endings.judge(sequence, token, int(self.slots.known[slot]))
        if raised.error is not None:
            reason, failure = "error", endings.as_own(sequence, raised.error)
        if reason is not None:
            sequence.finish_reason, sequence.error = reason, failure  # whatever breaks from here on
            self._finish(sequence, reason, failure)

    def _fail(self, slot: int) -> None:
        """Its values are not finite: nothing that it computed may be shared."""
        sequence = self.slots.at(slot)
        error = endings.not_finite(sequence, int(self.slots.known[slot]))
        self._finish(sequence, "error", error, keep=False)

    def _commit(self, sequence: Sequence) -> None:
        assert sequence.lease is not None
        done = int(self.slots.done[sequence.slot])
        tokens = self.slots.token_bytes(sequence.slot, done)
        self.memory.commit(sequence.lease, tokens, done)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: Exception | None,
        *,
        keep: bool = True,
    ) -> None:
        slot = sequence.slot
        sequence.tokens = self.slots.known_tokens(slot)
        sequence.output = sequence.tokens[sequence.prompt_len :]
        # said first: if memory fails from here on, ``restart`` still ends it like this
        sequence.finish_reason, sequence.error = reason, error
        sequence.say_end()
        self._leave(sequence, keep=keep)
        self._end(sequence)

    def _end_waiting(self, sequence: Sequence) -> None:
        """``sequence``, which holds nothing, ends with the tokens that it has."""
        sequence.output = sequence.tokens[sequence.prompt_len :]
        sequence.say_end()
        self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        sequence.phase = Phase.FINISHED
        self._release_followers(sequence)
        self._ended.append(sequence)

    def _release_followers(self, sequence: Sequence) -> None:
        for follower in sequence.followers:
            if follower.phase is not Phase.FINISHED:
                self.queue.line.add(follower)
        sequence.followers = []

    def _leave(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Give back the slot and the lease; with ``keep``, what was computed soundly stays in the
        tree."""
        lease, slot = sequence.lease, sequence.slot
        assert lease is not None
        self.running.leave(sequence)
        if sequence.phase is Phase.LOADING:
            self.memory.release(lease)
        else:
            done = int(self.slots.done[slot]) if keep else 0
            self.memory.release(lease, self.slots.token_bytes(slot, done), done)
        sequence.lease = None
        self.slots.leave(sequence)

    # -- a new beginning ----------------------------------------------------------------------

    def restart(self, open: Iterable[Sequence], suspects: Container[int] = ()) -> None:
        """Memory begins anew, and so do ``open``, all sequences whose end nobody was told: each
        goes on behind the tokens that are known of it. One that was about to end ends, and so does
        one whose lease is among ``suspects`` (by id): its tokens cannot be trusted."""
        for sequence in self.slots.entered():
            sequence.tokens = self.slots.known_tokens(sequence.slot)
        self.slots.clear()
        self.queue.clear()
        self.running.clear()
        self._flights.clear()
        self._ended.clear()
        for sequence in open:
            if sequence.phase is Phase.FINISHED:
                self._ended.append(sequence)
                continue
            if id(sequence.lease) in suspects:
                sequence.finish_reason, sequence.error = "error", endings.not_trusted(sequence)
            sequence.lease, sequence.followers = None, []  # these are open themselves
            sequence.phase = Phase.WAITING
            if endings.is_over(sequence):
                self._end_waiting(sequence)
            else:
                self._take_back(sequence)

    def _take_back(self, sequence: Sequence) -> None:
        blocks, usable = self._blocks(sequence.limit), self.memory.num_free_pages
        if blocks > usable:
            self.cancel(sequence, "error", endings.pages_were_lost(sequence, blocks, usable))
        elif sequence.admission:
            self._requeue(sequence)
        else:
            self.queue.line.add(sequence)
