"""Options of the commands: a frozen dataclass for each, from which tyro builds the parser.

A field's docstring is its help text. Values that the parser cannot judge are checked where they are
used, and raise ``ConfigError`` or ``RequestError``. Torch-free.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from scalesim.cli.boxes import in_one_line
from scalesim.cli.config_file import with_config_file
from scalesim.cli.output import check_writable
from scalesim.cli.serve_options import ServeOptions
from scalesim.cli.values import (
    COUNT,
    FEW,
    MANY,
    MANY_OR_0,
    MEMORY,
    MEMORY_OR_AUTO,
    POSITIVE,
    REAL,
    SEED,
    SHARE,
    SHARE_OR_0,
    SIGMA,
    WHOLE,
)
from scalesim.config import EngineConfig, parse_bytes
from scalesim.errors import ConfigError
from scalesim.memory.eviction.policies import ENGINE_POLICIES
from scalesim.replay.hardware import HARDWARE, disk_rate, named
from scalesim.replay.knobs import HintMode, Knobs
from scalesim.replay.peers.policies import REPLAY_POLICIES, replay_policy
from scalesim.replay.scenario import TraceHints
from scalesim.replay.sizing import Disk
from scalesim.replay.workloads import WORKLOADS
from scalesim.sampling.params import SamplingParams
from scalesim.village.people import MOST_VILLAGERS

BLOCKING_SWAP = "blocking-swap"
"""The demo's own policy: ``lru-swap`` on a link that the engine waits for."""
_ENGINE, _SAMPLING = EngineConfig(), SamplingParams()
_ABOUT = """Simulations of thousands of LLM agents on one device.

Start with `scalesim demo`. `scalesim COMMAND --help` lists a command's options;
`scalesim --version` names the version."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """64 agents of a village share device memory for 16, under every policy; all say the same.

    The village lives once for each policy, round by round side by side, from the same seed, on a
    small model that comes with the package. Exits with 1 if two policies gave different texts.
    """

    agents: Annotated[int, MANY] = 64
    """People in the village."""
    resident: Annotated[int, COUNT] = 16
    """Agents whose state fits into the device pool."""
    ticks: Annotated[int, COUNT] = 10
    """Ticks of the simulation, for each policy; a tick is ten minutes of the village."""
    policies: tuple[str, ...] = (
        "deadline", "lru-swap", BLOCKING_SWAP, "lru-recompute", "resident",
    )  # fmt: skip
    """Policies to run, each on an engine of its own; the first one's village is shown. Under
    blocking-swap, which is lru-swap without asynchrony, the engine waits for each copy."""
    seed: Annotated[int, SEED] = 0
    """Of the village and all sampling."""
    model: str | None = None
    """A folder with another chat model, of a native family, instead of the village's own."""
    hardware: str = "h100"
    """The GPU whose link is imitated: h100, h100-sxm, h200, a100 or rtx4090."""
    link: Annotated[float, SHARE] = 1.0
    """Share of that link that is to be had, like 0.1."""
    threads: Annotated[int, FEW] = 1
    """Threads that compute. The model is small: more of them wait for each other, mostly."""
    voices: tyro.conf.FlagCreatePairsOff[bool] = False
    """Give each person one of the model's voices: LoRA adapters in its folder voices."""
    capacity: Annotated[int | None, COUNT] = None
    """How many people until a call takes twice as long? Instead of one village, play villages of
    --resident people, of twice as many, and so on up to this many, on the same device memory;
    --agents and --ticks do not matter. People are asked four at a time, so that no call waits for
    another."""
    report: Path | None = None
    """Write a page of charts and talk to this file, as HTML."""
    timeline: Path | None = None
    """Write rounds, copies and the pool's use to this file, as a trace for Perfetto."""
    picture: Path | None = None
    """Write what a wide terminal shows at the end to this file, as SVG."""

    def check(self) -> None:
        """Raise ``ConfigError`` for options that do not fit each other. Not done in
        ``__post_init__``: the parser would put a frame around that error."""
        if self.capacity is None and self.resident > self.agents:
            raise ConfigError(
                f"--resident {self.resident} is more than --agents {self.agents}; "
                "lower it: the demo is about agents that do not fit"
            )
        for option, people in ("agents", self.agents), ("capacity", self.capacity or 0):
            if people > MOST_VILLAGERS:
                raise ConfigError(
                    f"--{option} {people} is more than the village has names for, "
                    f"{MOST_VILLAGERS}; lower it"
                )
        if self.capacity is not None:
            self._check_capacity(self.capacity)
        named(HARDWARE, self.hardware, "hardware")
        for option in ("report", "timeline", "picture"):
            if (path := getattr(self, option)) is not None:
                check_writable(path, f"--{option}")
        if self.model is not None and not (Path(self.model) / "config.json").is_file():
            raise ConfigError(f"--model {self.model} has no config.json; give a model's folder")
        if not self.policies:
            raise ConfigError(f"--policies names none; give some of: {', '.join(ENGINE_POLICIES)}")
        for index, policy in enumerate(self.policies):
            if policy != BLOCKING_SWAP:
                EngineConfig(policy=policy)
            if policy in self.policies[:index]:
                raise ConfigError(f"--policies names {policy} twice; once is enough")

    def _check_capacity(self, most: int) -> None:
        """The sizes of villages follow from --resident and --capacity alone."""
        if most < 2 * self.resident:
            raise ConfigError(
                f"--capacity {most} is less than twice --resident {self.resident}, the smallest "
                "village; raise it"
            )
        for option in ("report", "timeline", "picture"):
            if getattr(self, option) is not None:
                raise ConfigError(f"--{option} shows one village, --capacity has several; drop one")


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """What this machine can do: versions, device, host memory, kernels, link, and a model's path.

    Judges each kernel by a few cases, measures the link, and names what to change. Downloads
    nothing and changes nothing. Exits with 1 if an engine could not run like this.
    """

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None
    """A model's folder, to see which path it takes and what it lacks."""
    device: str = _ENGINE.device
    """The device to examine: cpu, cuda, cuda:1, or auto, which takes a GPU where there is one."""
    disk: str | None = None
    """A folder on a disk for state, to measure it: 512 MB are written there and removed."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print facts and findings as JSON."""

    def check(self) -> None:
        """Raise ``ConfigError`` for an invalid device or a missing model, before the examination,
        which takes half a minute."""
        EngineConfig(device=self.device, disk=self.disk)
        if self.disk is not None and not Path(self.disk).is_dir():
            raise ConfigError(f"--disk {self.disk} is no folder; make it first")
        if self.model is None:
            return
        folder = Path(self.model)
        if not folder.is_dir():
            raise ConfigError(
                f"{folder} is no folder; doctor downloads nothing: give a model's local folder"
            )
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{folder} has no config.json; give a model's folder")


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """Continue one or several prompts with a model; the texts go to stdout."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A folder in Hugging Face's layout, or the id of a model on the hub."""
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """The text to continue. Give it again for more prompts; they run as one batch."""
    chat: tyro.conf.FlagCreatePairsOff[bool] = False
    """Take each prompt as a user's message and answer it through the model's chat template."""
    adapter: str | None = None
    """A folder with a LoRA adapter, as PEFT saves it, to run the model with."""
    max_tokens: Annotated[int, COUNT] = _SAMPLING.max_tokens
    """Most tokens to generate."""
    temperature: Annotated[float | None, REAL] = None
    """0 always takes the likeliest token. This and the next two: the model's own if not given."""
    top_k: Annotated[int | None, WHOLE] = None
    """Draw among the k likeliest tokens; 0: among all."""
    top_p: Annotated[float | None, REAL] = None
    """Draw among the likeliest tokens that make up this probability."""
    generation_config: tyro.conf.FlagCreatePairsOff[bool] = _ENGINE.generation_config
    """What the model's generation_config.json says of sampling holds where nothing is given."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """End the text before this string. May be given again."""
    seed: Annotated[int, SEED] = _ENGINE.seed
    """Of all sampling: the same seed gives the same texts."""
    dummy_weights: tyro.conf.FlagCreatePairsOff[bool] = False
    """Random weights: needs the model's config only."""
    device: str = _ENGINE.device
    """Where to compute: cpu, cuda, cuda:1, or auto, which takes a GPU where there is one."""
    device_memory: Annotated[str, MEMORY_OR_AUTO] = str(_ENGINE.device_memory)
    """Size of the device pool, like 20GB or 512MiB; auto: 1GB, or what a GPU has left."""
    host_memory: Annotated[str, MEMORY_OR_AUTO] = str(_ENGINE.host_memory)
    """Size of the host pool; auto: 4GB, or beside a GPU 70 % of what is available."""
    disk: str | None = _ENGINE.disk
    """A folder for state that the host pool has no room for."""
    disk_memory: Annotated[str, MEMORY_OR_AUTO] = str(_ENGINE.disk_memory)
    """Most bytes in that folder; auto: 80 % of what is free there."""
    policy: Annotated[str, tyro.conf.arg(help=f"One of: {', '.join(ENGINE_POLICIES)}.")] = (
        _ENGINE.policy
    )
    block_size: Annotated[int | None, COUNT] = _ENGINE.block_size
    """Tokens a page; chosen for the model if not given."""
    max_model_len: Annotated[int | None, COUNT] = _ENGINE.max_model_len
    """Most tokens of prompt and output; the model's own limit if not given."""

    def sampling(self) -> dict[str, Any]:
        """The fields of ``SamplingParams`` that were given; the engine checks them."""
        given = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p")}
        given = {name: value for name, value in given.items() if value is not None}
        return {"max_tokens": self.max_tokens, "stop": self.stop, **given}

    def engine(self) -> EngineConfig:
        """The engine's settings. Raises ``ConfigError``."""
        return EngineConfig(
            device=self.device,
            device_memory=self.device_memory,
            host_memory=self.host_memory,
            disk=self.disk,
            disk_memory=self.disk_memory,
            policy=self.policy,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            seed=self.seed,
            generation_config=self.generation_config,
        )


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Will this many agents fit a GPU and its host, at what rate, and what binds?

    A closed form for the long run, with the order of turns known; peak rates and the shares of them
    that are assumed are in `scalesim.replay.hardware`.
    """

    agents: Annotated[int, COUNT]
    """Agents in the simulation."""
    model: str = "qwen2.5-7b"
    """A model whose shape is known, or the path of a config.json or of its folder."""
    hardware: str = "h100"
    """A GPU whose rates are known, or the path of a JSON file with them."""
    host_memory: Annotated[str, MEMORY] = "200GB"
    """Host memory for agents' state."""
    disk: str | None = None
    """A disk for agents' state: nvme, sata, or its bytes a second, like 2GB."""
    disk_memory: Annotated[str, MEMORY] = "10TB"
    """Size of that disk."""
    active: Annotated[float, SHARE] = 0.2
    """Share of the agents that call in a tick."""
    shared: Annotated[int, WHOLE] = 0
    """Tokens of prompt that all agents have in common."""
    prefix: Annotated[int, COUNT] = 2048
    """Tokens of prompt that only the agent has, and had in its call before."""
    new: Annotated[int, COUNT] = 256
    """New tokens of prompt in a call."""
    output: Annotated[int, COUNT] = 100
    """Tokens of an answer."""
    adapter: Annotated[str, MEMORY] = "0"
    """Bytes of each agent's own adapter, like 77MB; 0: none."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the figures as JSON."""

    def disk_of(self) -> Disk | None:
        """Raises ``ConfigError``."""
        if self.disk is None:
            return None
        return Disk(parse_bytes(self.disk_memory, "--disk-memory"), disk_rate(self.disk))


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Run a program unmodified, record its calls, and show what they say: `-- python my_sim.py`.

    Its OpenAI-compatible clients are pointed here by environment variables. MODEL answers, served
    for this program alone, or the server at --upstream. Ends with one page: calls, reuse,
    predictability, how many agents would fit, how fast with and without hints, and the three
    changes that would help most. The exit code is the program's. No text and no key is kept.
    """

    serve: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None
    """The model that answers: a folder in Hugging Face's layout, or an id on the hub."""
    upstream: str | None = None
    """Instead of MODEL: the OpenAI-compatible server that answers, like
    http://localhost:8000/v1."""
    device: str = _ENGINE.device
    """Where MODEL runs: cpu, cuda, cuda:1, or auto, which takes a GPU where there is one."""
    device_memory: Annotated[str, MEMORY_OR_AUTO] = str(_ENGINE.device_memory)
    """Size of MODEL's device pool, like 20GB; auto: 1GB, or what a GPU has left."""
    model: str = "qwen2.5-7b"
    """For the estimates: a model whose shape is known, or the path of a config.json or its
    folder."""
    hardware: str = "h100"
    """For the estimates: a GPU whose rates are known, or the path of a JSON file with them."""
    host_memory: Annotated[str, MEMORY] = "200GB"
    """For the estimates: host memory for agents' state."""
    residency: Annotated[float, SHARE] = 0.25
    """For the replay: share of all agents' state that fits on the device."""
    tick: Annotated[float | None, POSITIVE] = None
    """Seconds of a tick. Without it, the program's own ticks if it says any, else a hundredth of
    the run."""
    trace: Path | None = None
    """Keep the calls in this new file, for `scalesim profile` and `scalesim replay`."""
    out: Path | None = None
    """Write the figures to this file, as JSON."""
    command: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The program and its arguments: all that follows ``--``."""

    def check(self) -> None:
        """Raise ``ConfigError`` before the program runs, whose record would be lost."""
        if not self.command:
            raise ConfigError("no program given; end with: -- python my_sim.py")
        if (self.serve is None) == (self.upstream is None):
            raise ConfigError("give a MODEL to serve, or --upstream with a server's URL")
        EngineConfig(device=self.device, device_memory=self.device_memory)
        if self.trace is not None:
            check_writable(self.trace, "--trace")
            if self.trace.exists():
                raise ConfigError(f"--trace {self.trace} exists; delete it, or give another name")
        if self.out is not None:
            check_writable(self.out, "--out")


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """What a real simulation's calls are like: a page with plots, from its log.

    Reads a trace of ScaleSim, OASIS's SQLite database, a Generative Agents call log, or requests in
    OpenAI's form, one JSON object a line. Prompts are compared and counted; none is written down.
    """

    log: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="LOG")]
    """The log."""
    format: Literal["auto", "trace", "oasis", "generative-agents", "openai"] = "auto"
    """What it is; `auto` looks."""
    out: Path = Path("profile.html")
    """The page; the figures go beside it, as JSON."""
    tick: Annotated[float | None, POSITIVE] = None
    """Seconds of one tick, for logs that have times and no steps; a hundredth of the log if not
    given."""
    day: Annotated[float | None, POSITIVE] = None
    """Ticks of a day, for the learned predictor."""

    @property
    def figures(self) -> Path:
        """The path of the JSON file."""
        return self.out.with_suffix(".json")

    def check(self) -> None:
        """Raise ``ConfigError`` if the page could not be written, before the log is read."""
        if not self.out.name:
            raise ConfigError(f"--out {self.out} is no file's name")
        for path in {self.out, self.figures}:
            check_writable(path, "--out")
            if self.log.exists() and path.exists() and path.samefile(self.log):
                raise ConfigError(
                    f"--out {self.out} would write {path}, which is the log; give another name"
                )


ReplayHints = Literal[HintMode, "learned", "recorded"]
_TRACE_HINTS: tuple[TraceHints, ...] = ("recorded", "exact", "learned", "none")
_OF_TRACES = ("format", "tick", "block_size")
_ONLY = {"active": ("w2",), "shuffled": ("w4", "w5")}
_WITH_HINTS = {"interrupts": "interrupted", "stale": "stale"}


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """Replay a workload or a trace under several policies, on hardware that need not be here.

    The engine's own scheduler, memory and planner run on a virtual clock; a hardware model says how
    long each step takes. Same seed, same table. `paper` is the published evaluation's set-up.
    """

    what: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WORKLOAD|TRACE|paper")]
    """w1 (city), w2 (feed), w3 (town), w4 (rounds), w5 (turns), paper, or a trace file."""
    policy: str = "all"
    """Names of policies with commas between them, or all."""
    hardware: str = "h100"
    """h100, h100-sxm, h200, a100, rtx4090, or the path of a JSON file with a device's rates."""
    model: str = "qwen2.5-7b"
    """qwen2.5-7b, llama-3.1-8b, llama-3.2-1b, qwen2.5-0.5b, or the path of a config.json or of its
    folder; several with commas between them are models that agents use in turn."""
    models: Annotated[int | None, COUNT] = None
    """So many models, of those shapes in turn, with their weights in the pool."""
    residency: Annotated[float | None, SHARE] = None
    """Share of all agents' state that the device pool holds, like 25% or 0.25; 25% if not given."""
    pool: Annotated[str | None, MEMORY] = None
    """Size of the device pool, like 20GB, instead of a share."""
    host_pool: Annotated[str | None, MEMORY] = None
    """Size of the host pool; four times all agents' state if not given."""
    disk: str | None = None
    """A disk below the host: nvme, sata, or its bytes a second, like 2GB; none if not given."""
    disk_pool: Annotated[str | None, MEMORY] = None
    """Size of that disk; four times all agents' state if not given."""
    running: Annotated[int | None, COUNT] = None
    """Requests that run at once; 32 if not given, or 8 where the workload is small."""
    link: Annotated[float, SHARE] = 1.0
    """Share of the link's rate."""
    order: Literal["longest", "arrival"] = "longest"
    """Of waiting requests: those first whose agents have the most to generate in the tick, or the
    oldest."""
    warmup: Annotated[int, WHOLE] = 2
    """Ticks that do not count, the opening included."""
    format: str = "auto"
    """Of a trace: scalesim, mooncake, mooncake-delta, dynamo, agentic-mooncake, applied-compute,
    azure or town; `auto` looks."""
    tick: Annotated[float | None, POSITIVE] = None
    """Of a trace in seconds: calls that come within so many are made together; 10 if not given."""
    block_size: Annotated[int | None, COUNT] = None
    """Of a mooncake trace: tokens that one of its ids stands for; 512 if not given."""
    hints: ReplayHints | None = None
    """What is known of an agent's next call. On a trace: recorded (what it says itself, the
    default), exact, learned or none."""
    ticks: Annotated[int | None, COUNT] = None
    """Ticks of the simulation; of a trace, the first so many."""
    agents: Annotated[int | None, COUNT] = None
    """Agents of a workload; its own number if not given. So with all below."""
    seed: Annotated[int | None, SEED] = None
    """Of everything that is drawn."""
    shared: Annotated[int | None, MANY_OR_0] = None
    """Tokens that all prompts begin with."""
    private: Annotated[int | None, MANY_OR_0] = None
    """Tokens of an agent's own that its prompts go on with."""
    new: Annotated[int | None, MANY] = None
    """Fresh tokens of each prompt."""
    output: Annotated[int | None, MANY] = None
    """Tokens generated by each call."""
    spread: Annotated[float | None, SIGMA] = None
    """Lognormal sigma of the last two."""
    burst: Annotated[int | None, MANY] = None
    """Calls in a row when an agent acts."""
    growth: Annotated[float | None, SHARE_OR_0] = None
    """Share of what is said that stays in the prompt."""
    active: Annotated[float | None, SHARE] = None
    """Mean share of agents that act in a tick (w2)."""
    shuffled: bool | None = None
    """Another order in each tick (w4), or in each cycle (w5)."""
    interrupts: Annotated[float | None, SHARE_OR_0] = None
    """Share of calls that come before their time, for hints interrupted."""
    stale: Annotated[int | None, WHOLE] = None
    """Ticks by which a hint is late, for hints stale."""
    wrong: Annotated[float | None, SHARE_OR_0] = None
    """Share of hints that are replaced by another draw."""

    @property
    def is_small(self) -> bool:
        """Whether the workload is made smaller, to be quick, because its size was not given."""
        return self.what in WORKLOADS and self.agents is None and self.ticks is None

    def check(self) -> None:
        """Raise ``ConfigError`` for an option that has no effect on ``what``."""
        is_workload = self.what in WORKLOADS or self.what == "paper"
        for name, value in self._given().items():
            option = f"--{name.replace('_', '-')} {value}"
            if is_workload and name in _OF_TRACES:
                raise ConfigError(f"{option} applies to trace files; {self.what} is a workload")
            if not is_workload and name not in (*_OF_TRACES, "ticks", "hints"):
                raise ConfigError(
                    f"{option} applies to workloads ({', '.join(WORKLOADS)}); {self.what} is a "
                    "trace, whose calls are what they are"
                )
            if self.what not in _ONLY.get(name, (self.what,)):
                raise ConfigError(f"{option} applies to {' and '.join(_ONLY[name])} only")
            if self.hints != _WITH_HINTS.get(name, self.hints):
                raise ConfigError(f"{option} needs --hints {_WITH_HINTS[name]}")
        if is_workload and self.hints == "recorded":
            raise ConfigError("--hints recorded applies to traces; a workload has no recorded ones")
        if self.wrong is not None and self.hints in ("none", "learned"):
            raise ConfigError(f"--wrong {self.wrong}: --hints {self.hints} gives none to replace")
        if not is_workload:
            self.trace_hints()
        if self.pool is not None and self.residency is not None:
            raise ConfigError(f"--pool {self.pool} and --residency {self.residency}: give one")
        if self.disk_pool is not None and self.disk is None:
            raise ConfigError(f"--disk-pool {self.disk_pool} needs --disk, nvme for one")

    def knobs(self) -> dict[str, Any]:
        """The parameters of the workload that were given."""
        known = {field.name for field in fields(Knobs)}
        given = {name: value for name, value in self._given().items() if name in known}
        return given | ({"hints": "none"} if self.hints == "learned" else {})

    def trace_hints(self) -> TraceHints:
        """The kind of hints for a trace. Raises ``ConfigError`` for a kind that only workloads
        have."""
        for name in _TRACE_HINTS:
            if name == (self.hints or "recorded"):
                return name
        raise ConfigError(
            f"--hints {self.hints} applies to workloads; a trace's may be {', '.join(_TRACE_HINTS)}"
        )

    def policies(self) -> tuple[str, ...]:
        """The policies to replay. Raises ``ConfigError`` for an unknown or repeated name."""
        names = tuple(REPLAY_POLICIES) if self.policy == "all" else tuple(self.policy.split(","))
        for index, name in enumerate(names):
            replay_policy(name)
            if name in names[:index]:
                raise ConfigError(f"--policy names {name} twice; once is enough")
        return names

    def _given(self) -> dict[str, Any]:
        """The options about calls and hints that were given, with their values."""
        names = [*_OF_TRACES, "hints", *(field.name for field in fields(Knobs))]
        found = {name: getattr(self, name, None) for name in dict.fromkeys(names)}
        found["format"] = None if self.format == "auto" else self.format
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Write a trace in another format: `scalesim convert run.jsonl out.jsonl --to mooncake`.

    What a format cannot say is left out: hints, adapters, and what answers and later prompts share.
    """

    trace: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TRACE")]
    """The trace to read."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """The file to write; it must not be there yet."""
    to: str
    """scalesim, mooncake, dynamo, agentic-mooncake or azure."""
    format: str = "auto"
    """What the trace is in; `auto` looks."""
    block_size: Annotated[int | None, COUNT] = None
    """Of a mooncake trace that is read: tokens that one of its ids stands for; 512 if not given."""
    out_block_size: Annotated[int | None, COUNT] = None
    """The same, of what is written."""

    def check(self) -> None:
        """Raise ``ConfigError`` if the new trace could not be written, before the old is read."""
        out = Path(self.out)
        check_writable(out, "OUT")
        if out.exists():
            raise ConfigError(f"{out} is there already; remove it or name another file")


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """Put your own allocator, policy, link or kind of state through what ScaleSim's must pass.

    Random walks over a memory of tags, everything checked after each operation; a failure is shrunk
    to the few operations that it takes. A kind of state is tried on random values. Exits with 1 if
    a failure was found.
    """

    kind: Annotated[Literal["allocator", "policy", "link", "kind"], tyro.conf.Positional]
    """What the object is a kind of."""
    object: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:NAME")]
    """A class, or what makes one; a Policy, a StateKind. Modules of the working directory are
    found."""
    walks: Annotated[int, COUNT] = 60
    """Random walks, each over a memory of its own; of a kind, rounds of values."""
    steps: Annotated[int, MANY] = 200
    """Operations in a walk; for a kind, one value to ten of them."""
    seed: Annotated[int, SEED] = 0
    """Of the first walk; each has the next one."""


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": DemoOptions,
    "doctor": DoctorOptions,
    "generate": GenerateOptions,
    "serve": ServeOptions,
    "replay": ReplayOptions,
    "convert": ConvertOptions,
    "plan": PlanOptions,
    "profile": ProfileOptions,
    "check": CheckOptions,
    "run": RunOptions,
}
"""The options of each command, by its name. ``scalesim.cli.NAME`` has the function ``NAME`` that
runs the command."""

_OLD_NAME = re.compile(r"^--step(?=s?(=|$))")
"""``--steps`` and ``--step`` are the old names of ``--ticks`` and ``--tick``; both work."""


def parse(args: Sequence[str]) -> Any:
    """The options of the command that ``args`` begin with. Raises ``ConfigError`` with one line if
    they cannot be parsed, ``SystemExit`` with 0 after ``--help``."""
    if args and args[0] in ("demo", "replay", "profile"):
        args = [_OLD_NAME.sub("--tick", word) for word in args]
    command: Sequence[str] = ()
    if args and args[0] == "run" and "--" in args:
        end = args.index("--")
        args, command = args[:end], args[end + 1 :]
    if args and args[0] == "serve":
        args = with_config_file(args)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            options = tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="scalesim", description=_ABOUT, args=args
            )
            return replace(options, command=tuple(command)) if command else options
    except SystemExit as end:
        if not end.code:
            raise
        name = args[0] if args and args[0] in COMMANDS else "COMMAND"
        help_ = f"(see scalesim {name} --help)"
        raise ConfigError(f"{in_one_line(said.getvalue())} {help_}") from None
