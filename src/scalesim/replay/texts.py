"""The prompts of workloads, as pieces of named contents, from their lengths alone."""

from __future__ import annotations

import numpy as np

from scalesim.replay.knobs import Knobs
from scalesim.trace.trace import TraceCall, TracePiece

_BUFFER = 4096


class Texts:
    """Prompts made of the common text, the agent's own text, what it keeps of earlier calls, and
    new text.

    A content is named ``agent << 32 | number``; number 0 is the agent's own text.
    """

    def __init__(self, seed: int, knobs: Knobs, first_tokens: int = 0) -> None:
        self._knobs, self._first_tokens = knobs, first_tokens
        self._rng = np.random.default_rng((seed, 29))
        self._factors: list[float] = []
        self._numbers: dict[int, int] = {}
        self._history: dict[int, list[TracePiece]] = {}

    def opening(self, agent: int, expect: float | None, truth: float) -> TraceCall:
        """The opening call, such as for planning a day: the agent's fixed text, and an answer of
        one token."""
        prompt = (*self._fixed(agent), TracePiece(agent << 32 | 1, 1))
        self._numbers[agent] = 2
        return TraceCall(agent, prompt, TracePiece(agent << 32 | 2, 1), expect=expect, truth=truth)

    def calls(
        self, agent: int, time: int, extra: int, expect: float | None, truth: float
    ) -> list[TraceCall]:
        knobs = self._knobs
        fixed = self._fixed(agent)
        calls = []
        for index in range(knobs.burst + extra):
            history = self._history.get(agent, [])
            new = TracePiece(self._name(agent), self._size(knobs.new))
            output = TracePiece(self._name(agent), self._size(knobs.output))
            prompt = (*fixed, *history, new)
            calls.append(TraceCall(agent, prompt, output, index, expect=expect, truth=truth))
            if knobs.growth:
                self._keep(agent, new, output)
        return calls

    def _keep(self, agent: int, new: TracePiece, output: TracePiece) -> None:
        """Keep a share of the new text; forget everything when the context is full."""
        knobs = self._knobs
        history = self._history.setdefault(agent, [])
        stays = max(1, int(new.length * knobs.growth))
        history += [new._replace(length=stays), output] if stays == new.length else [
            new._replace(length=stays)
        ]  # fmt: skip
        length = sum(piece.length for piece in history) + knobs.shared + knobs.private
        if length + 2 * (knobs.new + knobs.output) > knobs.max_context:
            history.clear()

    def _fixed(self, agent: int) -> tuple[TracePiece, ...]:
        knobs = self._knobs
        adapter = TracePiece(f"adapter {agent}", self._first_tokens)
        parts = (
            adapter,
            TracePiece("shared", knobs.shared),
            TracePiece(agent << 32, knobs.private),
        )
        return tuple(part for part in parts if part.length)

    def _name(self, agent: int) -> int:
        number = self._numbers[agent] = self._numbers.get(agent, 2) + 1
        return agent << 32 | number

    def _size(self, mean: int) -> int:
        if not self._knobs.spread:
            return mean
        if not self._factors:
            sigma = self._knobs.spread
            draws = self._rng.lognormal(-sigma * sigma / 2, sigma, _BUFFER)
            self._factors = np.clip(draws, 0.1, 4.0).tolist()
        return max(1, int(mean * self._factors.pop()))
