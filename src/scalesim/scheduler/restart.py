"""Restart: sequences go on after memory was emptied, from the tokens that are known of each."""

from __future__ import annotations

from collections.abc import Container, Iterable

from scalesim.foreign import Foreign
from scalesim.scheduler import failures
from scalesim.scheduler.finish import finish_reason
from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.sequence import Phase, Sequence


def restart(scheduler: Scheduler, open: Iterable[Sequence], suspects: Container[int] = ()) -> None:
    """Have ``scheduler`` begin anew with ``open``, all sequences whose end the engine was not told.

    A sequence that was about to end ends, and so does one whose lease is among ``suspects`` (by
    id): its tokens cannot be trusted.
    """
    scheduler.clear()
    for sequence in open:
        if sequence.phase is Phase.FINISHED:
            scheduler.finisher.ended.append(sequence)
            continue
        if id(sequence.lease) in suspects:
            sequence.finish_reason, sequence.error = "error", failures.not_trusted(sequence)
        sequence.lease, sequence.followers = None, []  # followers are among ``open`` themselves
        sequence.phase = Phase.WAITING
        if has_finished(sequence):
            scheduler.finisher.finish_waiting(sequence)
        else:
            _queue_again(scheduler, sequence)


def has_finished(sequence: Sequence) -> bool:
    """Whether ``sequence`` was ending when everything stopped, or has all tokens that it asked for.
    Notes the reason, or what the constraint or the observer raised."""
    tokens = sequence.tokens
    if sequence.finish_reason is None and len(tokens) > sequence.prompt_len:
        with Foreign() as raised:
            sequence.finish_reason = finish_reason(sequence, int(tokens[-1]), len(tokens))
        if raised.error is not None:
            sequence.finish_reason = "error"
            sequence.error = failures.of_callback(sequence, raised.error)
    return sequence.finish_reason is not None


def _queue_again(scheduler: Scheduler, sequence: Sequence) -> None:
    needed, usable = scheduler.num_blocks(sequence, sequence.limit), scheduler.memory.num_free_pages
    if needed > usable:
        scheduler.end(sequence, "error", failures.pages_were_lost(sequence, needed, usable))
    elif sequence.admission:
        scheduler.queue.requeue(sequence)
    else:
        scheduler.queue.line.add(sequence)
