"""Options of a batch: what only some sequences of a step ask for, and what comes back for them.

Arrays are one-dimensional and C-contiguous unless a shape says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.core import Floats, Int32s

MAX_LOGPROBS = 20
"""Likeliest tokens beside each token, at most: as many as OpenAI's and vLLM's default."""


@dataclass(frozen=True, slots=True)
class LogitsBatch:
    """What is done to the logits of some sequences of a step before they are sampled, each ``[m]``
    unless a shape says otherwise; the order of it stands in the kernels' contract.

    Penalties need to know what a sequence has said. The runner counts: ``begins`` are slots whose
    counts start anew in this step (slot, its tokens so far, how many of them are the prompt), and
    what it samples for a sequence named here is counted from then on.
    """

    seqs: Int32s  # ascending, of the sequences that sample
    min_ps: Floats
    repetitions: Floats
    presences: Floats
    frequencies: Floats
    bias_start: Int32s  # [m + 1]
    bias_ids: Int32s  # [num_biases]
    biases: Floats  # [num_biases]
    mask_rows: Int32s  # rows of masks; -1 = none
    masks: Int32s  # [num_masks, ceil(vocab / 32)]; a bit a token, the lowest first
    begins: tuple[tuple[int, Int32s, int], ...] = ()


@dataclass(frozen=True, slots=True)
class LogprobsBatch:
    """Query tokens of a step behind which log-probabilities are asked for.

    ``tokens`` are indices into the batch's query tokens; ``targets``, the tokens that follow them:
    ``NO_TOKEN`` where that is the one sampled in this step. ``top_k`` of the likeliest come with
    each.
    """

    tokens: Int32s  # [num_scores]
    targets: Int32s  # [num_scores]
    top_k: int


@dataclass(frozen=True, slots=True)
class AttachmentBatch:
    """Which attachment of one kind each sequence of a step uses, each ``[num_seqs]``.

    ``rows`` are rows of the block table, which list the attachment's pages, or of weights the first
    page of each run; 0: none. ``layouts`` say what lies where in them; of weights, they are numbers
    of models, and 0 is the engine's own. It is in force from position ``starts`` on.
    """

    rows: Int32s
    layouts: Int32s
    starts: Int32s


@dataclass(frozen=True, slots=True)
class EmbeddingBatch:
    """Query tokens of a step whose final hidden states are summed: half-open ranges of the batch's
    query tokens, each within one sequence."""

    spans: Int32s  # [num_spans, 2]


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities (natural), one row a token that was asked for; NaN where the step was bad.

    ``top_ids`` are the likeliest tokens in its place, best first.
    """

    logprobs: Floats  # [n]
    top_ids: Int32s  # [n, top_k]
    top_logprobs: Floats  # [n, top_k]


@dataclass(frozen=True, slots=True, eq=False)
class LogProbs:
    """Log-probabilities (natural) of consecutive tokens: of ``token_ids[i]`` at position ``start +
    i``, given all before it; ``top_ids`` are the likeliest in its place, best first."""

    start: int
    token_ids: Int32s  # [n]
    logprobs: Floats  # [n]
    top_ids: Int32s  # [n, top_k]
    top_logprobs: Floats  # [n, top_k]

    def __len__(self) -> int:
        return len(self.logprobs)
