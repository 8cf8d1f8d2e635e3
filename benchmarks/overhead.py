"""What scheduler, memory, planner and engine cost without a model.

Agents take turns in a fixed cyclic order; a turn is the whole dialogue so far and some new
tokens. The model is a stub, the link virtual, the pool a fraction of all agents' state. Two arms:
exact hints under ``deadline``, and no hints under ``lru-swap``. Each is measured with Python's
garbage collector as it is, and after ``gc.freeze()``.

A sequence-step is timed apart, over steps in which all running sequences decode and nobody comes
or goes. What the turns' steps take beyond that, the stub's own time taken off, is the cost of the
turns.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import Report, table
from benchmarks.stub_engine import (
    BLOCK_SIZE,
    VOCAB_SIZE,
    Phases,
    Stopwatch,
    StubSettings,
    stub_parts,
)
from scalesim.core import Int32s
from scalesim.engine.engine import Engine
from scalesim.requests.call import Call
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams

ARMS = {"hints, deadline": ("deadline", True), "no hints, lru-swap": ("lru-swap", False)}
QUICK: dict[str, Any] = {
    "agents": 200,
    "running": 16,
    "turns": 400,
    "settle": 200,
    "prefix": 64,
    "pool": 0.5,
}
WAVES, LONG = 3, 128  # of the decode-only phase: how often, and how many tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--agents", type=int, default=10_000)
    add("--running", type=int, default=256, help="sequences that run at once")
    add("--prefix", type=int, default=512, help="tokens of each agent's private prefix")
    add("--new", type=int, default=32, help="tokens that each turn adds to the prompt")
    add("--output", type=int, default=32, help="tokens that each turn generates")
    add("--pool", type=float, default=0.05, help="device pool as a share of all agents' state")
    add("--settle", type=int, default=3_000, help="turns before the measurement")
    add("--turns", type=int, default=10_000, help="turns measured, for each gc setting")
    add("--batched-tokens", type=int, default=1024, help="most tokens in a step")
    add("--step-ms", type=float, default=25.0, help="virtual time of a step")
    add("--page-bytes", type=int, default=64, help="for the link's chunks and the bytes reported")
    add("--link-pages-per-s", type=float, default=24_000.0, help="virtual; 50 GB/s at 2 MiB a page")
    add(
        "--cpu-time",
        action="store_true",
        help="time by the thread's processor time: on a busy machine",
    )
    add("--profile", action="store_true", help="cProfile of one arm's turns instead of the tables")


@dataclass(slots=True)
class StepRecord:
    """One turn of the loop: host seconds, and what happened in it."""

    seconds: float
    phases: Phases
    finished: int
    admitted: int
    copies: int  # pages whose copy began, plus transfers that ended


@dataclass
class Window:
    """The steps of one measurement, and what the counters gained in it."""

    turns: int = 0
    submit_s: float = 0.0
    steps: list[StepRecord] = field(default_factory=list)
    gained: dict[str, float] = field(default_factory=dict)


class Simulation:
    """Agents in cyclic order on a stub engine, ``running`` of them in a call at any time."""

    def __init__(
        self, options: argparse.Namespace, policy: str, *, hints: bool, guarded: bool = True
    ) -> None:
        self.options, self.hints = options, hints
        self.clock = time.thread_time if options.cpu_time else time.perf_counter
        each = options.new + options.output
        rounds = -(-(options.settle + 2 * options.turns) // options.agents)
        max_len = options.prefix + (rounds + 2) * each + WAVES * LONG
        blocks = -(-(options.prefix + rounds * each // 2) // BLOCK_SIZE)
        settings = StubSettings(
            device_pages=int(options.pool * options.agents * blocks),
            host_pages=options.agents * -(-max_len // BLOCK_SIZE),
            max_num_seqs=options.running,
            max_num_batched_tokens=options.batched_tokens,
            max_len=max_len,
            policy=policy,
            page_bytes=options.page_bytes,
            link_pages_per_s=options.link_pages_per_s,
            step_s=options.step_ms / 1e3,
            guarded=guarded,
        )
        self.settings, self.watch = settings, Stopwatch(self.clock)
        self.engine = Engine(stub_parts(settings, self.watch, options.seed))
        self.memory = self.engine.parts.memory
        self.rng = np.random.default_rng(options.seed)
        self.history: Int32s = np.zeros((options.agents, max_len), np.int32)
        self.history[:, : options.prefix] = self.rng.integers(
            0, VOCAB_SIZE, (options.agents, options.prefix), np.int32
        )
        self.length: npt.NDArray[np.int64] = np.full(options.agents, options.prefix, np.int64)
        for agent in range(options.agents):
            self.engine.agent(agent)
        self.num_called = 0
        self.open: list[tuple[int, Call]] = []

    def fill(self) -> None:
        """Every agent's prefix computed once."""
        waiting = deque(range(self.options.agents))
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        calls: list[Call] = []
        while waiting or calls:
            while waiting and len(calls) < self.options.running:
                agent = waiting.popleft()
                prompt = self.history[agent, : self.options.prefix]
                calls.append(self.engine.submit(Request(prompt, agent, params)))
            self.engine.step()
            calls = [call for call in calls if not call.done]
        self.watch.take()
        if self.hints:
            self.engine.expect({agent: float(agent) for agent in range(self.options.agents)})

    def play(self, num_turns: int) -> Window:
        """Run until ``num_turns`` more turns have ended."""
        window = Window()
        before = self._counts()
        while window.turns < num_turns:
            window.submit_s += self._submit()
            window.steps.append(self._step())
            window.turns += self._collect()
        after = self._counts()
        window.gained = {name: after[name] - before[name] for name in after}
        return window

    def decode_only(self, num_waves: int, num_tokens: int) -> Window:
        """Waves of calls with long outputs: most steps have every sequence decode, and no one
        leave."""
        window = Window()
        output, self.options.output = self.options.output, num_tokens
        for _ in range(num_waves):
            while self.open:
                self._step()
                self._collect()
            self._submit()
            while not any(call.done for _, call in self.open):
                window.steps.append(self._step())
        while self.open:
            self._step()
            self._collect()
        self.options.output = output
        return window

    def _submit(self) -> float:
        """Let the next agents call, one for each place that is free; host seconds."""
        count = self.options.running - len(self.open)
        if not count:
            return 0.0
        params = SamplingParams(max_tokens=self.options.output, ignore_eos=True)
        requests = []
        for turn in range(self.num_called, self.num_called + count):
            agent = turn % self.options.agents
            self._say(agent, self.rng.integers(0, VOCAB_SIZE, self.options.new, np.int32))
            requests.append(Request(self.history[agent, : self.length[agent]], agent, params))
        start = self.clock()
        if self.hints:
            self.engine.tick(to=float(self.num_called))
        for request in requests:
            agent = request.agent
            assert isinstance(agent, int)
            self.open.append((agent, self.engine.submit(request)))
            if self.hints:
                self.engine.expect(agent, at=float(self.num_called + self.options.agents))
            self.num_called += 1
        return self.clock() - start

    def _say(self, agent: int, tokens: Int32s) -> None:
        start = self.length[agent]
        self.history[agent, start : start + len(tokens)] = tokens
        self.length[agent] += len(tokens)

    def _step(self) -> StepRecord:
        counters, stats = self.memory.counters, self.engine.stats
        transfers = self.memory.residency.transfers
        turns, lookups = stats.calls, counters.lookups
        moved, flying = counters.loaded_pages + counters.saved_pages, len(transfers)
        start = self.clock()
        self.engine.step()
        seconds = self.clock() - start
        moved = counters.loaded_pages + counters.saved_pages - moved
        return StepRecord(
            seconds,
            self.watch.take(),
            finished=stats.calls - turns,
            admitted=counters.lookups - lookups,
            copies=moved + abs(len(transfers) - flying),
        )

    def _collect(self) -> int:
        still = []
        for agent, call in self.open:
            if call.done:
                self._say(agent, np.array(call.result().token_ids, np.int32))
            else:
                still.append((agent, call))
        ended = len(self.open) - len(still)
        self.open = still
        return ended

    def _counts(self) -> dict[str, float]:
        return asdict(self.memory.counters) | {"cached_tokens": self.engine.stats.cached_tokens}


