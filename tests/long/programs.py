"""Programs over the whole public API, drawn from a seed: a list of operations that can be printed
and done again, and the world that they act on.

An engine of the smallest pools that are legal, agents with histories, adapters and forks, sources
that lie, callers who are wrong, cancel, read half and go away. Every text is checked against
``truth``; whatever an operation leaves behind is counted when the program is over.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import signal
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from scalesim.distance.estimates import NOTHING, Estimates, Source
from scalesim.engine.inbox import Inbox
from scalesim.engine.loop import EngineLoop
from scalesim.errors import (
    EngineClosedError,
    RequestCancelledError,
    RequestTimeoutError,
    ScaleSimError,
    StructureError,
)
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.eviction.policies import ENGINE_POLICIES
from scalesim.requests.call import Call
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.prepare import Intake
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from scalesim.testing.walks import Operation, drawn, some
from tests.engine.world import BLOCK, tiny_engine
from tests.inside import part
from tests.long import truth

AGENTS, MAX_LEN, WAIT_S = 9, 96, 120.0
PAGES = MAX_LEN // BLOCK
RAISED: list[type[BaseException]] = [
    ValueError, ZeroDivisionError, KeyError, SystemExit, KeyboardInterrupt, asyncio.CancelledError,
]  # fmt: skip
"""What callbacks raise."""
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", None]}, "hour": {"type": "integer", "maximum": 23}},
    "required": ["mood", "hour"],
    "additionalProperties": False,
}
TIME = "([01][0-9]|2[0-3]):[0-5][0-9]"
ACTS = [
    (8.0, "talk", some(1 << 30, 4)),
    (3.0, "crowd", some(1 << 30)),
    (3.0, "samples", some(1 << 30)),
    (2.0, "score", some(1 << 30)),
    (2.0, "structure", some(1 << 30)),
    (2.0, "mask", some(1 << 30)),
    (2.0, "stream", some(1 << 30, 8)),
    (2.0, "gather", some(1 << 30, 5)),
    (2.0, "threads", some(1 << 30, 6)),
    (2.0, "choose", some(1 << 30)),
    (1.0, "embed", some(1 << 30)),
    (2.0, "cancel", some(1 << 30, 4)),
    (2.0, "hurry", some(1 << 30)),
    (3.0, "hint", some(1 << 30)),
    (2.0, "tick", some(5)),
    (2.0, "fork", some(AGENTS, AGENTS)),
    (2.0, "forget", some(1 << 30)),
    (2.0, "part", some(1 << 30)),
    (2.0, "equal", some(AGENTS, 1 << 30)),
    (1.0, "interrupt", some(1 << 30)),
    (2.0, "bind", some(AGENTS, 3)),
    (1.0, "replace_adapter", some(3)),
    (1.0, "listen", some(1 << 30)),
    (4.0, "bad", some(1 << 30)),
]


def operations(seed: int, count: int) -> list[Operation]:
    return drawn(ACTS, seed, count)


class Liar(Source):
    """Says anything, takes it back, and at last raises."""

    def __init__(self, seed: int, name: str) -> None:
        super().__init__()
        self.name, self._rng = name, random.Random(seed)

    def changes(self, now: float) -> Estimates:
        rng = self._rng
        if rng.random() < 0.02:
            raise rng.choice(RAISED)("a source that lies")
        if rng.random() < 0.3:
            return NOTHING
        agents = [
            rng.choice([rng.randrange(AGENTS), "nobody", -1])
            for _ in range(rng.choice([0, 1, 2, 3, 40]))  # 40 is a batch of changes in one tick
        ]
        at = [rng.choice([np.nan, -5.0, now, now + 3, now + 1e9, np.inf]) for _ in agents]
        return Estimates(agents, at, rng.choice([0.0, 0.5, 1.0, 7.0, np.nan]))


class World:
    """``counts`` is what was done. ``driven``: nobody but ``step`` moves the engine."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"world {seed}")
        self.driven = rng.random() < 0.25
        self.counts: Counter[str] = Counter()
        self.engine = tiny_engine(
            model=truth.model(),
            device_pages=PAGES + rng.choice([0, 1, 2, 6]) + 4,  # the largest adapter beside it
            host_pages=rng.choice([0, 3, 12, 40]),
            policy=rng.choice([name for name in ENGINE_POLICIES if name != "resident"]),
            max_model_len=MAX_LEN,
            max_num_seqs=rng.choice([2, 5, 8, 8]),
            max_num_batched_tokens=rng.choice([16, 40, 128]),
            safe_point_tokens=rng.choice([1, 4, 16]),
            max_open_requests=rng.choice([8, 64]),
            integrity=rng.choice(["raise", "quarantine"]),
        )
        self._serial = 0
        self._histories: dict[int, list[int]] = {}
        self._bound: dict[int, str] = {}
        for name in truth.ADAPTERS:
            self.engine.adapters.add(name, truth.folder() / name)

    # -- texts --------------------------------------------------------------------------------

    def talk(self, seed: int, more: int) -> None:
        """Some agents go on where they were, as one batch."""
        rng = random.Random(seed)
        agents = rng.sample(range(AGENTS), 2 + more)
        requests = [self._turn(agent, rng) for agent in agents]
        self._settle(agents, list(zip(requests, self._ask(requests), strict=True)))

    def crowd(self, seed: int) -> None:
        """Everybody begins small and says much: they run together until the pool is full, and then
        some must give way."""
        rng = random.Random(seed)
        requests = [
            self._request(None, self._fresh(rng, 2), temperature=0.0, ignore_eos=True,
                          max_tokens=rng.randint(40, MAX_LEN - 16))
            for _ in range(8)
        ]  # fmt: skip
        for request, reply in zip(requests, self._ask(requests), strict=True):
            self._check(request, reply)

    def samples(self, seed: int) -> None:
        rng = random.Random(seed)
        agent = rng.randrange(AGENTS)
        request = self._turn(agent, rng, temperature=1.0, n=rng.randint(2, 3))
        if not self.driven:
            self._check(request, self._ask([request])[0], self._bound.get(agent))

    def score(self, seed: int) -> None:
        rng = random.Random(seed)
        prompt = [rng.randrange(256) for _ in range(rng.randint(2, 60))]
        params = {"max_tokens": rng.choice([0, 5]), "logprobs": 2, "prompt_logprobs": 1}
        [reply] = self._ask([self._request(None, prompt, temperature=0.0, **params)])
        assert isinstance(reply, Reply) and reply.logprobs is not None, reply
        assert reply.prompt_logprobs is not None
        values = [*reply.prompt_logprobs.logprobs, *reply.logprobs.logprobs]
        truth.check_scores([*prompt, *reply.token_ids], np.array(values, np.float32))

    def structure(self, seed: int) -> None:
        rng = random.Random(seed)
        kind, value = rng.choice([("json_schema", SCHEMA), ("regex", TIME)])
        request = self._turn(rng.randrange(AGENTS), rng, temperature=1.0, **{kind: value})
        [reply] = self._ask([replace(request, params=replace(request.params, max_tokens=40))])
        assert isinstance(reply, (Reply, StructureError)), reply
        if isinstance(reply, Reply) and reply.finish_reason == "stop":
            text = reply.text or ""
            sound = json.loads(text)["hour"] <= 23 if kind == "json_schema" else None
            assert sound or re.fullmatch(TIME, text), text

    def mask(self, seed: int) -> None:
        """A mask of digits, or one that raises."""
        rng = random.Random(seed)
        raised = rng.choice([None, rng.choice(RAISED)])

        def hook(prompt: Any, output: Any) -> Any:
            if raised is not None and len(output) == 2:
                raise raised("a mask")
            return range(ord("0"), ord("9") + 1)

        request = self._turn(rng.randrange(AGENTS), rng, temperature=1.0, mask=hook, max_tokens=5)
        [reply] = self._ask([replace(request, params=replace(request.params, ignore_eos=True))])
        if raised is None:
            assert isinstance(reply, Reply) and (reply.text or "").isdigit(), reply
        else:
            assert isinstance(reply, (ScaleSimError, raised)), repr(reply)  # its own comes through

    def embed(self, seed: int) -> None:
        rng = random.Random(seed)
        if self.driven:
            return
        prompts = [[rng.randrange(256) for _ in range(rng.randint(1, 50))] for _ in range(3)]
        found = self.engine.embed(prompts)
        want = np.stack([truth.hidden(prompt) for prompt in prompts])
        assert np.abs(found - want).max() < truth.NEAR

    def choose(self, seed: int) -> None:
        rng = random.Random(seed)
        if self.driven:
            return
        prompt = self._fresh(rng, rng.randint(1, 40))
        options = [[rng.randrange(256) for _ in range(rng.randint(1, 4))] for _ in range(3)]
        choice = self.engine.choose(Request(prompt), options)
        for option, score in zip(options, choice.scores, strict=True):
            rows = truth.log_softmax(truth.logits([*prompt, *option]))[len(prompt) - 1 : -1]
            want = float(rows[np.arange(len(option)), option].sum())
            assert abs(want - score.logprob) < 4 * truth.NEAR, (want, score)

    # -- ways to call -------------------------------------------------------------------------

    def stream(self, seed: int, read: int) -> None:
        """Read to the end, or so far and no further."""
        rng = random.Random(seed)
        agent = rng.randrange(AGENTS)
        request = self._turn(agent, rng)
        if self.driven:
            return
        stream = self.engine.stream(request)
        for count, piece in enumerate(stream):
            if piece.reply is not None:
                self._settle([agent], [(request, piece.reply)])
            if count == read:
                break
        stream.close()

    def gather(self, seed: int, more: int) -> None:
        """Tasks of an event loop; one of them is cancelled, if it is still there."""
        rng = random.Random(seed)
        if self.driven:
            return
        agents = rng.sample(range(AGENTS), 2 + more)
        requests = [self._turn(agent, rng) for agent in agents]

        async def every() -> list[Any]:
            tasks = [asyncio.ensure_future(self.engine.generate_async(each)) for each in requests]
            await asyncio.sleep(0)
            tasks[0].cancel()
            return list(await asyncio.gather(*tasks, return_exceptions=True))

        found = asyncio.run(asyncio.wait_for(every(), WAIT_S))
        assert isinstance(found[0], (Reply, asyncio.CancelledError)), found[0]
        self._settle(agents[1:], list(zip(requests[1:], found[1:], strict=True)))

    def threads(self, seed: int, more: int) -> None:
        rng = random.Random(seed)
        if self.driven:
            return
        agents = rng.sample(range(AGENTS), 2 + more)
        requests = [self._turn(agent, rng) for agent in agents]
        with ThreadPoolExecutor(len(agents)) as pool:
            futures = [pool.submit(self.engine.generate, each) for each in requests]
            found = [future.exception(WAIT_S) or future.result() for future in futures]
        self._settle(agents, list(zip(requests, found, strict=True)))

    def cancel(self, seed: int, wait: int) -> None:
        rng = random.Random(seed)
        call = self.engine.submit(self._turn(rng.randrange(AGENTS), rng, max_tokens=24))
        for _ in range(wait * self.driven):
            self.engine.step()
        self.engine.cancel(call)
        self._finish([call])
        assert call.error is None or isinstance(call.error, RequestCancelledError), call.error

    def hurry(self, seed: int) -> None:
        """Times that are over at once, or soon; priorities beside them."""
        rng = random.Random(seed)
        agents = rng.sample(range(AGENTS), 4)
        requests = [
            replace(self._turn(agent, rng), priority=rng.randint(-3, 3)) for agent in agents
        ]
        limits = [{"timeout": 1e-9}, {"deadline": 1.0}, {"timeout": 1e4}, {}]
        asked = [replace(each, **limit) for each, limit in zip(requests, limits, strict=True)]
        found = self._ask(asked)
        for reply in found[:2]:
            assert isinstance(reply, RequestTimeoutError), repr(reply)
        self._settle(agents[2:], list(zip(asked[2:], found[2:], strict=True)))

    # -- agents, time, adapters ---------------------------------------------------------------

    def hint(self, seed: int) -> None:
        rng = random.Random(seed)
        for agent in range(AGENTS):
            self.engine.agent(agent)
        times = [0, 1, 3.5, -2, 1e9, float("inf"), float("nan")]
        agent = rng.randrange(AGENTS)
        match rng.randrange(4):
            case 0:
                self.engine.expect({each: rng.choice(times) for each in range(AGENTS)})
            case 1:
                self.engine.expect(agent, at=rng.choice(times), confidence=rng.random())
            case 2:
                self.engine.wake(agent)
            case _:
                self.engine.why(agent)
                self.engine.source_scores()

    def tick(self, count: int) -> None:
        for _ in range(count):
            self.engine.tick()

    def fork(self, parent: int, child: int) -> None:
        """Into an id that nobody has, or that somebody has."""
        self.engine.agent(parent)
        if child in part(self.engine, Intake).agents:
            self._refused(lambda: self.engine.fork(parent, child))
            return
        self.engine.fork(parent, child)
        self._histories[child] = list(self._histories.get(parent, []))
        if parent in self._bound:
            self._bound[child] = self._bound[parent]

    def forget(self, seed: int) -> None:
        """Some at once; whoever comes under their ids is somebody else."""
        rng = random.Random(seed)
        known = list(part(self.engine, Intake).agents)
        gone = rng.sample(known, rng.randint(0, len(known)))
        self.engine.forget(gone, wait=rng.random() < 0.5)
        for agent in gone:
            self._histories.pop(agent, None)  # type: ignore[call-overload]
            self._bound.pop(agent, None)  # type: ignore[call-overload]

    def part(self, seed: int) -> None:
        """Agents are forgotten while they speak, and say all the same what they would have said;
        some are there again before that is over."""
        rng = random.Random(seed)
        agents = rng.sample(range(AGENTS), 3)
        requests = [self._turn(agent, rng, max_tokens=24) for agent in agents]
        bound = [self._bound.get(agent) for agent in agents]
        calls = [self.engine.submit(each) for each in requests]
        for _ in range(rng.randrange(12) * self.driven):
            self.engine.step()
        self.engine.forget(agents, wait=rng.random() < 0.5)
        for agent in agents:
            self._histories.pop(agent, None)
            self._bound.pop(agent, None)
        calls.append(self.engine.submit(self._turn(agents[0], rng)))
        self._finish(calls)
        for request, call, adapter in zip(requests, calls, bound, strict=False):
            self._check(request, call.error or call.result(), adapter)

    def equal(self, agent: int, seed: int) -> None:
        """Equal requests of one batch are numbered in its order; one who was forgotten begins anew
        with the count."""
        if agent in self._bound:
            return
        rng = random.Random(seed)
        self.engine.agent(agent)
        request = self._request(agent, self._fresh(rng, 9), temperature=1.0, max_tokens=8)
        found = [truth.outputs(reply) for reply in self._ask([request] * 3)]
        self.engine.forget(agent)
        self._histories.pop(agent, None)
        self.engine.agent(agent)
        again = [truth.outputs(reply) for reply in self._ask([request] * 2)]
        assert again == found[:2], f"{request}: {again} when it was forgotten, {found} before"
        want = truth.resident().numbered(request, 3)
        assert found == want, f"{request}: {found}, not {want}"

    def interrupt(self, seed: int) -> None:
        """Ctrl-C within a callback: on the caller's thread, which it leaves at once, or on the one
        that computes, whose step is finished first."""
        rng = random.Random(seed)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be switched off
        agent = rng.randrange(AGENTS)
        count, struck = 0, list[bool]()

        def shorten(prompt: Any, length: int, most: int) -> Any:
            signal.raise_signal(signal.SIGINT)
            return prompt[-most:]

        def hook(prompt: Any, output: Any) -> Any:
            if len(output) == 2 and not struck:
                struck.append(True)
                signal.raise_signal(signal.SIGINT)
            return range(256)

        try:
            if rng.random() < 0.5:
                request = self._request(agent, [1] * (2 * MAX_LEN))
                self.engine.agent(agent)
                acts = [lambda: self.engine.submit(replace(request, on_overflow=shorten))]
            else:
                request = self._turn(agent, rng, mask=hook, max_tokens=8)
                if self.driven:
                    calls = [self.engine.submit(request)]
                    acts = [lambda: self._finish(calls), lambda: self._finish(calls)]
                else:
                    acts = [lambda: self.engine.generate(request)]
            for act in acts:
                try:
                    act()
                except KeyboardInterrupt:
                    count += 1
        finally:
            signal.signal(signal.SIGINT, before)
        assert count == 1, f"{count} interrupts reached the caller"

    def bind(self, agent: int, which: int) -> None:
        self.engine.agent(agent, adapter=truth.ADAPTERS[which])
        self._bound[agent] = truth.ADAPTERS[which]

    def replace_adapter(self, which: int) -> None:
        """By itself: nobody can see it."""
        name = truth.ADAPTERS[which]
        self.engine.adapters.add(name, truth.folder() / name, replace=True)

    def listen(self, seed: int) -> None:
        self._serial += 1
        self.engine.add_source(Liar(seed, f"liar {self._serial}"))

    # -- mistakes -----------------------------------------------------------------------------

    def bad(self, seed: int) -> None:
        """What must be refused with a typed error, at the caller's."""
        rng = random.Random(seed)
        engine, ask = self.engine, self._request
        agent = engine.agent(rng.randrange(AGENTS))
        acts: list[Callable[[], object]] = [
            lambda: engine.submit(ask(None, [])),
            lambda: engine.submit(ask(None, [10**6])),
            lambda: engine.submit(ask(None, [-1])),
            lambda: engine.submit(ask(None, [1] * (MAX_LEN + 1))),
            lambda: engine.submit(ask(None, [1], max_tokens=MAX_LEN)),
            lambda: engine.submit(ask("nobody", [1])),
            lambda: engine.submit(ask(None, [1], temperature=float("nan"))),
            lambda: engine.submit(ask(None, [1], top_p=0.0)),
            lambda: engine.submit(ask(None, [1], max_tokens=0)),
            lambda: engine.submit(ask(None, [1], n=2)),
            lambda: engine.submit(ask(None, [1], stop_token_ids=(10**9,))),
            lambda: engine.submit(ask(None, [1], logit_bias={0: 1e9})),
            lambda: engine.submit(ask(None, [1], json_schema={"not": {}})),
            lambda: engine.submit(ask(None, [1], regex="(")),
            lambda: engine.submit(replace(ask(None, [1]), timeout=-1.0)),
            lambda: engine.submit(replace(ask(None, [1]), priority=10**9)),
            lambda: engine.submit(ask(None, "\ud800")),
            lambda: engine.agent(True),
            lambda: engine.expect("nobody", 3),
            lambda: engine.wake("nobody"),
            lambda: engine.tick(to=-1.0),
            lambda: engine.fork("nobody", "somebody"),
            lambda: engine.adapters.add("broken", truth.folder() / "nowhere"),
            lambda: engine.adapters.remove("nobody's"),
            lambda: engine.agent("x", adapter=truth.folder() / "nowhere"),
            lambda: engine.choose(Request([1]), []),
            lambda: agent.expect(),
            lambda: engine.submit(replace(ask(None, [1]), sample_index=2**63)),
            lambda: engine.submit(replace(ask(None, [1]), timeout="1s")),  # type: ignore[arg-type]
            lambda: engine.run(["hi"]),  # type: ignore[list-item]
            lambda: engine.agent("\ud800"),
            lambda: engine.forget("nobody"),
        ]
        self._refused(rng.choice(acts))

    def _refused(self, act: Callable[[], object]) -> None:
        try:
            act()
        except ScaleSimError:
            self.counts["refused"] += 1
            return
        raise AssertionError("it was not refused")

    # -- asking, and judging ------------------------------------------------------------------

    def _fresh(self, rng: random.Random, count: int) -> list[int]:
        """Tokens of a prompt that nobody asked before: equal calls would be numbered."""
        self._serial += 1
        return [*f"{self._serial} ".encode(), *(rng.randrange(256) for _ in range(count))]

    def _turn(self, agent: int, rng: random.Random, **params: Any) -> Request:
        """The next call of ``agent``, behind what it said, or from the beginning."""
        self.engine.agent(agent)
        history = self._histories.get(agent, [])
        new = self._fresh(rng, rng.randint(1, 14))
        prompt = [*history, *new]
        params = {"max_tokens": rng.randint(1, 24), "temperature": rng.choice([0.0, 1.0]), **params}
        if len(prompt) + max(40, params["max_tokens"]) > MAX_LEN - 16 * (agent in self._bound):
            prompt = new
        return self._request(agent, prompt, seed=rng.randrange(1000), **params)

    def _request(self, agent: Any, prompt: Any, **params: Any) -> Request:
        return Request(prompt, agent, SamplingParams(**{"max_tokens": 4, **params}))

    def _ask(self, requests: list[Request]) -> list[Any]:
        if self.driven:
            calls = [self.engine.submit(each) for each in requests]
            self._finish(calls)
            return [call.error or call.result() for call in calls]
        return self.engine.run(requests, return_exceptions=True)

    def _finish(self, calls: list[Call]) -> None:
        """Until ``calls`` have ended."""
        if not self.driven:
            self.engine.run([self._request(None, [1], max_tokens=1)])  # its thread runs by now
            ended = threading.Event()
            for _ in range(int(WAIT_S / 1e-3)):
                if all(call.done for call in calls):
                    return
                ended.wait(1e-3)
        for _ in range(20_000):
            if all(call.done for call in calls):
                return
            self.engine.step()
        raise AssertionError("a call does not end")

    def _settle(self, agents: Iterable[int], found: list[Any]) -> None:
        """Check what they said, and go on behind it."""
        for agent, (request, reply) in zip(agents, found, strict=True):
            self._check(request, reply, self._bound.get(agent))
            self._histories[agent] = [*request.prompt, *reply.token_ids]

    def _check(self, request: Request, reply: Any, adapter: str | None = None) -> None:
        """What was said with ``adapter``."""
        assert isinstance(reply, Reply), f"{request}: {reply!r}"
        self.counts["texts"] += 1
        self.counts["preemptions"] += reply.usage.num_preemptions
        if request.params.temperature == 0.0 and adapter is None:
            truth.check_greedy(request.prompt, reply.token_ids)  # type: ignore[arg-type]
            return
        want = truth.resident().texts(request, adapter)
        assert truth.outputs(reply) == want, f"{request}: {truth.outputs(reply)}, not {want}"

    # -- the end ------------------------------------------------------------------------------

    def end(self) -> None:
        """Nothing is left of anything; who is still there when it closes is told. Raises
        ``AssertionError``."""
        engine = self.engine
        engine.forget(list(part(engine, Intake).agents))
        for info in engine.adapters.list():
            engine.adapters.remove(info.name)
        self._idle()
        found = self._on_its_thread(self._left_over)
        assert found is None, found
        gate = part(engine, RequestLimiter)
        assert gate.num_free == gate.limit, f"{gate.limit - gate.num_free} places are lost"
        assert not len(part(engine, EngineLoop).calls)
        assert not len(engine.adapters), engine.adapters.list()
        assert engine.stats.restarts == 0, f"{engine.stats.restarts} restarts"
        assert engine.stats.lost_pages == 0, engine.stats
        assert not part(engine, Intake).agents and not engine.parts.memory.owners.agents
        late = [engine.submit(self._request(None, [1, 2], max_tokens=60)) for _ in range(3)]
        engine.close()
        for call in late:
            assert call.done and isinstance(call.error, EngineClosedError | None), call.error
        assert gate.num_free == gate.limit, f"{gate.limit - gate.num_free} places are lost"
        watch = weakref.ref(engine)
        del engine, gate
        del self.engine
        gc.collect()
        assert watch() is None, "somebody holds the engine"

    def _idle(self) -> None:
        """All that was cancelled has ended."""
        for _ in range(20_000):
            if self.driven:
                if not self.engine.step():
                    return
            elif self._on_its_thread(lambda: not len(part(self.engine, EngineLoop).calls)):
                return
        raise AssertionError("the engine does not come to rest")

    def _left_over(self) -> str | None:
        memory = self.engine.parts.memory
        memory.drain()
        check_integrity(memory)
        memory.clear()
        check_integrity(memory)
        for name, pool in (("device", memory.device), ("host", memory.host)):
            if pool.num_used:
                return f"{pool.num_used} {name} pages are not free"
        if memory.residency.transfers:
            return f"{len(memory.residency.transfers)} copies are alive"
        return None

    def _on_its_thread(self, ask: Callable[[], Any]) -> Any:
        """What ``ask`` says between two steps."""
        answers: list[Any] = []
        done = threading.Event()

        def command() -> None:
            try:
                answers.append(ask())
            except Exception as error:
                answers.append(error)
            done.set()

        part(self.engine, Inbox).post(command)
        if self.driven:
            self.engine.step()
        assert done.wait(WAIT_S), "the engine's thread does not answer"
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]


def play(seed: int, count: int) -> Counter[str]:
    """One program, to its end; an error has the operations that led to it."""
    world = World(seed)
    done: list[Operation] = []
    try:
        for name, arguments in operations(seed, count):
            done.append((name, arguments))
            getattr(world, name)(*arguments)
        world.end()
    except BaseException as error:
        if hasattr(world, "engine"):
            world.engine.close()
        shown = "\n".join(f"  {name}{arguments}" for name, arguments in done)
        raise AssertionError(f"program {seed}: {error!r} after\n{shown}") from error
    return world.counts + Counter({"operations": count, "driven by steps": int(world.driven)})
