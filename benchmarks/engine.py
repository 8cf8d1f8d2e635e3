"""Our engine against transformers on one random model: many agents' dialogues, turn by turn, on a
CPU.

The peer runs in length-equal batches, without a cache across turns and with one kept for every
agent; the best batch size counts. Our arms: everything resident; a pool of a quarter of all
agents' state, with hints and without; and resident without reproducible mode. Arms take turns
within the run. Texts are compared: ours must be equal, and the peer's may differ only where two
tokens all but tie.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table

from benchmarks.dialogues import Dialogues, Played, Rates, make_dialogues
from benchmarks.ours import Arm, Ours
from benchmarks.peer import CacheKind, Peer
from benchmarks.peers import PEERS as ENGINES
from benchmarks.peers import compare_peers
from benchmarks.report import Report, num_cores, table
from scalesim.core import Int32s
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.loader import load_model
from scalesim.model.layers.rope import RopeConfig
from tests.model_folders import write_dummy_model

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=4096,
    hidden_size=384,
    intermediate_size=1024,
    num_layers=11,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    max_position=2048,
    rms_eps=1e-5,
    rope=RopeConfig(),
)  # 20.4 M parameters
TINY = replace(
    MODEL, vocab_size=512, hidden_size=128, intermediate_size=256, num_layers=2, num_heads=2,
    num_kv_heads=1,
)  # fmt: skip
QUICK: dict[str, Any] = {"agents": 8, "turns": 3, "prefix": 64, "new": 16, "output": 8, "rounds": 1,
         "batches": [1, 8], "screen_agents": 8, "decodes": 16}  # fmt: skip
TUNED = ((8, 16, 32, 64), (512, 1024, 2048))  # max_num_seqs, max_num_batched_tokens
QUARTER = 0.25
NEAR_TIE = 1e-3  # of the logits' standard deviation
PEERS: dict[str, CacheKind] = {
    "transformers, no cross-turn cache": "turn",
    "transformers, DynamicCache per agent": "agent",
}
NO_CACHE, CACHED = PEERS
OURS = {
    "resident": Arm("resident"),
    "resident, a quarter running": Arm("resident", share=QUARTER),
    "deadline, 25 % pool, hints": Arm("deadline", QUARTER, hints=True),
    "lru-swap, 25 % pool": Arm("lru-swap", QUARTER),
    "resident, not reproducible": Arm("resident", reproducible=False),
}
RESIDENT, QUARTER_RUNNING, DEADLINE, _, FREE = OURS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--agents", type=int, default=64)
    add("--turns", type=int, default=4)
    add("--prefix", type=int, default=512, help="tokens of each agent's private prefix")
    add("--new", type=int, default=32, help="tokens that each turn adds to the prompt")
    add("--output", type=int, default=32, help="tokens that each turn generates")
    add("--rounds", type=int, default=2, help="how often each arm plays (the first once)")
    add("--batches", type=int, nargs="+", default=[1, 8, 16, 32], help="the peer's, best counts")
    add("--screen-agents", type=int, default=32, help="agents for choosing the peer's batch size")
    add("--max-num-seqs", type=int, default=64, help="ours, the same for all arms")
    add("--max-num-batched-tokens", type=int, default=1024, help="ours, the same for all arms")
    add("--threads", type=int, default=num_cores(), help="of torch, in every arm")
    add("--decodes", type=int, default=64, help="decode steps of the separate measurement")
    add("--static", action="store_true", help="also a StaticCache per agent, for reference")
    add("--peer", choices=ENGINES, help="only our engine beside this one, each in a process")
    add("--peer-python", default=sys.executable, help="the interpreter of the peer's environment")
    add(
        "--pools",
        type=float,
        nargs="+",
        default=[1.0, 0.25],
        help="with --peer: device memory of both sides, as a share of all agents' state",
    )
    add("--model", type=Path, help="with --peer: a checkpoint's folder instead of a random model")
    add("--plot", type=Path, help="with --peer: write warm turns a second by memory to this SVG")
    add("--tune", action="store_true", help="only try settings of ours, resident, and stop")


class Chosen(NamedTuple):
    kind: CacheKind
    batch: int


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        vars(options).update(QUICK)
    torch.set_num_threads(options.threads)
    model = TINY if options.quick else MODEL
    longest = options.prefix + options.turns * (options.new + options.output)
    model = replace(model, max_position=max(model.max_position, longest + 1))
    if options.peer:
        return compare_peers(options, model)
    dialogues = make_dialogues(
        options.agents, options.turns, options.prefix, options.new, options.output,
        model.vocab_size, options.seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_dummy_model(Path(folder), model, options.seed)
        loaded = load_model(folder)
        if options.tune:
            return tune(dialogues, lambda seqs, tokens: Ours(loaded, seqs, tokens))
        ours = Ours(loaded, options.max_num_seqs, options.max_num_batched_tokens)
        return compare(options, dialogues, ours, Peer(Path(folder)))


def compare(
    options: argparse.Namespace, dialogues: Dialogues, ours: Ours, peer: Peer
) -> Report:  # fmt: skip
    report = Report("engine")
    ours.play(dialogues.first(2), OURS[RESIDENT])  # warm up both
    peer.play(dialogues.first(2), 2, "agent")
    chosen = screen(options, dialogues, peer, report)
    arms: dict[str, Callable[[], Played]] = {}
    for name, (kind, batch) in chosen.items():
        arms[name] = partial(peer.play, dialogues, batch, kind)
    for name, arm in OURS.items():
        arms[name] = partial(ours.play, dialogues, arm)
    played: dict[str, list[Played]] = defaultdict(list)
    for turn in range(options.rounds):
        for name, play in arms.items():
            if turn == 0 or name != NO_CACHE:  # by far the longest, and the ratio farthest away
                played[name].append(play())
    rates = measure_rates(options, dialogues, ours, peer, chosen)
    compare_texts(report, dialogues, played, peer)
    fill(report, played, rates, chosen)
    return report


def screen(
    options: argparse.Namespace, dialogues: Dialogues, peer: Peer, report: Report
) -> dict[str, Chosen]:
    """Every batch size on some agents: the turns are the same, so is the rate."""
    kinds = dict(PEERS)
    if options.static:
        kinds["transformers, StaticCache per agent"] = "static"
    rows, chosen, found = [], {}, {}
    for name, kind in kinds.items():
        rates = {}
        for batch in options.batches:
            few = dialogues.first(max(batch, min(options.screen_agents, 8 * batch)))
            rate = peer.play(few, batch, kind)
            rates[batch] = rate.total_rate
            rows.append([name, str(batch), str(few.num_agents), f"{rate.total_rate:.2f}",
                         f"{rate.warm_rate:.2f}"])  # fmt: skip
        chosen[name] = Chosen(kind, max(rates, key=lambda batch: rates[batch]))
        found[name] = rates
    few = dialogues.first(min(options.screen_agents, 8))
    generated = peer.play_generate(few, few.num_agents)
    rows.append(["generate(), no cross-turn cache", str(few.num_agents), str(few.num_agents),
                 f"{generated.total_rate:.2f}", f"{generated.warm_rate:.2f}"])  # fmt: skip
    report.figures["screening"] = {**found, "generate": {few.num_agents: generated.total_rate}}
    columns = ["transformers' batch sizes", "batch", "agents", "turns/s", "warm turns/s"]
    report.tables.append(table("Choosing the peer's batch size", columns, rows))
    return chosen


def measure_rates(
    options: argparse.Namespace, dialogues: Dialogues, ours: Ours, peer: Peer,
    chosen: Mapping[str, Chosen],
) -> dict[str, Rates]:  # fmt: skip
    count = max(options.max_num_seqs, *(each.batch for each in chosen.values()))
    few = dialogues.first(min(count, dialogues.num_agents))
    few = replace(few, new=few.new[:, :1], output_len=options.decodes)  # sizes pools for it
    found = {
        name: peer.rates(few.prefixes, each.batch, options.decodes)
        for name, each in chosen.items()
    }  # fmt: skip
    for name in (RESIDENT, FREE):
        found[name] = ours.rates(few, OURS[name], options.decodes)
    return found


# -- texts ------------------------------------------------------------------------------------


def compare_texts(
    report: Report, dialogues: Dialogues, played: Mapping[str, list[Played]], peer: Peer
) -> None:
    """Ours must agree wherever they are reproducible; others where no two tokens all but tie."""
    want = played[RESIDENT][0].outputs
    counts, worst = {}, {}
    for name, plays in played.items():
        counts[name] = max(num_differing(play.outputs, want) for play in plays)
        worst[name] = max(largest_gap(dialogues, p.outputs, want, peer) for p in plays)
    report.figures["differing_turns"] = counts
    report.figures["largest_gap_at_first_difference"] = worst
    equal = sum(counts[name] for name, arm in OURS.items() if arm.reproducible)
    report.verdict("turns whose text differs among our reproducible arms", equal, most=0)
    gap = max(worst.values())
    report.verdict("largest gap where a text first differs from the peer's", gap, most=NEAR_TIE,
                   unit=" σ")  # fmt: skip


def num_differing(outputs: Int32s, others: Int32s) -> int:
    return int((outputs != others).any(axis=2).sum())


def largest_gap(dialogues: Dialogues, outputs: Int32s, others: Int32s, peer: Peer) -> float:
    """How many standard deviations the two tokens' logits are apart where texts first differ."""
    gaps = [0.0]
    for agent in (outputs != others).any(axis=(1, 2)).nonzero()[0]:
        turn, at = np.argwhere(outputs[agent] != others[agent])[0]
        before = [dialogues.prefixes[agent]]
        for earlier in range(turn):
            before += [dialogues.new[agent, earlier], outputs[agent, earlier]]
        before += [dialogues.new[agent, turn], outputs[agent, turn, :at]]
        logits = peer.logits(np.concatenate(before))
        apart = logits[outputs[agent, turn, at]] - logits[others[agent, turn, at]]
        gaps.append(float(abs(apart) / logits.std()))
    return max(gaps)


