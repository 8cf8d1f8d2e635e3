"""Log-probabilities: the query tokens of a step that are scored, and the sequences they belong to.

Used by the scheduler, in steps with a sequence that asked for log-probabilities. A token is scored
when the token before it is computed: a prompt's tokens in prefill chunks, an output's tokens when
they are sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scalesim.batch import NO_TOKEN
from scalesim.batch_options import LogProbs, LogprobsBatch, Scores
from scalesim.core import Bools, Int32s
from scalesim.sampling.params import SamplingParams


class _Rows:
    """Scores of consecutive tokens. ``next`` is the first position without a score."""

    def __init__(self, start: int, top_k: int) -> None:
        self.start = self.next = start
        self.top_k = top_k
        self._parts: list[Scores] = []

    def extend(self, position: int, part: Scores) -> None:
        """Append the scores of the tokens from ``position`` on. Scores that are there already,
        after a repeated prefill, are skipped."""
        skip = self.next - position
        assert skip >= 0, (self.next, position)
        part = _slice(part, slice(skip, None))
        if len(part.logprobs):
            self._parts.append(part)
            self.next += len(part.logprobs)

    def joined(self, token_ids: Int32s, first_part: int = 0) -> LogProbs:
        """Of ``token_ids``, or of as many as are scored. The first of them is scored by
        ``first_part``, which is not 0 only where each part scores one token."""
        top_k = self.top_k
        empty = Scores(
            np.zeros(0, np.float32),
            np.zeros((0, top_k), np.int32),
            np.zeros((0, top_k), np.float32),
        )
        parts = [empty, *self._parts[first_part : first_part + len(token_ids)]]
        count = sum(len(part.logprobs) for part in parts)
        return LogProbs(
            self.start + first_part,
            token_ids[:count],
            np.concatenate([part.logprobs for part in parts]),
            np.concatenate([part.top_ids[:, :top_k] for part in parts]),
            np.concatenate([part.top_logprobs[:, :top_k] for part in parts]),
        )


class LogprobsLog:
    """The log-probabilities that a sequence asked for, as far as they are computed."""

    def __init__(self, prompt_len: int, params: SamplingParams) -> None:
        self._prompt_len = prompt_len
        self.prompt: _Rows | None = None
        self.output: _Rows | None = None
        if params.prompt_logprobs is not None:
            start = min(params.prompt_logprobs_start, prompt_len)
            self.prompt = _Rows(start, params.prompt_logprobs)
        if params.logprobs is not None:
            self.output = _Rows(prompt_len, params.logprobs)

    def of_prompt(self, tokens: Int32s) -> LogProbs | None:
        """The scores of the prompt's ``tokens``; ``None`` if they were not asked for."""
        return None if self.prompt is None else self.prompt.joined(tokens[self.prompt.start :])

    def of_output(self, tokens: Int32s, first: int = 0) -> LogProbs | None:
        """Of ``tokens``, the output from its token ``first`` on. May be called while further tokens
        are scored: a token is given away after its score was taken."""
        return None if self.output is None else self.output.joined(tokens, first)

    def usable(self, num_tokens: int) -> int:
        """How many of the first tokens a lease may look up. The logits of later tokens are
        needed."""
        if self.prompt is None or self.prompt.next >= self._prompt_len:
            return num_tokens
        return self.prompt.next

    def wanted(self, start: int, stop: int, samples: bool) -> tuple[range, int]:
        """The positions from ``start`` to ``stop`` whose next token is scored, and the number of
        likeliest tokens to return."""
        first, last, top_k = stop, stop, 0
        prompt_due = self.prompt is not None and self.prompt.next < self._prompt_len
        if prompt_due and start + 1 < self._prompt_len:
            assert self.prompt is not None
            first = max(start, self.prompt.next - 1)
            last, top_k = min(stop, self._prompt_len - 1), self.prompt.top_k
        if samples and self.output is not None:
            first, last, top_k = min(first, stop - 1), stop, max(top_k, self.output.top_k)
        return range(first, max(first, last)), top_k

    def take(self, positions: range, part: Scores) -> None:
        """Add the scores of the tokens after ``positions``."""
        split = min(max(self._prompt_len - 1 - positions.start, 0), len(positions))
        if self.prompt is not None and split:
            self.prompt.extend(positions.start + 1, _slice(part, slice(0, split)))
        if self.output is not None and split < len(positions):
            start = positions.start + split + 1
            self.output.extend(start, _slice(part, slice(split, None)))


def _slice(scores: Scores, rows: slice) -> Scores:
    return Scores(scores.logprobs[rows], scores.top_ids[rows], scores.top_logprobs[rows])


@dataclass(slots=True)
class LogprobsPlan:
    """A step's scored query tokens, by sequence, in the order in which the scores come back."""

    owners: list[tuple[int, LogprobsLog, range]] = field(default_factory=list)  # index in the batch
    tokens: list[Int32s] = field(default_factory=list)
    targets: list[Int32s] = field(default_factory=list)
    top_k: int = 0

    def add(
        self, index: int, log: LogprobsLog, positions: range, first_row: int, known: Int32s,
        samples: bool,
    ) -> None:  # fmt: skip
        """Plan the scores of the sequence at ``index`` of the batch. Its query tokens, from
        ``first_row`` on, are at ``positions``; ``log`` is the sequence's log, ``known`` its tokens
        so far."""
        wanted, top_k = log.wanted(positions.start, positions.stop, samples)
        if not len(wanted):
            return
        scored = np.arange(wanted.start, wanted.stop, dtype=np.int32)
        targets = np.full(len(scored), NO_TOKEN, np.int32)
        given = known[wanted.start + 1 : wanted.stop + 1]
        targets[: len(given)] = given
        self.owners.append((index, log, wanted))
        self.tokens.append(scored - np.int32(positions.start - first_row))
        self.targets.append(targets)
        self.top_k = max(self.top_k, top_k)

    def batch(self) -> LogprobsBatch | None:
        if not self.owners:
            return None
        return LogprobsBatch(np.concatenate(self.tokens), np.concatenate(self.targets), self.top_k)

    def deliver(self, scores: Scores, is_current: Bools) -> None:
        """Give each log its scores, except logs of sequences that have left their slot (not in
        ``is_current``, by index in the batch)."""
        row = 0
        for index, log, positions in self.owners:
            rows = slice(row, row + len(positions))
            if is_current[index]:
                log.take(positions, _slice(scores, rows))
            row = rows.stop
