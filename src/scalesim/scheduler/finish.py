"""How a sequence ends: what its last token says, and the errors that end it.

Used by the scheduler, for each sequence that must be looked at after a step.
"""

from __future__ import annotations

from scalesim.core import FinishReason
from scalesim.errors import InternalError, NumericalError, PromptTooLongError, ScaleSimError
from scalesim.foreign import Foreign, words_of
from scalesim.scheduler.sequence import Sequence

_MASK64 = (1 << 64) - 1


def judge(sequence: Sequence, token: int, known: int) -> FinishReason | None:
    """Whether ``token``, the last of ``known``, ends the sequence. Shows it to the guide and the
    observer, once. Raises what they raise."""
    guide = None if sequence.adjust is None else sequence.adjust.guide
    if token in sequence.stop_ids:
        if guide is not None:
            guide.end(token)
        return "stop"
    if sequence.num_observed < known - sequence.prompt_len:
        sequence.num_observed += 1
        stopped = guide is not None and guide.push(token)
        if sequence.observer is not None:
            stopped |= sequence.observer.push(token)
        if stopped:
            return "stop"
    return "length" if known >= sequence.limit else None


def is_over(sequence: Sequence) -> bool:
    """Whether ``sequence`` was ending when everything stopped, or has all that it asked for: then
    its reason is noted, and it ends."""
    tokens = sequence.tokens
    if sequence.finish_reason is None and len(tokens) > sequence.prompt_len:
        with Foreign() as raised:
            sequence.finish_reason = judge(sequence, int(tokens[-1]), len(tokens))
        if raised.error is not None:
            sequence.finish_reason, sequence.error = "error", as_own(sequence, raised.error)
    return sequence.finish_reason is not None


def as_own(sequence: Sequence, cause: BaseException) -> ScaleSimError:
    """What a request ends with when what watches its tokens failed."""
    if isinstance(cause, ScaleSimError):
        return cause
    error = InternalError(
        f"request {sequence.id}: what looks at its tokens failed: {words_of(cause)}"
    )
    error.__cause__ = cause
    return error


def not_finite(sequence: Sequence, position: int) -> NumericalError:
    return NumericalError(
        f"request {sequence.id} of agent {sequence.agent!r}: logits at token {position} are not "
        "finite; check the weights and the dtype"
    )


def not_trusted(sequence: Sequence) -> InternalError:
    return InternalError(
        f"request {sequence.id} of agent {sequence.agent!r}: a page of its memory had two holders; "
        "what it said is not to be trusted, ask again"
    )


def too_long(num_tokens: int, max_len: int) -> PromptTooLongError:
    return PromptTooLongError(
        f"prompt and output need {num_tokens} tokens; a sequence has at most {max_len} "
        "(max_model_len; what device_memory holds); shorten the prompt, lower max_tokens or raise "
        "device_memory"
    )


def pages_were_lost(sequence: Sequence, num_pages: int, num_left: int) -> PromptTooLongError:
    return PromptTooLongError(
        f"request {sequence.id} needs {num_pages} pages; {num_left} of the device pool are left in "
        "use"
    )


def chain_digests(chain: int, digest: int) -> int:
    """A running 64-bit hash: order matters, and so does every term."""
    return ((chain ^ digest) * 0x9E3779B97F4A7C15 + 1) & _MASK64
