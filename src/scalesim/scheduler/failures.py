"""The errors that a sequence ends with."""

from __future__ import annotations

from scalesim.errors import InternalError, NumericalError, PromptTooLongError, ScaleSimError
from scalesim.foreign import words_of
from scalesim.scheduler.sequence import Sequence


def of_callback(sequence: Sequence, cause: BaseException) -> ScaleSimError:
    """The error of a sequence whose observer or constraint raised ``cause``."""
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
