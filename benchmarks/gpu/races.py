"""Race hunting: the engine under random delays on every queue, with freed pages poisoned, must
compute what it computes with no two things at once, bit for bit.

``SteadyLink`` makes the engine's decisions independent of timing: a copy is reported a number of
polls after it was submitted that a seed chose, waited for if need be, and time is counted in steps.
So both runs launch the same batches in the same order, and any difference is a race. Last, waits
are left out on purpose: that must be seen, or the hunt proves nothing.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, SkipError
from benchmarks.gpu.turns import TINY, Watch, dummy
from scalesim.batch import Batch, LaunchedStep, StepOutput
from scalesim.config import EngineConfig, SchedulerConfig
from scalesim.core import Fence
from scalesim.device.streams import Device, Event, Stream, Work
from scalesim.engine.build import parts_for
from scalesim.engine.engine import Engine
from scalesim.errors import EngineClosedError
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.links.cuda_link import CudaLink
from scalesim.memory.links.link import Copies, Direction, Link
from scalesim.memory.links.source_link import SourceLink
from scalesim.model.checkpoint.loader import LoadedModel
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams

CYCLES_A_MS = 1_800_000  # of torch's spin kernel, more or less
MAX_DELAY_MS = 3.0
POISON = 0xFF  # NaN in every dtype
REPORTS = 5  # seeds of when copies are reported; each has a run of its own to compare with
AGENTS, TURNS, PREFIX, NEW, OUTPUT = 10, 3, 200, 12, 12
BLOCK = 16
Texts = list[tuple[tuple[int, ...], int]]


@dataclass(frozen=True)
class Hunt:
    """``delayed``: spin before work and copies. ``plant``: a wait to leave out."""

    delayed: bool
    seed: int = 0
    plant: str = ""


PLANTS = ("last read before copy-in", "copy-in before first read")


class DelayedStream:
    """A stream that dawdles: a random spin before work and before each copy, and a destination
    that holds poison meanwhile. Without ``delayed``, each thing that it is given is waited for."""

    def __init__(self, inner: Stream, name: str, hunt: Hunt, spin: Callable[[float], None]) -> None:
        self._inner, self._name, self._hunt, self._spin = inner, name, hunt, spin
        self._random = random.Random(f"{hunt.seed}{name}")

    def submit(self, work: Work) -> None:
        self._dawdle()
        self._inner.submit(work)
        self._settle()

    def copy(self, dst: Any, src: Any) -> None:
        self._dawdle()
        if self._hunt.delayed and self._name != "compute":
            if self._name == "in":
                self._inner.submit(lambda: dst.fill_(POISON))
            self._dawdle()
        self._inner.copy(dst, src)
        self._settle()

    def copy_rows(self, dst: Any, src: Any, rows: Sequence[tuple[int, int, int]]) -> None:
        for row, source, count in rows:
            self.copy(dst[row : row + count], src[source : source + count])

    def zeros(self, *shape: int, dtype: Any) -> Any:
        return self._inner.zeros(*shape, dtype=dtype)

    def record(self, *, timed: bool = False) -> Event:
        return self._inner.record(timed=timed)

    def wait(self, event: Event) -> None:
        if not (self._hunt.plant == PLANTS[0] and self._name == "in"):
            self._inner.wait(event)

    def _dawdle(self) -> None:
        if self._hunt.delayed and self._random.random() < 0.3:
            delay_ms = MAX_DELAY_MS * self._random.random() ** 3
            self._inner.submit(lambda: self._spin(delay_ms))

    def _settle(self) -> None:
        if not self._hunt.delayed:
            self._inner.record().synchronize()


class DelayedDevice:
    """A device of which every stream is a ``DelayedStream``."""

    def __init__(self, inner: Device, hunt: Hunt, spin: Callable[[float], None]) -> None:
        self.place = inner.place
        self._inner, self._hunt, self._spin = inner, hunt, spin
        self._streams: dict[str, DelayedStream] = {}

    def stream(self, name: str) -> DelayedStream:
        if name not in self._streams:
            inner = self._inner.stream(name)
            self._streams[name] = DelayedStream(inner, name, self._hunt, self._spin)
        return self._streams[name]

    def settle(self) -> None:
        self._inner.settle()

    def capture(self, stream: Stream, work: Work) -> Work:
        return self._inner.capture(self._inner.stream("compute"), work)

    def pinned(self, num_bytes: int) -> Any:
        return self._inner.pinned(num_bytes)

    def pause(self) -> None:
        self._inner.pause()

    def free_bytes(self) -> tuple[int, int]:
        return self._inner.free_bytes()

    def registrar(self) -> Any:
        return self._inner.registrar()


class SteadyLink:
    """Another link, whose completions are reported at polls that a seed chose."""

    def __init__(self, inner: Link, seed: int, lie: bool = False) -> None:
        self._inner, self._random, self._lie = inner, random.Random(seed), lie
        self._polls = 0
        self._due: dict[int, int] = {}  # ticket -> poll
        self._ended: dict[int, Exception | None] = {}
        self._bytes: dict[Direction, int] = {"in": 0, "out": 0}

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        tickets = self._inner.submit(copies, after)
        for ticket in tickets:
            self._due[ticket] = self._polls + self._random.randint(1, 4)
        return tickets

    def poll(self) -> list[tuple[int, Exception | None]]:
        self._polls += 1
        self._take()
        due = sorted(ticket for ticket, at in self._due.items() if at <= self._polls)
        if not self._lie:
            while any(ticket not in self._ended for ticket in due):
                self._inner.wait(1.0)
                self._take()
        for ticket in due:
            del self._due[ticket]
        return [(ticket, self._ended.pop(ticket, None)) for ticket in due]

    def _take(self) -> None:
        self._ended |= dict(self._inner.poll())

    def cancel(self, ticket: int) -> bool:
        return False

    def wait(self, timeout_s: float) -> bool:
        return True  # the next poll is one later, and waits for what is due

    def queued_bytes(self, direction: Direction) -> int:
        return 0

    def rate(self, direction: Direction) -> float:
        return 1e9

    def close(self) -> None:
        self._inner.close()


class PoisoningRunner(Watch):
    """Overwrites pages that nobody owns before each step: whoever still reads one, or was handed
    one before it was written, computes NaN. The pages are fenced by that step."""

    def __init__(self, inner: Any, stream: Stream, pages: Tensor, pool: Any, seed: int) -> None:
        super().__init__(inner)
        self._stream, self._pages, self._pool = stream, pages, pool
        self._random = random.Random(seed)
        # Until their step is collected: a tensor let go of before may get its memory written again
        # while the delayed fill still reads it.
        self._indices: dict[int, Tensor] = {}

    def launch(self, batch: Batch) -> LaunchedStep:
        free = np.flatnonzero(self._pool.free_mask()).tolist()
        free = [page for page in free if self._random.random() < 0.25]
        if free:
            index = self._indices[batch.step] = torch.tensor(free, device=self._pages.device)
            self._stream.submit(lambda: self._pages.index_fill_(0, index, POISON))
            self._pool.fence_free(free, batch.step)
        return super().launch(batch)

    def collect(self, step: LaunchedStep) -> StepOutput:
        output = super().collect(step)
        self._indices.pop(step.step, None)
        return output


def run(bench: Bench) -> None:
    loaded = dummy(bench, TINY)
    schedules = bench.schedules if bench.on_gpu else min(bench.schedules, 2)
    table = bench.report.table("Races", ["wait left out", "schedules", "differing"])
    references: dict[int, Texts] = {}
    differing = done = 0
    for seed in range(schedules):
        if bench.left_s() < 0.3 * bench.share_s and seed:  # the plants need the rest
            bench.report.leave_out("races", f"{schedules - seed} schedules: no time left")
            break
        reports = seed % REPORTS
        if reports not in references:
            found = play(bench, loaded, Hunt(delayed=False), reports)
            if not isinstance(found, list):
                raise SkipError(f"the run without delays ended with {found}")
            references[reports] = found
        differing += play(bench, loaded, Hunt(True, seed), reports) != references[reports]
        done += 1
    table.add("none", done, differing)
    bench.report.hold("floor", "delayed schedules that differ", differing, most=0)
    for plant in PLANTS:
        tries = caught = 0
        while tries < (10 if bench.on_gpu else 1) and not (tries and bench.left_s() < 0):
            caught += play(bench, loaded, Hunt(True, tries, plant), 0) != references[0]
            tries += 1
            if caught:  # once is proof
                break
        table.add(plant, tries, caught)
        if bench.on_gpu:  # streams without a GPU are never late here
            bench.report.hold("floor", f"seen where left out: {plant}", caught, least=1)


def play(bench: Bench, loaded: LoadedModel, hunt: Hunt, reports: int) -> Texts | str:
    """The texts and digests of a game, or what ended it."""
    device = DelayedDevice(bench.device, hunt, spinner(bench))
    shape = loaded.config
    geometry = PageGeometry(
        shape.num_layers, shape.num_kv_heads, shape.head_dim, BLOCK, loaded.model.dtype.itemsize
    )
    pages = AGENTS * geometry.blocks_for(PREFIX + TURNS * (NEW + OUTPUT))
    config = EngineConfig(
        device=bench.place,
        device_memory=(pages // 3 + 1) * geometry.page_bytes,
        host_memory=pages * geometry.page_bytes,
        block_size=BLOCK,
        digests=True,
        scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=128),
    )
    parts = parts_for(loaded, config, bench.kernels(), device=device)
    inner = parts.link
    assert isinstance(inner, SourceLink) and isinstance(inner.link, CudaLink)
    link = SteadyLink(inner, reports, lie=hunt.plant == PLANTS[1])
    memory, clock = parts.memory, itertools.count()
    memory.residency.link.link = link  # type: ignore[attr-defined]
    runner = PoisoningRunner(
        parts.runner, device.stream("compute"), inner.link.device_pages, memory.device, hunt.seed
    ) if hunt.delayed else Watch(parts.runner)  # fmt: skip
    parts = replace(parts, link=link, runner=runner, time_s=lambda: 1e-3 * next(clock))
    try:
        with Engine(parts) as engine:
            return game(engine)
    except (EngineClosedError, AssertionError, RuntimeError) as error:
        return type(error).__name__


def game(engine: Engine) -> Texts:
    """Every agent speaks in every turn; driven step by step on this thread."""
    rng = np.random.default_rng(0)
    vocab = engine.model.vocab_size
    texts = [rng.integers(0, vocab, PREFIX).tolist() for _ in range(AGENTS)]
    params = SamplingParams(OUTPUT, temperature=1.0, ignore_eos=True)
    said: Texts = []
    for agent in range(AGENTS):
        engine.agent(agent)
    for _ in range(TURNS):
        calls = []
        for agent, text in enumerate(texts):
            text += rng.integers(0, vocab, NEW).tolist()
            calls.append(engine.submit(Request(np.array(text, np.int32), agent, params)))
        while not all(call.done for call in calls):
            engine.step()
        for text, call in zip(texts, calls, strict=True):
            reply = call.result()
            text += reply.token_ids
            said.append((reply.token_ids, reply.digest))
        engine.expect({agent: 1 + agent / AGENTS for agent in range(AGENTS)})
        engine.tick()
    return said


def spinner(bench: Bench) -> Callable[[float], None]:
    """Keeps a stream busy for so many milliseconds."""
    if bench.on_gpu:
        return lambda ms: torch.cuda._sleep(int(ms * CYCLES_A_MS))
    return lambda ms: None