# -- the report -------------------------------------------------------------------------------


def fill(
    report: Report,
    played: Mapping[str, list[Played]],
    rates: Mapping[str, Rates],
    chosen: Mapping[str, Chosen],
) -> None:
    total = {n: statistics.median(p.total_rate for p in plays) for n, plays in played.items()}
    warm = {n: statistics.median(p.warm_rate for p in plays) for n, plays in played.items()}
    cost = total[FREE] / total[RESIDENT] - 1
    report.figures |= {
        "batches": {name: each.batch for name, each in chosen.items()},
        "turns_per_s": total,
        "warm_turns_per_s": warm,
        "seconds_of_turns": {n: [p.turn_s for p in plays] for n, plays in played.items()},
        "rates": {name: asdict(rate) for name, rate in rates.items()},
        "facts": {name: played[name][-1].facts for name in OURS},
        "cost_of_reproducible_mode": cost,
    }
    report.tables += [
        _turns_table(total, warm, chosen, report.figures["differing_turns"]),
        _rates_table(played, rates),
        _memory_table(played),
    ]
    report.notes.append(f"reproducible mode costs {cost:.1%} of turns/s (resident, same settings)")
    report.verdict("resident over no cross-turn cache", total[RESIDENT] / total[NO_CACHE], least=3)
    report.verdict("resident over DynamicCache", total[RESIDENT] / total[CACHED], least=1.2)
    report.verdict("25 % pool over resident", total[DEADLINE] / total[RESIDENT], least=0.9)
    report.verdict(
        "25 % pool over resident with as many running as the pool holds",
        total[DEADLINE] / total[QUARTER_RUNNING],
        least=0.9,
    )


