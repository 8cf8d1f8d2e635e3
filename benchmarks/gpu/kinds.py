"""What requests of every kind compile and capture while an engine serves: nothing.

Greedy and sampled ones, penalties, biases, masks, JSON schemas, log-probabilities, prompts of
several lengths, alone and together; then the same with adapters, of which the engine captures the
graphs when it meets the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.gpu.adapters import RandomAdapters
from benchmarks.gpu.bench import Bench, Compilations
from benchmarks.gpu.turns import SETTINGS, TINY_SETTINGS, Watch, dummy, own_runner, settings_for
from scalesim.engine.build import parts_for
from scalesim.engine.engine import Engine
from scalesim.memory.geometry import PageGeometry
from scalesim.model.adapters.folder import AdapterFolders
from scalesim.model.text.tokenizer import ByteTokenizer

SCHEMA = {
    "type": "object",
    "properties": {"say": {"enum": ["yes", "no"]}, "to": {"type": "integer", "maximum": 9}},
    "required": ["say", "to"],
    "additionalProperties": False,
}


def kinds(bench: Bench) -> list[dict[str, Any]]:
    """The parameters of a request of each kind."""
    allowed = list(range(100, 200))
    found: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 20, "min_p": 0.01},
        {"repetition_penalty": 1.1, "presence_penalty": 0.2},
        {"logit_bias": {5: 2.0}, "logprobs": 3},
        {"mask": lambda prompt, output: allowed},
    ]
    if find_spec("llguidance") is None:
        bench.report.leave_out("requests with a schema", "llguidance is not installed")
        return [params | {"ignore_eos": True} for params in found]
    return [*(params | {"ignore_eos": True} for params in found), {"json_schema": SCHEMA}]


def run(bench: Bench) -> None:
    setting = SETTINGS[1] if bench.on_gpu else TINY_SETTINGS[0]
    loaded = dummy(bench, setting.config)
    config = replace(settings_for(bench, setting, loaded, "resident"), reproducible=True)
    device = None if bench.on_gpu else bench.device
    parts = parts_for(loaded, config, bench.kernels(), tokenizer=ByteTokenizer(), device=device)
    runner, folders = own_runner(parts.runner), parts.read_adapter
    assert isinstance(folders, AdapterFolders)
    shape = loaded.config
    geometry = PageGeometry.choose(
        shape.num_layers, shape.num_kv_heads, shape.head_dim, loaded.model.dtype.itemsize
    )
    adapters = RandomAdapters(loaded, geometry, folders, rank=2 if not bench.on_gpu else 16)
    asked, rng = kinds(bench), np.random.default_rng(bench.seed)
    parts = replace(parts, runner=Watch(parts.runner), read_adapter=adapters)
    with Engine(parts) as engine, Compilations() as compiled:
        captures = runner.graphs.num_captures
        play(engine, asked, None, setting.prefix, rng)
        captured = runner.graphs.num_captures - captures
        agent = engine.agent("first", adapter="0")
        engine.generate(agent.request([1, 2, 3], max_tokens=2, temperature=0.0))
        captures = runner.graphs.num_captures
        play(engine, asked, "0", setting.prefix, rng)
        captured += runner.graphs.num_captures - captures
    bench.report.figures["compiled_while_serving"] = compiled.names
    bench.report.hold(
        "floor", "compilations while serving, requests of all kinds",
        (compiled.count or 0) + captured, most=0,
    )  # fmt: skip


def play(
    engine: Engine, asked: Sequence[dict[str, Any]], adapter: str | None, longest: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Each kind alone, then all kinds together."""
    for together in (1, len(asked)):
        for first in range(0, len(asked), together):
            requests = []
            for number, params in enumerate(asked[first : first + together], first):
                agent = engine.agent(f"{together} {number} {adapter}", adapter=adapter)
                prompt = rng.integers(0, 200, int(rng.integers(2, min(100, longest)))).tolist()
                requests.append(agent.request(prompt, max_tokens=4, **params))
            engine.run(requests)
