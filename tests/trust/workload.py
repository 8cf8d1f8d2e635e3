"""A small simulation that goes through every part of an engine: what faults are thrown at.

A real ``Engine`` over tags and a hostile link, driven step by step: agents with private prefixes
and adapters in a pool for a part of them, a fork, hints, stop strings, texts and tokens, a call
that is cancelled, a recorded trace. A call that fails is made again, as a simulation would. Runs
repeat exactly: the clock counts looks at it. Sizes are as small as still go everywhere: a sweep's
time goes with their square.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scalesim.config import SchedulerConfig
from scalesim.core import Bytes2D
from scalesim.distance.estimates import Source
from scalesim.engine.engine import Engine
from scalesim.engine.parts import EngineParts
from scalesim.errors import AdapterError, ScaleSimError
from scalesim.memory.audit.auditor import Auditor, Integrity
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.leases.adapters import AdapterContent
from scalesim.memory.links.link import PageSource, Timeline
from scalesim.memory.pools.storage import allocate_pages
from scalesim.model.text.chat import CHATML, ChatTemplate
from scalesim.model.text.tokenizer import ByteTokenizer
from scalesim.requests.adapter import AdapterInfo
from scalesim.requests.call import Call
from scalesim.requests.prompt import Prompt, TextModel
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from scalesim.scheduler.scheduler import Scheduler
from scalesim.snapshot.generations import Generations
from scalesim.snapshot.page_file import PageFileReader
from scalesim.testing.bed import Factories
from scalesim.testing.hostile_link import HostileLink
from scalesim.testing.tag_runner import TagRunner
from scalesim.testing.tags import adapter_layout, adapter_pages, page_bytes_for
from tests.inside import part

BLOCK, PAGES, HOST_PAGES, MAX_SEQS = 4, 17, 33, 4
PROMPT_LEN, NEW_LEN, OUTPUT_LEN, CANCELLED_LEN = 8, 3, 8, 12
MAX_STEPS = 4_000  # of the engine, for one round of calls: more is a hang
TRIES = 3
TURN_S = 1e-3  # of the engine's clock, each time that somebody looks at it
TOKENIZER, TEMPLATE = ByteTokenizer(), ChatTemplate(CHATML)
Text = tuple[int, ...]


@dataclass(frozen=True)
class TagFolder(PageSource):
    """An adapter of tags: what a folder would be."""

    tag: int
    num_pages: int

    def read(self) -> Bytes2D:
        return adapter_pages(self.tag, self.num_pages, page_bytes_for(BLOCK))


def read_adapter(path: str | Path) -> AdapterContent:
    """``"tag/pages"``. Every second one hands its pages to the host pool."""
    tag, num_pages = map(int, str(path).split("/"))
    source = TagFolder(tag, num_pages)
    pages = source.read() if tag % 2 else None
    layout = adapter_layout(tag, num_pages)
    return AdapterContent(tag.to_bytes(16, "little"), layout, num_pages, None, source, pages)


@dataclass(frozen=True)
class Build(Factories):
    """What an engine is made of, where that is not ScaleSim's own. ``advise(n)`` is what the n-th
    agent is said to be away from its next call, in ticks."""

    scheduler: type[Scheduler] = Scheduler
    sources: Callable[[], list[Source]] = list
    advise: Callable[[int], float] = float
    generations: type[Generations] = Generations
    reader: type[PageFileReader] = PageFileReader


SOUND = Build()


def make_parts(
    seed: int, steps_in_flight: int, integrity: Integrity, build: Build = SOUND
) -> EngineParts:
    page_bytes, rows = page_bytes_for(BLOCK), 2 * MAX_SEQS + 9
    device, host = allocate_pages(PAGES + 1, page_bytes), allocate_pages(HOST_PAGES, page_bytes)
    timeline = Timeline()
    link = HostileLink(device, host, timeline, seed=seed)
    memory = build.memory(
        block_size=BLOCK,
        page_bytes=page_bytes,
        device_pages=PAGES + 1,
        host_pages=HOST_PAGES,
        num_rows=rows,
        policy=policy_named("deadline"),
        link=link,
        make_pool=build.pool,
    )
    runner = TagRunner(
        device,
        BLOCK,
        max_num_seqs=MAX_SEQS,
        max_num_rows=rows,
        max_blocks_per_row=PAGES,
        steps_in_flight=steps_in_flight,
        timeline=timeline,
        vocab_size=TOKENIZER.vocab_size,
    )
    config = SchedulerConfig(
        max_num_seqs=MAX_SEQS, max_num_batched_tokens=20, safe_point_tokens=4, max_skips=4
    )
    max_len = PAGES * BLOCK
    model = TextModel(TOKENIZER.vocab_size, frozenset(), max_len, max_len, TOKENIZER, TEMPLATE)
    return EngineParts(
        build.runner(runner),
        memory,
        build.scheduler(memory, config, max_len),
        link,
        model,
        time_s=map(TURN_S.__mul__, itertools.count()).__next__,
        read_adapter=read_adapter,
        integrity=integrity,
    )


class Lost(AssertionError):
    """A call that never ended, a page that is nobody's, a text that is wrong."""


