"""Whether all policies gave the same texts: a policy changes when state moves, never the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import xxhash

from scalesim.cli.play import Said


def agreement(texts: Mapping[str, Sequence[Said]]) -> str:
    said = next(iter(texts.values()))
    return (
        f"same texts: all {len(said)} texts, and the logits behind them, are the same under "
        f"{len(texts)} policies ({digest(said)})"
    )


def first_difference(texts: Mapping[str, Sequence[Said]]) -> str | None:
    """The first text of a policy that differs from the first policy's; ``None`` if all are
    equal."""
    (reference, expected), *others = texts.items()
    for policy, said in others:
        for ours, theirs in zip_longest(expected, said):
            if ours != theirs:
                return (
                    f"{reference} ({digest(expected)}) and {policy} ({digest(said)}) part at "
                    f"{describe(ours)} and {describe(theirs)}"
                )
    return None


def describe(said: Said | None) -> str:
    if said is None:
        return "the end"
    return f"tick {said.tick}, {said.who}: {said.text!r} (logits {said.logits:016x})"


def digest(said: Sequence[Said]) -> str:
    """The xxh3-64 of all texts, in order."""
    state = xxhash.xxh3_64()
    for utterance in said:
        fields = f"{utterance.tick} {utterance.who} {utterance.token_ids} {utterance.logits}\n"
        state.update(fields.encode())
    return state.hexdigest()