def _turns_table(
    total: Mapping[str, float],
    warm: Mapping[str, float],
    chosen: Mapping[str, Chosen],
    differing: Mapping[str, int],
) -> Table:
    columns = ["arm", "batch", "turns/s", "warm turns/s", "× no cache", "× DynamicCache",
               "warm × no cache", "warm × Dyn.", "÷ resident", "turns differing"]  # fmt: skip
    rows = [
        [name, str(chosen[name].batch) if name in chosen else "",
         f"{total[name]:.2f}", f"{warm[name]:.2f}",
         f"{total[name] / total[NO_CACHE]:.2f}", f"{total[name] / total[CACHED]:.2f}",
         f"{warm[name] / warm[NO_CACHE]:.2f}", f"{warm[name] / warm[CACHED]:.2f}",
         f"{total[name] / total[RESIDENT]:.3f}", str(differing[name])]
        for name in total
    ]  # fmt: skip
    return table("Turns a second: all turns with the first prefill; warm = without the first turn",
                 columns, rows)  # fmt: skip


def _rates_table(played: Mapping[str, list[Played]], rates: Mapping[str, Rates]) -> Table:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    rows = []
    for name in played:
        rate, facts = rates.get(name), played[name][-1].facts
        whole = facts["floor_s"] / facts["compute_s"] if facts else None
        more = rate.facts if rate else {}
        rows.append(
            [name, f"{rate.prefill:.0f}" if rate else "", f"{rate.decode:.0f}" if rate else "",
             share(more.get("prefill_floor")), share(more.get("decode_floor")), share(whole)]
        )  # fmt: skip
    columns = [
        "arm",
        "prefill tok/s",
        "decode tok/s",
        "floor share, prefill",
        "decode",
        "whole run",
    ]
    return table("Prefill and decode apart; share of the time that bare matmuls take",
                 columns, rows)  # fmt: skip


def _memory_table(played: Mapping[str, list[Played]]) -> Table:
    names = ["steps", "full_hits", "demand_loads", "loaded_pages", "saved_pages", "preemptions",
             "cached_tokens", "prompt_tokens", "stall_s"]  # fmt: skip
    rows = []
    for name in OURS:
        facts = played[name][-1].facts
        rows.append([name, *(f"{facts[each]:g}" for each in names[:-1]), f"{facts['stall_s']:.2f}"])
    return table("Memory, last round", ["arm", *names], rows)


def tune(dialogues: Dialogues, make: Callable[[int, int], Ours]) -> Report:
    """Our settings against one another."""
    report = Report("engine, settings of ours")
    rows: list[list[str]] = []
    for seqs in TUNED[0]:
        for tokens in TUNED[1]:
            ours = make(seqs, tokens)
            rates = {
                name: ours.play(dialogues, OURS[name]).total_rate for name in (RESIDENT, DEADLINE)
            }  # fmt: skip
            report.figures[f"{seqs}, {tokens}"] = rates
            rows.append([f"{seqs}, {tokens}", *(f"{rate:.2f}" for rate in rates.values())])
    columns = ["max_num_seqs, max_num_batched_tokens", RESIDENT, DEADLINE]
    report.tables.append(table(f"Turns a second of {dialogues.num_agents} agents", columns, rows))
    return report
