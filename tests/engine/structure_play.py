"""Texts of a structure without a model: whatever its masks allow may be drawn, the ends of ranges
most of all."""

from __future__ import annotations

import random
from functools import cache
from typing import Any, Literal

import numpy as np

from scalesim.config import StructureConfig
from scalesim.model.text.tokenizer import ByteTokenizer, Tokenizer
from scalesim.sampling.grammar import GrammarConstraint, Structures
from scalesim.sampling.params import SamplingParams

EDGES = frozenset(b'09.-eE"}],1')


@cache
def bytes_only() -> Structures:
    tokenizer = ByteTokenizer()
    eos = frozenset(tokenizer.eos_token_ids)
    return Structures(tokenizer, tokenizer.vocab_size, eos, StructureConfig())


def allowed(constraint: GrammarConstraint) -> list[int]:
    """The ids that may come next. Raises what ends the sequence."""
    masks = np.zeros((1, constraint.num_words), np.int32)
    [error] = constraint.filler([constraint], [], masks)
    if error is not None:
        raise error
    bits = np.unpackbits(masks.view(np.uint8)[0], bitorder="little")
    return [int(token) for token in bits.nonzero()[0]]


def play(
    params: SamplingParams, seed: int, structures: Structures | None = None,
    tokenizer: Tokenizer | None = None, most: int = 120,
) -> tuple[str, Literal["stop", "length"]]:  # fmt: skip
    """One text, and how it ended. Raises ``StructureError``."""
    structures, tokenizer = structures or bytes_only(), tokenizer or ByteTokenizer()
    make = structures.compile(params)
    assert make is not None
    constraint, rng, output = make(), random.Random(seed), list[int]()
    ends = tokenizer.eos_token_ids
    hurry = rng.choice([0.1, 0.3, 0.6])
    while len(output) < most:
        ids = allowed(constraint)
        over = [token for token in ids if token in ends]
        inner = [token for token in ids if token not in ends]
        if over and (not inner or rng.random() < hurry):
            constraint.end(over[0])
            return tokenizer.decode(output), "stop"
        edges = [token for token in inner if token in EDGES]
        output.append(rng.choice(edges if edges and rng.random() < hurry + 0.2 else inner))
        if constraint.push(output[-1]):
            return tokenizer.decode(output), "stop"
    return tokenizer.decode(output), "length"


def schema_params(schema: Any) -> SamplingParams:
    return SamplingParams(json_schema=schema)
