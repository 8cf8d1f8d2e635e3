"""The engine benchmark's workload: agents with a private prefix each, who take turns.

A turn's prompt is the prefix, all earlier turns, and some new tokens; its output is greedy and of
fixed length. So all agents' prompts of a turn have one length, which suits the batches of whoever
cannot mix lengths.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from scalesim.core import Int32s


@dataclass(frozen=True)
class Dialogues:
    """Token ids: ``prefixes [agents, prefix_len]``, ``new [agents, turns, new_len]``."""

    prefixes: Int32s
    new: Int32s
    output_len: int

    @property
    def num_agents(self) -> int:
        return int(self.new.shape[0])

    @property
    def num_turns(self) -> int:
        return int(self.new.shape[1])

    @property
    def turn_len(self) -> int:
        return int(self.new.shape[2]) + self.output_len

    def prompt_len(self, turn: int) -> int:
        """Tokens of everybody's prompt in ``turn``, from 0."""
        prefix_len, new_len = self.prefixes.shape[1], self.new.shape[2]
        return int(prefix_len + turn * self.turn_len + new_len)

    @property
    def max_len(self) -> int:
        return self.prompt_len(self.num_turns - 1) + self.output_len

    def first(self, num_agents: int) -> Dialogues:
        return replace(self, prefixes=self.prefixes[:num_agents], new=self.new[:num_agents])


def make_dialogues(
    num_agents: int, num_turns: int, prefix_len: int, new_len: int, output_len: int,
    vocab_size: int, seed: int,
) -> Dialogues:  # fmt: skip
    rng = np.random.default_rng(seed)
    return Dialogues(
        rng.integers(0, vocab_size, (num_agents, prefix_len), np.int32),
        rng.integers(0, vocab_size, (num_agents, num_turns, new_len), np.int32),
        output_len,
    )


class Transcript:
    """What was said so far: ``tokens [agents, max_len]``, one length for all."""

    def __init__(self, dialogues: Dialogues) -> None:
        self.dialogues = dialogues
        prefix_len = dialogues.prefixes.shape[1]
        self.tokens: Int32s = np.zeros((dialogues.num_agents, dialogues.max_len), np.int32)
        self.tokens[:, :prefix_len] = dialogues.prefixes

    def prompts(self, turn: int) -> Int32s:
        """``[agents, prompt_len]``, with the turn's new tokens put in."""
        end = self.dialogues.prompt_len(turn)
        new = self.dialogues.new[:, turn]
        self.tokens[:, end - new.shape[1] : end] = new
        return self.tokens[:, :end]

    def answer(self, turn: int, agents: slice, outputs: npt.NDArray[np.integer]) -> None:
        start = self.dialogues.prompt_len(turn)
        self.tokens[agents, start : start + self.dialogues.output_len] = outputs

    def outputs(self) -> Int32s:
        """``[agents, turns, output_len]``."""
        length = self.dialogues.output_len
        starts = [self.dialogues.prompt_len(turn) for turn in range(self.dialogues.num_turns)]
        return np.stack([self.tokens[:, start : start + length] for start in starts], axis=1)


@dataclass
class Played:
    """One arm, played once: seconds of each turn over all agents, and who said what."""

    turn_s: list[float]
    outputs: Int32s
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def total_rate(self) -> float:
        """Turns a second, the first prefill included."""
        return len(self.outputs) * len(self.turn_s) / sum(self.turn_s)

    @property
    def warm_rate(self) -> float:
        """Turns a second from the second turn on."""
        return len(self.outputs) * (len(self.turn_s) - 1) / sum(self.turn_s[1:])


@dataclass(frozen=True)
class Rates:
    """Tokens a second: a prefill of fresh prompts alone, and decoding a full batch alone."""

    prefill: float
    decode: float
    facts: dict[str, float] = field(default_factory=dict)
