"""Continuous batching: who is admitted, what a step computes, what its tokens mean.

Called by the engine, on its thread: ``schedule`` makes the next batch, ``update`` takes in what a
batch gave. Knows memory through leases; knows neither model, clock nor threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from scalesim.config import SchedulerConfig
from scalesim.core import AgentId, Batch, FinishReason, SamplingBatch, StepOutput
from scalesim.errors import (
    AdapterError,
    InternalError,
    NumericalError,
    PromptTooLongError,
    ScaleSimError,
)
from scalesim.memory.lease import Lease
from scalesim.memory.manager import MemoryManager
from scalesim.scheduler.pooling import PoolPlan
from scalesim.scheduler.scoring import ScorePlan
from scalesim.scheduler.sequence import Phase, Sequence
from scalesim.scheduler.slots import Slots
from scalesim.scheduler.waiting import WaitingLine, overtake

_MASK64 = (1 << 64) - 1
MAX_FAILED_READS = 8
_NO_SLOTS: npt.NDArray[np.int64] = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A launched batch: the slots in it, whose they were, and up to which token each was
    computed."""

    slots: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    sample: npt.NDArray[np.bool_]
    prefills: list[Sequence]
    scoring: ScorePlan | None = None
    pooling: PoolPlan | None = None


class Scheduler:
    """``max_len`` bounds a sequence's tokens, prompt and output; the pool must hold one such
    sequence."""

    def __init__(self, memory: MemoryManager, config: SchedulerConfig, max_len: int) -> None:
        self.memory, self.config = memory, config
        self.max_len = max_len
        self.num_steps = 0
        self.slots = Slots(config.max_num_seqs, max_len)
        memory.look_ahead.starts_in = self.starts_in
        memory.look_ahead.drains_in = self.drains_in
        self._waiting = WaitingLine(config.max_skips)
        self._preempted: list[Sequence] = []  # by rank
        self._loading: dict[int, Sequence] = {}  # by id of the lease
        self._prefilling: list[Sequence] = []
        self._decoding: npt.NDArray[np.int64] = _NO_SLOTS  # slots, in order of admission
        self._flights: deque[_Flight] = deque()
        self.num_admissions = 0
        self._ended: list[Sequence] = []
        # told of each end while its pages are still held: they are put in order once, not twice
        self.before_release: Callable[[Sequence], None] = lambda sequence: None

    # -- what the engine asks -----------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return self.config.max_num_seqs - self.slots.num_free

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._preempted)

    @property
    def has_work(self) -> bool:
        return bool(self.num_waiting or self.num_running)

    def leases(self) -> list[Lease]:
        """Those that are open."""
        return [one.lease for one in self.slots.sequences if one is not None and one.lease]

    def check_fits(self, num_tokens: int) -> None:
        """Raise ``PromptTooLongError`` where a request of ``num_tokens`` in all could never run."""
        if num_tokens > self.max_len:
            raise PromptTooLongError(
                f"prompt and output need {num_tokens} tokens; a sequence has at most "
                f"{self.max_len} (max_model_len; what device_memory holds); shorten the prompt, "
                "lower max_tokens or raise device_memory"
            )

    def add(self, sequence: Sequence) -> None:
        self.check_fits(sequence.limit)
        self._waiting.add(sequence)

    def add_behind(self, leader: Sequence, sequence: Sequence) -> None:
        """Add ``sequence``, of the same prompt, once ``leader`` has computed it (or has ended): its
        full blocks are then found. Until then it can only be cancelled."""
        self.check_fits(sequence.limit)
        if leader.phase is Phase.FINISHED or leader.first_step is not None:
            self._waiting.add(sequence)
        else:
            leader.followers.append(sequence)

    def _release_followers(self, sequence: Sequence) -> None:
        for follower in sequence.followers:
            if follower.phase is not Phase.FINISHED:
                self._waiting.add(follower)
        sequence.followers = []

    def cancel(self, sequence: Sequence, reason: FinishReason, error: Exception | None) -> None:
        """End ``sequence`` wherever it stands; a step in flight that still holds it is ignored for
        it."""
        if sequence.phase is Phase.FINISHED:
            return
        if sequence.phase is Phase.WAITING:
            self._waiting.discard(sequence)
            if sequence in self._preempted:
                self._preempted.remove(sequence)
            sequence.output = sequence.tokens[sequence.prompt_len :]
            sequence.finish_reason, sequence.error = reason, error
            self.before_release(sequence)
            self._end(sequence)
        else:
            self._finish(sequence, reason, error)

    def restart(self, open: Iterable[Sequence], suspects: Container[int] = ()) -> None:
        """Memory begins anew, and so do ``open``, all sequences whose end nobody was told: each
        goes on behind the tokens that are known of it. One that was about to end ends, and so does
        one whose lease is among ``suspects`` (by id): its tokens cannot be trusted."""
        for sequence in self._admitted():
            known = int(self.slots.known[sequence.slot])
            sequence.tokens = self.slots.tokens[sequence.slot, :known].copy()
        self.slots.clear()
        self._waiting = WaitingLine(self.config.max_skips)
        self._preempted.clear()
        self._loading.clear()
        self._prefilling.clear()
        self._flights.clear()
        self._ended.clear()
        self._decoding = _NO_SLOTS
        for sequence in open:
            if sequence.phase is Phase.FINISHED:
                self._ended.append(sequence)
                continue
            if id(sequence.lease) in suspects:
                sequence.finish_reason = "error"
                sequence.error = InternalError(
                    f"request {sequence.id} of agent {sequence.agent!r}: a page of its memory had "
                    "two holders; what it said is not to be trusted, ask again"
                )
            sequence.lease, sequence.followers = None, []  # these are open themselves
            sequence.phase = Phase.WAITING
            if not self._is_over(sequence):
                self._take_back(sequence)

    def _is_over(self, sequence: Sequence) -> bool:
        """Whether ``sequence`` was ending when everything stopped, or has all that it asked for:
        then it ends now."""
        tokens = sequence.tokens
        if sequence.finish_reason is None and len(tokens) > sequence.prompt_len:
            try:
                sequence.finish_reason = self._judge(sequence, int(tokens[-1]), len(tokens))
            except Exception as error:
                sequence.finish_reason, sequence.error = "error", _as_own(sequence, error)
        if sequence.finish_reason is None:
            return False
        sequence.output = tokens[sequence.prompt_len :]
        self.before_release(sequence)
        self._end(sequence)
        return True

    def _take_back(self, sequence: Sequence) -> None:
        blocks, usable = self._blocks(sequence.limit), self.memory.device.num_free
        if blocks > usable:  # pages were lost
            error = PromptTooLongError(
                f"request {sequence.id} needs {blocks} pages; {usable} of the device pool are left "
                "in use"
            )
            self.cancel(sequence, "error", error)
        elif sequence.admission:
            self._requeue(sequence)
        else:
            self._waiting.add(sequence)

    def take_ended(self) -> list[Sequence]:
        """The sequences that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def starts_in(self, agent: AgentId) -> float:
        """Steps until the oldest waiting request of ``agent`` can start, if all that run take their
        full length; 0 if it has none. Of a long queue only the first few are told apart."""
        window = self.config.lookahead_window
        for position, sequence in enumerate(islice(self._waiting, window)):
            if sequence.agent == agent:
                return self._frees_in(position + len(self._preempted))
        return self._frees_in(window) if len(self._waiting) > window else 0.0

    def drains_in(self) -> float:
        """Steps until the last request has ended, if none is added."""
        if not self.num_running:
            return 0.0
        at = [sequence.slot for sequence in self._admitted()]
        left = self.slots.limit[at] - self.slots.known[at]
        return float(left.max() + left.mean() * (self.num_waiting // len(at)))

    def _frees_in(self, position: int) -> float:
        """Steps until there is a slot for who has ``position`` others before it."""
        index = position - self.slots.num_free
        if index < 0 or not self.num_running:  # nobody runs: pages are waited for, not slots
            return 0.0
        at = [sequence.slot for sequence in self._admitted()]
        left = np.sort(self.slots.limit[at] - self.slots.known[at])
        rounds, index = divmod(index, len(left))
        return float(left[index] + rounds * left.mean())

    # -- a step -------------------------------------------------------------------------------

    def schedule(self) -> Batch | None:
        """Admit what fits, then the next batch; ``None`` if nothing can run now."""
        self._wake(self.memory.poll())
        self.memory.residency.refused = False  # until somebody is, in this turn
        if self.num_waiting and self.slots.num_free:
            self._admit()
        decodes = self._ready_decodes()
        chunks = self._prefill_chunks(self.config.max_num_batched_tokens - len(decodes))
        if self.slots.adjusting.num_guided:
            decodes, chunks = self._ask_guides(decodes, chunks)
        if not len(decodes) and not chunks:
            return None
        return self._launch(decodes, chunks)

    def update(self, output: StepOutput) -> None:
        """Take in the oldest launched batch."""
        flight = self._flights.popleft()
        slots = self.slots
        current = slots.epoch[flight.slots] == flight.epochs
        at = flight.slots[current]
        if flight.scoring is not None and output.scores is not None:
            flight.scoring.deliver(output.scores, current)
        if flight.pooling is not None and output.pooled is not None:
            flight.pooling.deliver(output.pooled, current)
        sound = ~output.bad[current]
        slots.done[at[sound]] = flight.ends[current][sound]
        for slot in at[~sound]:
            self._fail(int(slot))
        sampled = (flight.sample & current & ~output.bad).nonzero()[0]
        at = flight.slots[sampled]
        tokens = output.token_ids[sampled]
        slots.tokens[at, slots.known[at]] = tokens
        slots.known[at] += 1
        if output.digests is not None:
            for slot, digest in zip(at, output.digests[sampled], strict=True):
                sequence = self._at(int(slot))
                sequence.digest = chain_digests(sequence.digest, int(digest))
        for sequence in flight.prefills:
            if sequence.phase is Phase.PREFILL or sequence.phase is Phase.DECODE:
                self._commit(sequence)
                if sequence.followers and sequence.phase is Phase.DECODE:
                    self._release_followers(sequence)
                if sequence.limit == sequence.prompt_len and self._is_done(sequence):
                    self._finish(sequence, "length", None)  # it was to generate nothing
        stopped = (slots.stop_ids[at] == tokens[:, None]).any(axis=1)
        full = slots.known[at] >= slots.limit[at]
        for index in (stopped | full | slots.watched[at]).nonzero()[0]:
            self._look_at(int(at[index]), int(tokens[index]))

    def _is_done(self, sequence: Sequence) -> bool:
        return bool(self.slots.done[sequence.slot] >= sequence.limit)

    def quiet_decodes(self) -> tuple[npt.NDArray[np.int64], int]:
        """The slots that decode, and for how many steps nobody can enter, grow, stop or end, as
        long as no copy arrives: what a simulation may take in one go."""
        slots, at = self.slots, self._decoding
        may_enter = self.num_waiting and slots.num_free
        if not len(at) or may_enter or self._prefilling or self._flights:
            return at, 0
        if slots.watched[at].any() or (slots.stop_ids[at] >= 0).any():
            return at, 0
        known = slots.known[at]
        steps = np.minimum(slots.limit[at] - known - 1, slots.capacity[at] - known + 1)
        return at, max(0, int(steps.min()))

    def take_decodes(self, at: npt.NDArray[np.int64], tokens: npt.NDArray[np.int32]) -> None:
        """As if a step of ``at`` had been launched and had given ``tokens``; at most as often as
        ``quiet_decodes`` allows."""
        slots = self.slots
        slots.tokens[at, slots.known[at]] = tokens
        slots.known[at] += 1
        slots.launched[at] += 1
        slots.done[at] += 1
        self.num_steps += 1
        self.memory.residency.last_launched += 1

    # -- admission ----------------------------------------------------------------------------

    def _admit(self) -> None:
        backlog = sum(self._left(sequence) for sequence in self._prefilling)
        while self.slots.num_free and self.num_waiting:
            if backlog >= self.config.max_num_batched_tokens:
                return  # they could not start in this step; pages held for nothing
            sequence = self._next_waiting()
            try:
                lease = self._reserve(sequence)
            except AdapterError as error:  # removed since the request was made
                self.cancel(sequence, "error", error)
                continue
            if lease is None:
                return
            if sequence.phase is Phase.WAITING and sequence in self._preempted:
                self._preempted.remove(sequence)
            else:
                self._waiting.pass_over(sequence)
                self._overtake_preempted(sequence)
            self._enter(sequence, lease)
            if lease.is_ready:
                backlog += self._left(sequence)

    def _left(self, sequence: Sequence) -> int:
        """Tokens of its prompt that are not launched yet."""
        return int(self.slots.known[sequence.slot] - self.slots.launched[sequence.slot])

    def _next_waiting(self) -> Sequence:
        """By priority. Of equal ones preempted ones first, then the oldest; one whose state is on
        the device may overtake it."""
        line = self._waiting.first(self.config.lookahead_window)
        if self._preempted and (not line or self._preempted[0].priority <= line[0].priority):
            return self._preempted[0]
        head = line[0]
        if head.skipped >= self.config.max_skips or self.memory.owners.is_resident(head.agent):
            return head
        for sequence in line[1:]:
            if self.memory.owners.is_resident(sequence.agent):
                head.skipped += 1
                return sequence
        return head

    def _overtake_preempted(self, sequence: Sequence) -> None:
        for other in self._preempted:
            if other.priority > sequence.priority:
                overtake(other, self.config.max_skips)
        self._preempted.sort(key=_rank)

    def _reserve(self, sequence: Sequence) -> Lease | None:
        """Pages for the tokens at hand and for the growth to the next safe point, or nothing."""
        count = usable = len(sequence.tokens)
        if sequence.score_log is not None:
            usable = sequence.score_log.usable(count)
        if sequence.pool_log is not None:
            usable = sequence.pool_log.usable()
        upto = min(sequence.limit, count + self.config.safe_point_tokens)
        share = self.memory.device.num_usable // 2 if self.num_running else None
        return self.memory.acquire(
            sequence.agent,
            sequence.domain,
            sequence.tokens[:usable].tobytes(),
            self._blocks(upto),
            adapter=sequence.adapter,
            max_loading_pages=share,
        )

    def _enter(self, sequence: Sequence, lease: Lease) -> None:
        self.slots.enter(sequence, lease, self.memory.block_size)
        if not sequence.admission:
            self.num_admissions += 1
            sequence.admission = self.num_admissions
            sequence.cached_tokens = lease.num_cached
            sequence.host_tokens = lease.num_waited_blocks * self.memory.block_size
            sequence.rebuilt_tokens = lease.num_rebuilt_blocks * self.memory.block_size
        else:
            sequence.rebuilt_tokens += max(0, len(sequence.tokens) - 1 - lease.num_cached)
        sequence.lease = lease
        if lease.is_ready:
            self._start_prefill(sequence)
        else:
            sequence.phase = Phase.LOADING
            self._loading[id(lease)] = sequence

    def _wake(self, leases: list[Lease]) -> None:
        for lease in leases:
            sequence = self._loading.pop(id(lease))
            if lease.failed is not None:
                self.memory.fail(lease)
                sequence.lease = None
                self.slots.leave(sequence)
                self._requeue(sequence)
                error = lease.failed.error
                sequence.failed_reads += lease.failed.parts[0][0].is_adapter and error is not None
                if isinstance(error, AdapterError) or sequence.failed_reads > MAX_FAILED_READS:
                    self.cancel(sequence, "error", error)
            else:
                self._start_prefill(sequence)

    def _start_prefill(self, sequence: Sequence) -> None:
        sequence.phase = Phase.PREFILL
        self._prefilling.append(sequence)
        self._prefilling.sort(key=lambda each: each.admission)

    # -- growth and preemption ----------------------------------------------------------------

    def _ready_decodes(self) -> npt.NDArray[np.int64]:
        """The decoding slots that have a token to compute and a page to put it in."""
        slots = self.slots
        wanted = self._wanted_decodes()
        short = wanted[slots.launched[wanted] >= slots.capacity[wanted]]
        if not len(short):
            return wanted
        for slot in short:
            sequence = slots.sequences[slot]
            if sequence is not None:  # not preempted for one before it
                self._grow(sequence)
        wanted = self._wanted_decodes()
        able: npt.NDArray[np.bool_] = slots.launched[wanted] < slots.capacity[wanted]
        return wanted[able]

    def _wanted_decodes(self) -> npt.NDArray[np.int64]:
        at = self._decoding
        unfinished: npt.NDArray[np.bool_] = self.slots.launched[at] < self.slots.limit[at] - 1
        if self.slots.adjusting.num_guided:  # a guide must have seen the token in flight
            known: npt.NDArray[np.bool_] = self.slots.launched[at] < self.slots.known[at]
            unfinished &= known | ~self.slots.adjusting.guided[at]
        return at[unfinished]

    def _ask_guides(
        self, decodes: npt.NDArray[np.int64], chunks: list[tuple[Sequence, int]]
    ) -> tuple[npt.NDArray[np.int64], list[tuple[Sequence, int]]]:
        """Masks for the guided sequences that sample in this step; a guide that fails ends its
        own."""
        adjusting = self.slots.adjusting
        asked = [int(slot) for slot in decodes[adjusting.guided[decodes]]]
        asked += [
            sequence.slot
            for sequence, count in chunks
            if adjusting.guided[sequence.slot] and count == self._left(sequence)
        ]
        failed = adjusting.ask(asked, [self._known(slot) for slot in asked])
        for slot, error in failed.items():
            self._finish(self._at(slot), "error", error)
        if failed:
            decodes = np.array([slot for slot in decodes if slot not in failed], np.int64)
            chunks = [chunk for chunk in chunks if chunk[0].slot not in failed]
        return decodes, chunks

    def _grow(self, sequence: Sequence) -> None:
        """Reserve to the next safe point, at the cost of the least urgent and youngest; the most
        urgent and oldest never yields. If
        the pages are only on their way, the sequence sits this step out."""
        assert sequence.lease is not None
        slot, memory = sequence.slot, self.memory
        upto = min(
            int(self.slots.limit[slot]),
            int(self.slots.launched[slot]) + self.config.safe_point_tokens,
        )
        while not memory.grow(sequence.lease, self._blocks(upto)):
            if memory.residency.saving_pages or memory.residency.transfers:
                return
            youngest = max(self._admitted(), key=_rank)
            oldest = min(self._admitted(), key=_rank)
            if youngest is oldest:
                raise AssertionError(
                    f"one running sequence of limit {sequence.limit} does not fit "
                    f"{memory.device.num_usable} pages of {memory.block_size} tokens"
                )
            self._preempt(youngest)
            if youngest is sequence:
                return
        self.slots.capacity[slot] = sequence.lease.num_blocks * memory.block_size

    def _admitted(self) -> list[Sequence]:
        return [sequence for sequence in self.slots.sequences if sequence is not None]

    def _preempt(self, sequence: Sequence) -> None:
        """Take its pages; full blocks stay in the tree as long as nobody needs theirs."""
        slot = sequence.slot
        sequence.tokens = self.slots.tokens[slot, : self.slots.known[slot]].copy()
        sequence.num_preemptions += 1
        self.memory.counters.preemptions += 1
        self._leave(sequence)
        self._requeue(sequence)

    def _requeue(self, sequence: Sequence) -> None:
        sequence.phase = Phase.WAITING
        self._preempted.append(sequence)
        self._preempted.sort(key=_rank)

    # -- the batch ----------------------------------------------------------------------------

    def _prefill_chunks(self, budget: int) -> list[tuple[Sequence, int]]:
        chunks = []
        for sequence in self._prefilling:
            if budget <= 0:
                break
            count = min(self._left(sequence), budget)
            if count > 0:
                chunks.append((sequence, count))
                budget -= count
        return chunks

    def _launch(self, decodes: npt.NDArray[np.int64], chunks: list[tuple[Sequence, int]]) -> Batch:
        slots = self.slots
        at = decodes
        sample = np.ones(len(decodes), np.bool_)
        starts = slots.launched[decodes]
        counts = np.ones(len(decodes), np.int64)
        pending = starts >= slots.known[decodes]
        token_ids = slots.tokens[decodes, starts]
        token_ids[pending] = -1
        positions = starts.astype(np.int32)
        copies: list[tuple[int, int]] = []
        if chunks:
            at = np.concatenate([at, [sequence.slot for sequence, _ in chunks]])
            counts = np.concatenate([counts, [count for _, count in chunks]])
            starts = slots.launched[at]
            ends = starts + counts
            known = slots.known[at]
            samples = (ends >= known) & (slots.limit[at] > known)
            sample = np.concatenate([sample, samples[len(decodes) :]])
            pieces, places = [token_ids], [positions]
            for sequence, count in chunks:
                start = int(slots.launched[sequence.slot])
                pieces.append(slots.tokens[sequence.slot, start : start + count])
                places.append(np.arange(start, start + count, dtype=np.int32))
                assert sequence.lease is not None
                copies += sequence.lease.copies
                sequence.lease.copies = []
            token_ids, positions = np.concatenate(pieces), np.concatenate(places)
        ends = starts + counts
        slots.launched[at] = ends
        query_start = np.zeros(len(at) + 1, np.int32)
        np.cumsum(counts, out=query_start[1:])
        sequences = [sequence for sequence, _ in chunks]
        adjust = None
        if slots.adjusting.num_adjusted:
            adjust = slots.adjusting.batch(at, ends, sample, len(decodes), self._known)
        scoring = self._scoring(at, starts, query_start, sample) if slots.num_scored else None
        pooling = self._pooling(chunks, starts, query_start)
        self._flights.append(
            _Flight(at, slots.epoch[at], ends, sample, sequences, scoring, pooling)
        )
        self._to_decode([s for s in sequences if slots.launched[s.slot] >= slots.known[s.slot]])
        step = self.num_steps
        self.num_steps += 1
        self.memory.residency.last_launched = step
        rows, cols, pages = self.memory.table.take_changes()
        return Batch(
            step=step,
            token_ids=token_ids,
            positions=positions,
            query_start=query_start,
            rows=slots.row[at].astype(np.int32),
            slots=at.astype(np.int32),
            sample=sample,
            sampling=SamplingBatch(
                slots.temperature[at],
                slots.top_k[at].astype(np.int32),
                slots.top_p[at],
                slots.key[at],
            ),
            table_rows=rows,
            table_cols=cols,
            table_pages=pages,
            page_copies=np.array(copies, np.int32).reshape(-1, 2),
            adapters=slots.adapters(at),
            adjust=adjust,
            scores=None if scoring is None else scoring.batch(),
            pools=None if pooling is None else pooling.batch(),
        )

    def _known(self, slot: int) -> npt.NDArray[np.int32]:
        return self.slots.tokens[slot, : self.slots.known[slot]].copy()

    def _scoring(
        self, at: npt.NDArray[np.int64], starts: npt.NDArray[np.int64],
        query_start: npt.NDArray[np.int32], sample: npt.NDArray[np.bool_],
    ) -> ScorePlan:  # fmt: skip
        """The query tokens of a step behind which log-probabilities are asked for."""
        plan, slots = ScorePlan(), self.slots
        for index in slots.scored[at].nonzero()[0].tolist():
            slot, row = int(at[index]), int(query_start[index])
            start = int(starts[index])
            positions = range(start, start + int(query_start[index + 1]) - row)
            known = slots.tokens[slot, : slots.known[slot]]
            plan.add(index, self._at(slot), positions, row, known, bool(sample[index]))
        return plan

    def _pooling(
        self, chunks: list[tuple[Sequence, int]], starts: npt.NDArray[np.int64],
        query_start: npt.NDArray[np.int32],
    ) -> PoolPlan | None:  # fmt: skip
        """The hidden states of a step that are asked for: the prefills stand at its end."""
        if all(sequence.pool_log is None for sequence, _ in chunks):
            return None
        plan, first = PoolPlan(), len(starts) - len(chunks)
        for index, (sequence, count) in enumerate(chunks, start=first):
            if sequence.pool_log is not None:
                start = int(starts[index])
                positions = range(start, start + count)
                plan.add(index, sequence, positions, int(query_start[index]))
        return plan if plan.owners else None

    def _to_decode(self, sequences: list[Sequence]) -> None:
        if not sequences:
            return
        for sequence in sequences:
            sequence.phase = Phase.DECODE
            if sequence.first_step is None:
                sequence.first_step = self.num_steps
            self._prefilling.remove(sequence)
        fresh = np.array([sequence.slot for sequence in sequences], np.int64)
        self._decoding = np.concatenate([self._decoding, fresh])

    # -- endings ------------------------------------------------------------------------------

    def _look_at(self, slot: int, token: int) -> None:
        sequence = self._at(slot)
        failure: ScaleSimError | None = None
        try:
            reason = self._judge(sequence, token, int(self.slots.known[slot]))
        except Exception as error:  # a request's own callback ends that request
            reason, failure = "error", _as_own(sequence, error)
        if reason is not None:
            sequence.finish_reason, sequence.error = reason, failure  # whatever breaks from here on
            self._finish(sequence, reason, failure)

    @staticmethod
    def _judge(sequence: Sequence, token: int, known: int) -> FinishReason | None:
        """Whether ``token``, the last of ``known``, ends the sequence. Shows it to the guide and
        the observer, once. Raises what they raise."""
        if token in sequence.stop_ids:
            return "stop"
        if sequence.num_observed < known - sequence.prompt_len:
            sequence.num_observed += 1
            guide = None if sequence.adjust is None else sequence.adjust.guide
            stopped = guide is not None and guide.push(token)
            if sequence.observer is not None:
                stopped |= sequence.observer.push(token)
            if stopped:
                return "stop"
        return "length" if known >= sequence.limit else None

    def _fail(self, slot: int) -> None:
        """Its values are not finite: nothing that it computed may be shared."""
        sequence = self._at(slot)
        at = int(self.slots.known[slot])
        error = NumericalError(
            f"request {sequence.id} of agent {sequence.agent!r}: logits at token {at} are not "
            "finite; check the weights and the dtype"
        )
        self._finish(sequence, "error", error, keep=False)

    def _at(self, slot: int) -> Sequence:
        sequence = self.slots.sequences[slot]
        assert sequence is not None, slot
        return sequence

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
        known = int(self.slots.known[slot])
        sequence.output = self.slots.tokens[slot, sequence.prompt_len : known].copy()
        # said first: if memory fails from here on, ``restart`` still ends it like this
        sequence.finish_reason, sequence.error = reason, error
        self.before_release(sequence)
        self._leave(sequence, keep=keep)
        self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        sequence.phase = Phase.FINISHED
        self._release_followers(sequence)
        self._ended.append(sequence)

    def _leave(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Give back the slot and the lease; with ``keep``, what was computed soundly stays in the
        tree."""
        lease, slot = sequence.lease, sequence.slot
        assert lease is not None
        if sequence.phase is Phase.LOADING:
            del self._loading[id(lease)]
            self.memory.release(lease)
        else:
            done = int(self.slots.done[slot]) if keep else 0
            self.memory.release(lease, self.slots.token_bytes(slot, done), done)
        if sequence.phase is Phase.PREFILL:
            self._prefilling.remove(sequence)
        elif sequence.phase is Phase.DECODE:
            self._decoding = self._decoding[self._decoding != slot]
        sequence.lease = None
        self.slots.leave(sequence)

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.memory.block_size)


def _rank(sequence: Sequence) -> tuple[float, int]:
    """The most urgent first, then the oldest."""
    return sequence.priority, sequence.admission


def _as_own(sequence: Sequence, cause: Exception) -> ScaleSimError:
    """What a request ends with when what watches its tokens failed."""
    if isinstance(cause, ScaleSimError):
        return cause
    error = InternalError(f"request {sequence.id}: what looks at its tokens failed: {cause!r}")
    error.__cause__ = cause
    return error


def chain_digests(chain: int, digest: int) -> int:
    """A running 64-bit hash: order matters, and so does every term."""
    return ((chain ^ digest) * 0x9E3779B97F4A7C15 + 1) & _MASK64
