"""How sequences end, and how they give back their slot and their lease."""

from __future__ import annotations

from scalesim.core import FinishReason
from scalesim.errors import ScaleSimError
from scalesim.foreign import Foreign
from scalesim.memory.manager import MemoryManager
from scalesim.scheduler import failures
from scalesim.scheduler.expected_work import ExpectedWork
from scalesim.scheduler.queue import RequestQueue
from scalesim.scheduler.running import Running
from scalesim.scheduler.sequence import Phase, Sequence
from scalesim.scheduler.slots import Slots


def finish_reason(sequence: Sequence, token: int, known: int) -> FinishReason | None:
    """Why ``token``, the last of ``known`` tokens, ends ``sequence``; ``None`` if it does not. The
    constraint and the observer see each token once; raises what they raise."""
    processor = sequence.logits_processor
    constraint = None if processor is None else processor.constraint
    if token in sequence.stop_ids:
        if constraint is not None:
            constraint.end(token)
        return "stop"
    if sequence.num_observed < known - sequence.prompt_len:
        sequence.num_observed += 1
        stopped = constraint is not None and constraint.push(token)
        if sequence.observer is not None:
            stopped |= sequence.observer.push(token)
        if stopped:
            return "stop"
    return "length" if known >= sequence.limit else None


class Finisher:
    """Ends sequences. ``ended`` are those that ended and that the engine has not heard of yet."""

    def __init__(
        self,
        memory: MemoryManager,
        slots: Slots,
        queue: RequestQueue,
        running: Running,
        work: ExpectedWork,
    ) -> None:
        self.ended: list[Sequence] = []
        self._work = work
        self._memory, self._slots, self._queue, self._running = memory, slots, queue, running

    def look_at(self, slot: int, token: int) -> None:
        """End the sequence in ``slot`` if ``token``, its last one, says so."""
        sequence = self._slots.sequences[slot]
        failure: ScaleSimError | None = None
        reason: FinishReason | None = None
        with Foreign() as raised:  # a request's own callback ends that request
            reason = finish_reason(sequence, token, int(self._slots.known[slot]))
        if raised.error is not None:
            reason, failure = "error", failures.of_callback(sequence, raised.error)
        if reason is not None:
            # the observer saw the token and will not see it again: noted before anything can fail
            sequence.finish_reason, sequence.error = reason, failure
            self.finish(sequence, reason, failure)

    def not_finite(self, slot: int) -> None:
        """End the sequence in ``slot``, whose values are not finite: nothing that was computed of
        it may be shared."""
        sequence = self._slots.sequences[slot]
        error = failures.not_finite(sequence, int(self._slots.known[slot]))
        self.finish(sequence, "error", error, keep=False)

    def finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: Exception | None,
        *,
        keep: bool = True,
    ) -> None:
        """End ``sequence``, wherever it stands. With ``keep``, what was computed soundly stays in
        the tree."""
        # noted first: if memory fails from here on, a restart still ends the sequence like this
        sequence.finish_reason, sequence.error = reason, error
        if sequence.phase is Phase.WAITING:
            self._queue.discard(sequence)
            self.finish_waiting(sequence)
            return
        sequence.tokens = self._slots.known_tokens(sequence.slot)
        sequence.output = sequence.tokens[sequence.prompt_len :]
        sequence.say_end()
        if error is None:
            self._work.ended(sequence)
        self.leave(sequence, keep=keep)
        self._end(sequence)

    def finish_waiting(self, sequence: Sequence) -> None:
        """End ``sequence``, which holds nothing, with the tokens that it has."""
        sequence.output = sequence.tokens[sequence.prompt_len :]
        sequence.say_end()
        self._end(sequence)

    def leave(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take the slot and the lease from ``sequence``."""
        lease, slot = sequence.lease, sequence.slot
        assert lease is not None
        self._running.leave(sequence)
        if sequence.phase is Phase.LOADING:
            self._memory.release(lease)
        else:
            done = int(self._slots.done[slot]) if keep else 0
            self._memory.release(lease, self._slots.token_bytes(slot, done), done)
        sequence.lease = None
        self._slots.leave(sequence)

    def release_followers(self, sequence: Sequence) -> None:
        """The prompt of ``sequence`` is in the tree, or never will be: its followers wait no
        more."""
        for follower in sequence.followers:
            if follower.phase is not Phase.FINISHED:
                self._queue.line.add(follower)
        sequence.followers = []

    def _end(self, sequence: Sequence) -> None:
        sequence.phase = Phase.FINISHED
        self.release_followers(sequence)
        self.ended.append(sequence)