def decode_cost(window: Window, running: int) -> dict[str, float]:
    """Seconds of a sequence-step, by phase: over the steps in which (nearly) all decode and
    nobody comes or goes."""
    pure = [
        step
        for step in window.steps
        if not step.finished and not step.admitted
        and step.phases.num_tokens == step.phases.num_seqs >= 0.9 * running
    ]  # fmt: skip
    assert pure, "no step had nine tenths of --running decode; raise --pool"
    num = sum(step.phases.num_seqs for step in pure)
    cost = {name: sum(getattr(s.phases, f"{name}_s") for s in pure) / num for name in TIMED}
    own = sum(s.seconds - s.phases.runner_s for s in pure) / num
    return cost | {"own": own, "num_steps": len(pure), "seqs_per_step": num / len(pure)}


def summarise(window: Window, decode: dict[str, float]) -> dict[str, Any]:
    """The window's figures; times in seconds. ``decode`` is what a sequence-step costs anyway."""
    steps, gained = window.steps, window.gained
    seqs = sum(s.phases.num_seqs for s in steps)
    own = sum(s.seconds - s.phases.runner_s for s in steps)
    per_turn = (own - seqs * decode["own"]) / window.turns
    phases = {
        name: (sum(getattr(s.phases, f"{name}_s") for s in steps) - seqs * decode[name])
        / window.turns
        for name in TIMED
    }
    seconds = np.array([step.seconds for step in steps])
    blocks = max(1, sum(gained[f"{kind}_blocks"] for kind in KINDS))
    return {
        "turns": window.turns,
        "num_steps": len(steps),
        "seqs_per_step": seqs / len(steps),
        "stub_per_step": sum(s.phases.runner_s for s in steps) / len(steps),
        "per_turn": per_turn,
        **{f"per_turn_{name}": value for name, value in phases.items()},
        "per_turn_rest": per_turn - sum(phases.values()),
        "per_turn_submit": window.submit_s / window.turns,
        "step_p50": float(np.percentile(seconds, 50)),
        "step_p99": float(np.percentile(seconds, 99)),
        "step_max": float(seconds.max()),
        "loaded_pages_per_turn": gained["loaded_pages"] / window.turns,
        "saved_pages_per_turn": gained["saved_pages"] / window.turns,
        "full_hits": gained["full_hits"] / max(1, gained["lookups"]),
        "demand_loads_per_turn": gained["demand_loads"] / window.turns,
        "virtual_stall_s": gained["stall_s"],
        **{f"share_{kind}": gained[f"{kind}_blocks"] / blocks for kind in KINDS},
        "gained": gained,
    }


