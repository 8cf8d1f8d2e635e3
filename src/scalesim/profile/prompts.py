"""Prefix breaks: by template, the token at which an agent's successive prompts diverge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalesim.core import AgentId, Int64s
from scalesim.profile.calls import LoggedCall
from scalesim.trace.trace import common_length


@dataclass(frozen=True, slots=True)
class Breaks:
    """The figures of one template over pairs of an agent's successive prompts, in tokens.

    ``part_at``: the median token at which the prompts diverge. ``prefill``: tokens computed per
    call, if all state is cached. ``gain``: tokens behind that place which are equal again, and
    would be saved per call if the differing part were moved to the end of the prompt.
    """

    template: str
    pairs: int
    prompt_len: float
    part_at: float
    prefill: float
    gain: float
    shared: float
    """The median of leading tokens that prompts of *different* agents have in common."""


def breaks(calls: Sequence[LoggedCall]) -> list[Breaks]:
    """The figures by template, the most prefill first; empty for a log without prompts."""
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    shared: dict[str, list[int]] = defaultdict(list)
    last: dict[tuple[AgentId, str], Int64s] = {}
    latest: dict[str, tuple[AgentId, Int64s]] = {}
    for call in calls:
        if not len(call.tokens):
            continue
        other = latest.get(call.template)
        if other is not None and other[0] != call.agent:
            shared[call.template].append(common_length(other[1], call.tokens))
        latest[call.template] = (call.agent, call.tokens)
        key = (call.agent, call.template)
        before = last.get(key)
        if before is not None:
            length = common_length(before, call.tokens)
            again = common_length(before[length:][::-1], call.tokens[length:][::-1])
            found[call.template].append((len(call.tokens), length, again))
        last[key] = call.tokens
    rows = [_summary(name, pairs, shared[name]) for name, pairs in found.items()]
    return sorted(rows, key=lambda row: -row.prefill * row.pairs)


def _summary(name: str, pairs: list[tuple[int, int, int]], shared: list[int]) -> Breaks:
    length, where, again = np.array(pairs).T
    return Breaks(
        name,
        len(pairs),
        float(length.mean()),
        float(np.median(where)),
        float((length - where).mean()),
        float(again.mean()),
        float(np.median(shared)) if shared else 0.0,
    )
