"""Structured output over many JSON schemas: is each finished text valid by the package jsonschema?

A model with random weights writes one text for each schema that llguidance accepts, in batches,
in a device pool too small for them. A finished text must be valid; one that met ``max_tokens`` must
be a beginning that the grammar takes. Schemas are drawn by a seeded generator over the keywords of
the JSON Schema Test Suite; ``--suite`` takes those of a copy of the suite first (the source
distribution of jsonschema has one, in json/tests).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.report import Report, table
from benchmarks.schemas import Case, drawn, of_suite
from scalesim.engine.build import parts_for, with_settings
from scalesim.engine.engine import Engine
from scalesim.errors import StructureError
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.loader import load_model
from scalesim.model.layers.rope import RopeConfig
from scalesim.model.text.tokenizer import ByteTokenizer
from scalesim.requests.reply import Reply
from scalesim.sampling.grammar import Structures
from scalesim.sampling.params import SamplingParams
from tests.model_folders import write_dummy_model

TOKENIZER = ByteTokenizer()
SHAPE = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=TOKENIZER.vocab_size, hidden_size=32,
    intermediate_size=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
    max_position=4096, rms_eps=1e-5, rope=RopeConfig(),
)  # fmt: skip
# Random weights hardly ever close a string: the characters that do are made likelier.
CLOSING = {ord('"'): 4.0, ord("}"): 3.0, ord("]"): 3.0, ord("0"): 1.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--schemas", type=int, default=1000, help="that llguidance accepts")
    add("--suite", type=Path, help="the folder tests of the JSON Schema Test Suite")
    add("--max-tokens", type=int, default=600)
    add("--batch", type=int, default=50, help="requests handed in together")
    add("--pages", type=int, default=64, help="of 16 tokens, in the device pool")


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        options.schemas, options.max_tokens, options.batch = 30, 200, 15
    report = Report("structure")
    with TemporaryDirectory() as folder, engine_on(Path(folder), options.pages) as engine:
        structures = engine.model.structures
        assert structures is not None
        cases, refused = accepted(structures, options)
        outcomes = Counter[str]()
        failures: list[str] = []
        for start in range(0, len(cases), options.batch):
            part = cases[start : start + options.batch]
            for case, reply in zip(part, written(engine, part, options), strict=True):
                kind, words = judged(case, reply, structures)
                outcomes[kind] += 1
                if words:
                    failures.append(f"{case.name}: {words}")
        preemptions = engine.parts.memory.counters.preemptions
    finished = outcomes["valid"] + outcomes["not valid"]
    rows = [[kind, str(count)] for kind, count in sorted(outcomes.items())]
    report.tables.append(table(f"{len(cases)} schemas", ["outcome", "texts"], rows))
    reasons = [[reason, str(count)] for reason, count in refused.most_common(12)]
    report.tables.append(table("Refused when compiled", ["reason", "schemas"], reasons))
    report.verdict("finished texts that are valid", outcomes["valid"] / max(finished, 1), least=1.0)
    report.verdict("texts that finished", finished / len(cases), least=0.9)
    report.verdict("others that the grammar does not take", outcomes["not a beginning"], most=0)
    report.notes += [*failures[:20], f"{preemptions} preemptions"]
    report.figures = {"outcomes": dict(outcomes), "refused": dict(refused), "failures": failures,
                      "from_suite": sum(not c.name.startswith("drawn") for c in cases)}  # fmt: skip
    return report


def engine_on(folder: Path, pages: int) -> Engine:
    write_dummy_model(folder, SHAPE, seed=1)
    page_bytes = 2 * 16 * 16 * 4
    config = with_settings(None, {
        "device_memory": page_bytes * (pages + 1), "host_memory": 0, "block_size": 16,
        "max_num_seqs": 32, "safe_point_tokens": 16,
    })  # fmt: skip
    return Engine(parts_for(load_model(folder), config, tokenizer=TOKENIZER))


def accepted(
    structures: Structures, options: argparse.Namespace
) -> tuple[list[Case], Counter[str]]:
    """So many cases that compile, and why the others before them did not."""
    given: Iterator[Case] = of_suite(options.suite) if options.suite else iter(())
    cases: list[Case] = []
    refused = Counter[str]()
    for case in chain(given, drawn(options.seed)):
        try:
            structures.compile(SamplingParams(json_schema=json.dumps(case.schema)))
        except StructureError as error:
            reason = str(error).partition("compiled: ")[2] or str(error)
            refused[reason.split(":")[0].split('["')[0][:70]] += 1
            continue
        cases.append(case)
        if len(cases) == options.schemas:
            break
    return cases, refused


def written(
    engine: Engine, cases: list[Case], options: argparse.Namespace
) -> list[Reply | Exception]:
    requests = []
    for case in cases:
        agent = engine.agent(case.name)
        requests.append(agent.request(
            f"{case.name}\n", json_schema=json.dumps(case.schema), logit_bias=CLOSING,
            max_tokens=options.max_tokens, seed=options.seed,
        ))  # fmt: skip
    return engine.run(requests, return_exceptions=True)


def judged(case: Case, reply: Reply | Exception, structures: Structures) -> tuple[str, str]:
    """(outcome, what is wrong)."""
    if isinstance(reply, Exception):
        return type(reply).__name__, str(reply)
    make = structures.compile(SamplingParams(json_schema=json.dumps(case.schema)))
    assert make is not None
    if reply.finish_reason == "length":
        taken = make().matcher.try_consume_tokens(list(reply.token_ids))
        whole = taken == len(reply.token_ids)
        return ("unfinished" if whole else "not a beginning"), ""
    fault = fault_of(case, reply.text or "")
    return ("not valid", fault) if fault else ("valid", "")


def fault_of(case: Case, text: str) -> str:
    """Why ``text`` does not satisfy the schema; empty where it does."""
    import jsonschema

    classes: dict[str, Any] = {
        "draft2020-12": jsonschema.Draft202012Validator,
        "draft2019-09": jsonschema.Draft201909Validator,
        "draft7": jsonschema.Draft7Validator,
        "draft6": jsonschema.Draft6Validator,
        "draft4": jsonschema.Draft4Validator,
    }
    try:
        value = json.loads(text)
        validator = classes[case.draft]
        validator(case.schema, format_checker=validator.FORMAT_CHECKER).validate(value)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{text[:200]!r}: {str(error).splitlines()[0][:200]}"
    return ""