TIMED = ("schedule", "plan", "update")
PARTS = (*TIMED, "rest", "submit")
KINDS = ("device", "late", "host", "computed")


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        vars(options).update(QUICK)
    report = Report("overhead")
    for name, (policy, hints) in ARMS.items():
        simulation = Simulation(options, policy, hints=hints)
        simulation.fill()
        simulation.play(options.settle)
        if options.profile:
            profile(simulation, options.turns)
            return report
        report.figures[name] = measure(simulation)
        simulation.engine.close()
    report.tables = tables(report.figures, options.page_bytes)
    judge(report)
    return report


def measure(simulation: Simulation) -> dict[str, Any]:
    """Two windows of turns, by gc setting; then the decode-only phase, which both are read
    against."""
    windows = {}
    for mode in ("default gc", "gc.freeze()"):
        gc.collect()
        if mode == "gc.freeze()":
            gc.freeze()
        windows[mode] = simulation.play(simulation.options.turns)
    gc.unfreeze()
    decode = decode_cost(simulation.decode_only(WAVES, LONG), simulation.options.running)
    return {"decode": decode, **{mode: summarise(w, decode) for mode, w in windows.items()}}


def tables(figures: dict[str, Any], page_bytes: int) -> list[Any]:
    rows = [
        (f"{arm}, {mode}", one | {"per_seq_step": modes["decode"]["own"]})
        for arm, modes in figures.items() for mode, one in modes.items() if mode != "decode"
    ]  # fmt: skip
    costs = [
        [name, us(one["per_seq_step"], 2), us(one["per_turn"]), us(one["stub_per_step"]),
         ms(one["step_p50"]), ms(one["step_p99"]), ms(one["step_max"]),
         f"{one['num_steps']}", f"{one['seqs_per_step']:.0f}"]
        for name, one in rows
    ]  # fmt: skip
    parts = [
        [name, *(us(one[f"per_turn_{part}"], 1) for part in PARTS)] for name, one in rows
    ]  # fmt: skip
    moved = [
        [name, f"{one['loaded_pages_per_turn']:.1f}", f"{one['saved_pages_per_turn']:.1f}",
         f"{(one['loaded_pages_per_turn'] + one['saved_pages_per_turn']) * page_bytes / 1e3:.2f}",
         f"{one['full_hits']:.1%}", *(f"{one[f'share_{kind}']:.1%}" for kind in KINDS),
         f"{one['virtual_stall_s']:.2f}"]
        for name, one in rows
    ]  # fmt: skip
    return [
        table("Cost without the model (the stub's own time is taken off the first two)",
              ["arm", "µs/seq-step", "µs/turn", "stub µs/step", "p50 ms", "p99 ms", "max ms",
               "steps", "seqs/step"], costs),
        table("Where a turn's microseconds go; submit is the caller's thread, not in the sum",
              ["arm", *PARTS], parts),
        table("What moved in a turn, and where blocks were found",
              ["arm", "pages in", "pages out", "kB", "full hits", *KINDS, "stall s (virtual)"],
              moved),
    ]  # fmt: skip


def judge(report: Report) -> None:
    for arm, modes in report.figures.items():
        one = modes["default gc"]
        own = modes["decode"]["own"]
        report.verdict(f"{arm}: a sequence-step", own * 1e6, most=5, unit=" µs")
        report.verdict(f"{arm}: a turn", one["per_turn"] * 1e6, most=150, unit=" µs")
        report.verdict(f"{arm}: p99 step", one["step_p99"] * 1e3, most=10, unit=" ms")


def profile(simulation: Simulation, num_turns: int) -> None:
    import cProfile
    import pstats

    with cProfile.Profile() as profiler:
        simulation.play(num_turns)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(40)


def us(seconds: float, digits: int = 0) -> str:
    return f"{seconds * 1e6:.{digits}f}"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"
