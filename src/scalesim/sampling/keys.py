"""The random keys of sampling. A text depends on its agent, its prompt and parameters, and the
number of equal requests before it; it does not depend on time or on other agents' requests."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import xxhash

from scalesim.core import AgentId, Int32s
from scalesim.sampling.params import SamplingParams

_REMEMBERED = 64  # prompts an agent: enough for its templates, and bounded
_REMEMBERED_OF_NOBODY = 4096  # prompts of all calls without an agent
_MOST_IN_TICK = 1 << 16  # requests of a tick that are told apart; a program may never tick


class _Handle(Protocol):
    @property
    def is_forgotten(self) -> bool: ...


class RequestCounts(NamedTuple):
    """How many equal requests were handed in: by agent (``None``: of nobody) and digest."""

    seed: int
    by_agent: dict[AgentId | None, dict[int, int]]

    def columns(self) -> dict[str, Any]:
        """The counts as arrays, for ``of``."""
        each = list(self.by_agent.values())
        return {
            "seed": self.seed,
            "agents": list(self.by_agent),
            "lengths": np.array([len(counted) for counted in each], np.int64),
            "digests": np.array([d for counted in each for d in counted], np.uint64),
            "counts": np.array([n for counted in each for n in counted.values()], np.int64),
        }

    @staticmethod
    def of(columns: Mapping[str, Any]) -> RequestCounts:
        """The counts that gave these ``columns``."""
        digests, counts = iter(columns["digests"].tolist()), iter(columns["counts"].tolist())
        lengths = columns["lengths"].tolist()
        by_agent = {
            agent: dict(zip(islice(digests, length), islice(counts, length), strict=True))
            for agent, length in zip(columns["agents"], lengths, strict=True)
        }
        return RequestCounts(int(columns["seed"]), by_agent)


class SamplingKeys:
    """64-bit Philox keys from (seed, agent, prompt and parameters, number, sample index).

    Equal requests of an agent are numbered as they are handed in, whether or not they end well. A
    request's own ``seed`` replaces seed, agent and number: equal requests then give equal texts.
    Numbers are kept for an agent's last 64 prompts, so they depend only on the order of the
    agent's requests.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lock = threading.Lock()  # requests come from any thread
        self._completed: dict[AgentId | None, dict[int, int]] = {}  # handed in, by prompt
        # the first number that was given in this tick, by agent and counted digest
        self._in_tick: dict[tuple[AgentId | None, int], int] = {}

    def __len__(self) -> int:
        """The number of agents whose requests are remembered."""
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
        """The number of equal requests of ``agent`` before this request, which is counted too. The
        late request of a forgotten agent is not counted."""
        if sample_index:  # requests with other indices are not equal
            digest = xxhash.xxh3_64_intdigest(struct.pack("<Qq", digest, sample_index))
        max_remembered = _REMEMBERED_OF_NOBODY if agent is None else _REMEMBERED
        with self._lock:
            if handle is not None and handle.is_forgotten:
                return 0
            counts = self._completed.setdefault(agent, {})
            number = counts.pop(digest, 0)
            counts[digest] = number + 1  # the newest stands last
            if len(self._in_tick) < _MOST_IN_TICK:
                self._in_tick.setdefault((agent, digest), number)
            if len(counts) > max_remembered:
                del counts[next(iter(counts))]
        return number

    def tick(self) -> None:
        """A tick of the simulation is over: what was handed in so far is not made again."""
        with self._lock:
            self._in_tick.clear()

    def counts(self, *, before_tick: bool) -> RequestCounts:
        """The seed and all counts; with ``before_tick``, as they were when the tick began, whose
        requests will be made again."""
        with self._lock:
            by_agent = {agent: dict(counted) for agent, counted in self._completed.items()}
            made = dict(self._in_tick) if before_tick else {}
        for (agent, digest), number in made.items():
            counted = by_agent.get(agent, {})
            if digest in counted:
                counted[digest] = number
        return RequestCounts(self._seed, by_agent)

    def restore(self, counts: RequestCounts) -> None:
        """Have this seed and these counts, which are this object's from now on."""
        with self._lock:
            self._in_tick.clear()
            self._seed, self._completed = counts.seed, counts.by_agent

    def forget(self, agents: Iterable[AgentId]) -> None:
        """Forget the requests of ``agents``: new agents with their ids are counted from 0."""
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
    """The further parameters that change the distribution. Constraints and masks are left out: they
    may be functions, which have no digest."""
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
    """The agent's id with its type, so that the agents 1 and "1" have different keys."""
    if agent is None:
        return b"n"
    return b"s" + agent.encode() if isinstance(agent, str) else b"i%d" % agent
