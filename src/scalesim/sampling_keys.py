"""The keys of all draws: a text depends on who asks what for the how-manieth time, not on when or
beside whom."""

from __future__ import annotations

import struct
from collections import OrderedDict

import xxhash

from scalesim.core import AgentId, Int32s, SamplingParams

_REMEMBERED = 64  # prompts an agent: enough for its templates, and bounded


class SamplingKeys:
    """64-bit Philox keys from (seed, agent, prompt and parameters, completed calls, sample index).

    A call's own ``seed`` stands in for seed, agent and count: the same call then gives the same
    text. How often an agent completed a prompt is remembered for its last 64 prompts.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._completed: dict[AgentId | None, OrderedDict[int, int]] = {}

    def prompt_digest(self, tokens: Int32s, params: SamplingParams) -> int:
        state = xxhash.xxh3_64(b"prompt")
        state.update(struct.pack("<Q", len(tokens)))
        state.update(tokens.tobytes())
        state.update(struct.pack("<dqd", params.temperature, params.top_k, params.top_p))
        if (more := _more(params)) != _NO_MORE:
            state.update(repr(more).encode())
        return state.intdigest()

    def key(
        self, agent: AgentId | None, digest: int, params: SamplingParams, sample_index: int
    ) -> int:
        if params.seed is not None:
            fields = struct.pack("<sqQq", b"r", params.seed, digest, sample_index)
            return xxhash.xxh3_64_intdigest(fields)
        counts = self._completed.get(agent)
        count = 0 if counts is None else counts.get(digest, 0)
        fields = struct.pack("<sqQqq", b"e", self._seed, digest, count, sample_index)
        return xxhash.xxh3_64_intdigest(fields + _agent_bytes(agent))

    def completed(self, agent: AgentId | None, digest: int) -> None:
        counts = self._completed.setdefault(agent, OrderedDict())
        counts[digest] = counts.pop(digest, 0) + 1
        if len(counts) > _REMEMBERED:
            counts.popitem(last=False)


def _more(params: SamplingParams) -> tuple[object, ...]:
    """What else changes the distribution that is drawn from. Guides and masks do not count: they
    may be anybody's functions."""
    bias = params.logit_bias
    return (
        params.min_p,
        params.presence_penalty,
        params.frequency_penalty,
        params.repetition_penalty,
        params.min_tokens,
        None if bias is None else sorted(bias.items()),
    )


_NO_MORE = _more(SamplingParams())


def _agent_bytes(agent: AgentId | None) -> bytes:
    """Typed, so that agent 1 and agent "1" draw apart."""
    if agent is None:
        return b"n"
    return b"s" + agent.encode() if isinstance(agent, str) else b"i%d" % agent
