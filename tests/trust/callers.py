"""Bad callers: hostile values beside the workload's agents, who must say what they always say.

Each value enters by the public call, where it must be refused or do no harm; and once more with the
caller's checks taken away, so that it goes as far as it can: on the engine's thread it ends its own
request, and nothing begins anew. The tests deal all values out over one run of the workload;
``python -m tests.long callers`` has a run for each, with one step in flight and with two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch
from warnings import catch_warnings, simplefilter

from scalesim.engine.engine import Engine
from scalesim.errors import HintWarning, ScaleSimError
from scalesim.requests.call import Call
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.prompt import Prompt
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from tests.inside import part
from tests.trust.workload import Lost, Text, Workload

LEAST_CALLS = 8  # of the workload
SURROGATE, DIGITS = "lone \ud800", 10**5000


def _drawn(**fields: Any) -> Callable[[Engine], object]:
    return lambda engine: engine.submit(Request([1, 2, 3], params=SamplingParams(**fields)))


def _asked(**fields: Any) -> Callable[[Engine], object]:
    params = SamplingParams(max_tokens=2)
    return lambda engine: engine.submit(Request([1, 2, 3], **{"params": params, **fields}))


def _by(agent: Any) -> Callable[[Engine], object]:
    return lambda engine: engine.submit(engine.agent(agent).request([1, 2, 3], max_tokens=2))


def _cancelled(what: Any) -> Callable[[Engine], object]:
    return lambda engine: engine.cancel(what)


THROUGH: dict[str, Callable[[Engine], object]] = {
    "sample index of 64 bits": _asked(sample_index=2**63),
    "sample index below 0": _asked(sample_index=-(2**63) - 1),
    "sample index, a text": _asked(sample_index="1"),
    "agent, half a surrogate pair": _by(SURROGATE),
    "agent of 5000 digits": _by(DIGITS),
    "seed of 64 bits": _drawn(seed=2**64, max_tokens=2),
    "seed, a text": _drawn(seed="a", max_tokens=2),
    "temperature, a text": _drawn(temperature="hot", max_tokens=2),
    "top_k, a text": _drawn(top_k="many", max_tokens=2),
    "top_k of 64 bits": _drawn(top_k=2**63, max_tokens=2),
    "top_p, a list": _drawn(top_p=[1], max_tokens=2),
    "stop ids, a number": _drawn(stop_token_ids=5.5, max_tokens=2),
    "stop ids, lists": _drawn(stop_token_ids=([],), max_tokens=2),
    "biases of texts": _drawn(logit_bias={"a": "b"}, max_tokens=2),
    "biases, a list": _drawn(logit_bias=[1], max_tokens=2),
    "log-probabilities, a text": _drawn(prompt_logprobs=0, prompt_logprobs_start="x", max_tokens=2),
}
"""Values that fail where they are used, if no check finds them."""

BEFORE: dict[str, Callable[[Engine], object]] = {
    "no request": lambda engine: engine.submit("hi"),  # type: ignore[arg-type]
    "no params": _asked(params={"max_tokens": 3}),
    "no prompt": lambda engine: engine.submit(Request(None)),  # type: ignore[arg-type]
    "timeout, a text": _asked(timeout="1s"),
    "timeout, no number": _asked(timeout=math.nan),
    "priority, half": _asked(priority=0.5),
    "pooling": _asked(pooling="max"),
    "cancel nothing": _cancelled(None),
    "cancel a request": _cancelled(Request("hi")),
    "expect of 5000 digits": lambda engine: engine.expect({DIGITS: 1.0}),
    "expect for ever": lambda engine: engine.expect({"a": math.inf}, confidence=math.nan),
    "wake a list": lambda engine: engine.wake([]),  # type: ignore[arg-type]
    "a tick to no number": lambda engine: engine.tick(to=math.nan),
    "a tick for ever": lambda engine: engine.tick(to=1e300),
    "fork into half a pair": lambda engine: engine.fork("a", SURROGATE),
    "listen to a text": lambda engine: engine.add_source("Learned"),  # type: ignore[arg-type]
}
"""Values that have to be found where they enter: the engine's thread is not asked."""

CASES = [(name, checked) for name in THROUGH for checked in (True, False)] + [
    (name, True) for name in BEFORE
]


@contextmanager
def unchecked() -> Iterator[None]:
    """Callers' values go through as they are."""
    with ExitStack() as stack:
        for name, instead in (
            ("scalesim.requests.prepare.checked_request", lambda request: request),
            ("scalesim.requests.prepare.check_params", lambda params, *_: params),
            ("scalesim.requests.agent_registry.agent_id", lambda agent: agent),
            ("scalesim.engine.agent.agent_id", lambda agent: agent),
            # it reads them on the caller's thread; unnumbered, they are read on the engine's
            ("scalesim.requests.prepare.Intake.number", lambda intake, calls: None),
        ):
            stack.enter_context(patch(name, instead))
        yield


@dataclass
class Beset(Workload):
    """The workload, with a share of the acts ``names`` before every call of it: each has its
    turn."""

    names: Sequence[str] = ()
    checked: bool = True
    turn: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """How often an act was refused; without checks: raised on its own caller's thread."""
    thrown: list[tuple[str, Call]] = field(default_factory=list)

    def submit(
        self, agent: str, prompt: Prompt, stop: tuple[str, ...], failed: dict[str, Exception]
    ) -> Call | None:
        for _ in range(-(-len(self.names) // LEAST_CALLS)):
            self._act(self.names[self.turn % len(self.names)])
            self.turn += 1
        return super().submit(agent, prompt, stop, failed)

    def _act(self, name: str) -> None:
        try:
            with nullcontext() if self.checked else unchecked(), catch_warnings():
                simplefilter("ignore", HintWarning)
                call = (THROUGH | BEFORE)[name](self.engine)
        except ScaleSimError:
            self.refused[name] += 1
        except Exception:
            if self.checked:
                raise
            self.refused[name] += 1
        else:
            if isinstance(call, Call):
                self.thrown.append((name, call))


def run(
    names: Sequence[str], checked: bool, texts: dict[str, list[Text]], steps_in_flight: int = 1
) -> tuple[Counter[str], Counter[str]]:
    """One run, judged; by name, how many bad calls were refused, and how many were let in and ended
    with a typed error. Raises ``Lost``."""
    with Beset(0, steps_in_flight, names=names, checked=checked) as workload:
        said = workload.play()
        if workload.dead is not None or workload.engine.stats.restarts:
            raise Lost(f"{names}: {workload.engine.stats.restarts} restarts, {workload.dead!r}")
        if workload.errors or said != texts:
            raise Lost(f"{names}: neighbours say {said}, {workload.errors}")
        workload.run([call for _, call in workload.thrown])
        failed = [(name, call.error) for name, call in workload.thrown if call.error is not None]
        if bad := [(name, why) for name, why in failed if not isinstance(why, ScaleSimError)]:
            raise Lost(f"{bad[0][0]}: {bad[0][1]!r} is no typed error")
        workload.settle()
        gate = part(workload.engine, RequestLimiter)
        if gate.num_free != gate.limit:
            raise Lost(f"{names}: {gate.limit - gate.num_free} places are lost")
    return workload.refused, Counter(name for name, _ in failed)
