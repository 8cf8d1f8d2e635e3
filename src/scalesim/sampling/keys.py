"""The keys of all draws: a text depends on who asks what for the how-manieth time, not on when or
beside whom."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable
from typing import Protocol

import xxhash

from scalesim.core import AgentId, Int32s
from scalesim.sampling.params import SamplingParams

_REMEMBERED = 64  # prompts an agent: enough for its templates, and bounded
_REMEMBERED_OF_NOBODY = 4096  # prompts of all calls without an agent


class _Handle(Protocol):
    @property
    def is_forgotten(self) -> bool: ...


class SamplingKeys:
    """64-bit Philox keys from (seed, agent, prompt and parameters, number, sample index).

    Equal requests of an agent are numbered as they are handed in, whatever becomes of them. A
    call's own ``seed`` stands in for seed, agent and number: the same call then gives the same
    text. Numbers are remembered for an agent's last 64 prompts, so that they hang on the order of
    its requests alone.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lock = threading.Lock()  # requests come from any thread
        self._completed: dict[AgentId | None, dict[int, int]] = {}  # handed in, by prompt

    def __len__(self) -> int:
        """Agents with requests that are remembered."""
        return len(self._completed)

    def prompt_digest(self, tokens: Int32s, params: SamplingParams) -> int:
        state = xxhash.xxh3_64(b"prompt")
        state.update(struct.pack("<Q", len(tokens)))
        state.update(tokens.tobytes())
        state.update(struct.pack("<dqd", params.temperature, params.top_k, params.top_p))
        if (more := _more(params)) != _NO_MORE:
            state.update(repr(more).encode())
        return state.intdigest()

    def number(
        self, agent: AgentId | None, digest: int, sample_index: int, handle: _Handle | None
    ) -> int:
        """How many equal requests of ``agent`` were handed in before this one, which counts from
        now on. A forgotten agent's late request counts for nobody."""
        if sample_index:  # with another, it is another request
            digest = xxhash.xxh3_64_intdigest(struct.pack("<Qq", digest, sample_index))
        max_remembered = _REMEMBERED_OF_NOBODY if agent is None else _REMEMBERED
        with self._lock:
            if handle is not None and handle.is_forgotten:
                return 0
            counts = self._completed.setdefault(agent, {})
            number = counts.pop(digest, 0)
            counts[digest] = number + 1  # the newest stands last
            if len(counts) > max_remembered:
                del counts[next(iter(counts))]
        return number

    def forget(self, agents: Iterable[AgentId]) -> None:
        """Whoever is made under these ids begins to count anew."""
        with self._lock:
            for agent in agents:
                self._completed.pop(agent, None)

    def key(
        self,
        agent: AgentId | None,
        digest: int,
        params: SamplingParams,
        sample_index: int,
        number: int = 0,
    ) -> int:
        if params.seed is not None:
            fields = struct.pack("<sqQq", b"r", params.seed, digest, sample_index)
            return xxhash.xxh3_64_intdigest(fields)
        fields = struct.pack("<sqQqq", b"e", self._seed, digest, number, sample_index)
        return xxhash.xxh3_64_intdigest(fields + _agent_bytes(agent))


def _more(params: SamplingParams) -> tuple[object, ...]:
    """What else changes the distribution that is drawn from. Constraints and masks do not count:
    they may be anybody's functions."""
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