@dataclass
class Workload:
    """One engine and what its agents said: ``texts[agent]`` is a text a turn, or the error that
    its calls ended with, again and again. ``dead`` is what the engine died of."""

    seed: int = 0
    steps_in_flight: int = 1
    integrity: Integrity = "quarantine"
    build: Build = SOUND
    texts: dict[str, list[Text]] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    dead: Exception | None = None

    def __post_init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="scalesim-trust-")
        trace = Path(self.folder.name) / "trace.jsonl"
        parts = make_parts(self.seed, self.steps_in_flight, self.integrity, self.build)
        self.link = parts.link
        self.engine = Engine(parts, record=trace, sources=self.build.sources())
        part(self.engine, Auditor).time_s = parts.time_s  # its sweeps repeat exactly, too

    def play(self, name: str = "") -> dict[str, list[Text]]:
        """Two rounds of everybody; agents are called ``name`` and their own letter, and say the
        same under every name."""
        agents = [f"{name}{letter}" for letter in "abcdef"]
        draws = [random.Random(index) for index in range(len(agents))]
        histories = {agent: [rng.randrange(250) for _ in range(PROMPT_LEN)]
                     for agent, rng in zip(agents, draws, strict=True)}  # fmt: skip
        histories[agents[5]][:] = histories[agents[4]]  # two blocks of one template
        for agent in agents:
            self.texts[agent] = []
        self._let(self._settle_in, agents)
        for turn in range(2):
            asked: dict[str, Prompt] = {}
            for agent, rng in zip(agents, draws, strict=True):
                if agent not in self.errors:
                    histories[agent] += [rng.randrange(250) for _ in range(NEW_LEN)]
                    asked[agent] = list(histories[agent])
            self._let(self._hint, agents, turn)
            self._round(asked, turn)
            for agent in agents:
                if agent not in self.errors and len(self.texts[agent]) > turn:
                    histories[agent] += self.texts[agent][turn]
        fork = f"{name}fork"
        self.texts[fork] = []
        if (error := self.errors.get(agents[0])) is not None:
            self.errors[fork] = error
        else:
            self._let(self.engine.fork, agents[0], fork)
            self._let(self.engine.agent, fork)
            self._round({fork: [*histories[agents[0]], 1, 2]}, 0)
        words: dict[str, Prompt] = {
            f"{name}text": "once upon a time",
            f"{name}chat": [{"role": "user", "content": "hello"}],
        }
        for agent in words:
            self.texts[agent] = []
            self._let(self.engine.agent, agent)
        self._round(words, 0, stop=("N", "zz"))
        self._let(self.engine.adapters.remove, "first")
        return {agent.removeprefix(name): said for agent, said in self.texts.items()
                if agent.startswith(name)}  # fmt: skip

    def _settle_in(self, agents: list[str]) -> None:
        paths = {1: "first", 2: "second"}
        for tag, adapter in paths.items():
            if adapter not in self.engine.adapters:
                self._let(self.engine.adapters.add, adapter, f"{tag}/{tag + 1}")
        for index, agent in enumerate(agents):
            adapter = paths.get(index)
            self._let(self.engine.agent, agent)
            if adapter is not None:
                self._let(lambda a=agent, b=adapter: self.engine.agent(a, adapter=b))
                if self.dead is None and self.engine.agent(agent).adapter is None:
                    self.errors[agent] = AdapterError(f"{adapter!r} could not be added")

    def _hint(self, agents: list[str], turn: int) -> None:
        self.engine.tick()
        advise = self.build.advise
        self.engine.expect({agent: advise(index) for index, agent in enumerate(agents)})
        self.engine.wake(agents[turn])

    def _let(self, act: Callable[..., object], *args: object) -> None:
        """``act``, again where it fails."""
        for _ in range(TRIES):
            try:
                act(*args)
                return
            except Exception as error:
                if self.dead is not None:
                    return
                last = error
        del last

    # -- calls --------------------------------------------------------------------------------

    def _round(self, asked: dict[str, Prompt], turn: int, stop: tuple[str, ...] = ()) -> None:
        """Everybody's call, to its end; one is asked for twice and cancelled once."""
        failed: dict[str, Exception] = {}
        for _ in range((TRIES + 1) * bool(asked)):
            self._cancel_one(asked, turn)
            calls = {agent: self.submit(agent, prompt, stop, failed)
                     for agent, prompt in asked.items()}  # fmt: skip
            self.run([call for call in calls.values() if call is not None])
            for agent, call in calls.items():
                if call is not None and self._collect(agent, call, failed):
                    del asked[agent]
            if not asked or self.dead is not None:
                break
        for agent in asked:
            self.errors[agent] = failed.get(agent) or self.dead or Lost(f"{agent} has no answer")

    def submit(
        self, agent: str, prompt: Prompt, stop: tuple[str, ...], failed: dict[str, Exception]
    ) -> Call | None:
        params = SamplingParams(
            max_tokens=OUTPUT_LEN,
            temperature=float(len(prompt) % 2),
            seed=3,
            stop=stop,
            ignore_eos=True,
        )
        try:
            return self.engine.submit(Request(prompt, agent, params, timeout=1e6))
        except Exception as error:
            failed[agent] = error
            return None

    def _cancel_one(self, asked: dict[str, Prompt], turn: int) -> None:
        """While it loads, in the second round."""
        agent = max(asked)
        try:
            call = self.engine.submit(
                Request(asked[agent], agent, SamplingParams(CANCELLED_LEN, 0.0))
            )
        except Exception:
            return
        for _ in range(1 + 2 * (turn == 0)):
            self._step(land=turn == 0)
        self._let(self.engine.cancel, call)
        self.run([call])
        if not isinstance(call.error, ScaleSimError):
            raise Lost(f"a cancelled call ended with {call.error!r}")

    def run(self, calls: list[Call]) -> None:
        for _ in range(MAX_STEPS):
            if all(call.done for call in calls):
                return
            self._step()
        raise Lost(f"{sum(not call.done for call in calls)} calls did not end in {MAX_STEPS} steps")

    def _step(self, *, land: bool = True) -> None:
        try:
            self.engine.step()
            assert isinstance(self.link, HostileLink)
            for _ in range(3 * land):
                self.link.step()
        except Exception as error:
            if self.dead is None:
                self.dead = error

    def _collect(self, agent: str, call: Call, failed: dict[str, Exception]) -> bool:
        for _ in range(TRIES):
            try:
                self.texts[agent].append(call.result().token_ids)
                return True
            except Exception as error:
                failed[agent] = error
                if call.error is not None:
                    if not isinstance(error, ScaleSimError):
                        raise Lost(f"{agent} got {error!r}, which is no typed error") from error
                    return False
        return False

    # -- the end ------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything go: every page is free but those said to be lost, and no ticket is
        alive."""
        engine, memory = self.engine, self.engine.parts.memory
        for _ in range(MAX_STEPS):
            if not engine.step() and not memory.residency.transfers:
                break
            assert isinstance(self.link, HostileLink)
            self.link.step()
        for info in list_of(engine):
            engine.adapters.remove(info.name)
        engine.step()
        memory.drain()
        check_integrity(memory)
        memory.clear()
        check_integrity(memory)
        for pool, lost in ((tier.pool, tier.lost) for tier in memory.tiers):
            if pool.num_used != len(lost):
                raise Lost(f"{pool.num_used} pages are not free, {len(lost)} are lost")
        if memory.residency.transfers or engine.parts.scheduler.has_work:
            raise Lost(f"{memory.residency.transfers} are alive")

    def __enter__(self) -> Workload:
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()
        self.folder.cleanup()


def list_of(engine: Engine) -> list[AdapterInfo]:
    return engine.adapters.list()


def oracle() -> dict[str, list[Text]]:
    """What everybody says when nothing fails."""
    with Workload() as workload:
        texts = workload.play()
        workload.settle()
    assert not workload.errors and workload.dead is None
    assert workload.engine.stats.restarts == 0
    assert np.all([len(said) for said in texts.values()])
    return texts
