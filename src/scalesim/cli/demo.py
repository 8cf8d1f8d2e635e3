"""``scalesim demo``: one world under every policy, the cost of each, and whether all texts
agree."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import xxhash

from scalesim.cli.options import DemoOptions
from scalesim.cli.output import Output
from scalesim.cli.play import PlayScore, Said
from scalesim.cli.screen import Screen
from scalesim.cli.stage import Stage
from scalesim.cli.table import amount, caption, shows, table


def demo(options: DemoOptions) -> int:
    """Exit code 0, or 1 if two policies gave different texts. Raises ``ConfigError``."""
    options.check()
    torch.set_num_threads(options.threads)
    console = Output()
    begin = time.perf_counter()
    with TemporaryDirectory(prefix="scalesim-demo-") as folder:
        stage = Stage.build(options, Path(folder))
        console.print(introduction(stage, options), highlight=False)
        scores, texts = play_all(stage, options, console)
    console.print(table(scores))
    console.print(caption(scores), style="dim", highlight=False)
    console.print(f"\n{speakers(scores[0], options)}", highlight=False)
    difference = first_difference(texts)
    if difference is None:
        console.print(agreement(texts), style="bold green", highlight=False)
    else:
        console.print(f"DIFFERENT TEXTS: {difference}", style="bold red", markup=False)
    if difference is None:
        console.print(f"\n{shows(scores)}", highlight=False)
    console.print(f"[dim]{time.perf_counter() - begin:.0f} s in all[/]", highlight=False)
    return 0 if difference is None else 1


def play_all(
    stage: Stage, options: DemoOptions, console: Output
) -> tuple[list[PlayScore], dict[str, list[Said]]]:
    """Run every policy on an engine of its own, side by side. Returns the scores, and all
    utterances by policy.

    In each round of the world, the policies run one after another, in alternating order, so that a
    slow minute of the machine affects all of them alike.
    """
    with ExitStack() as stack:
        plays = [stack.enter_context(stage.play(policy)) for policy in options.policies]
        screen = stack.enter_context(Screen(console, options.policies, options.ticks))
        for play in plays:
            screen.warms_up(play.policy)
            play.warm_up()
        for _ in range(options.ticks):
            going = plays
            while going:
                going = [play for play in reversed(going) if play.round()]
            for play in plays:
                screen.played(play.score, play.world.news)
        return [play.score for play in plays], {play.policy: play.said for play in plays}


def introduction(stage: Stage, options: DemoOptions) -> str:
    pool = stage.device_bytes - stage.page_bytes
    return (
        f"[bold]{options.agents} agents in a small world.[/] Each owns about "
        f"{amount(stage.state_bytes / options.agents)} of KV, {amount(stage.state_bytes)} in all; "
        f"the device pool holds {amount(pool)}, the state of {options.resident} agents. An agent "
        "speaks when an action of its plan ends; the engine is told how far off that is.\n"
        f"The model is random ({stage.num_params / 1e6:.1f} M parameters, over bytes): what it "
        "says is noise, but the work is real, and what an agent says decides what it does next.\n"
    )


def speakers(score: PlayScore, options: DemoOptions) -> str:
    share = score.speakers / (options.ticks * options.agents)
    return (
        f"{score.engine.calls} calls in {options.ticks} ticks, each policy; "
        f"{share:.0%} of the agents spoke in a tick."
    )


def agreement(texts: Mapping[str, Sequence[Said]]) -> str:
    said = next(iter(texts.values()))
    return (
        f"same texts: all {len(said)} utterances, and the logits behind them, are the same under "
        f"{len(texts)} policies ({digest(said)})"
    )


def first_difference(texts: Mapping[str, Sequence[Said]]) -> str | None:
    """The first utterance of a policy that differs from the first policy's; ``None`` if all are
    equal."""
    (reference, expected), *others = texts.items()
    for policy, said in others:
        for ours, theirs in zip_longest(expected, said):
            if ours != theirs:
                return (
                    f"{reference} ({digest(expected)}) and {policy} ({digest(said)}) part at "
                    f"{describe(ours)} and {describe(theirs)}"
                )
    return None


def describe(said: Said | None) -> str:
    if said is None:
        return "the end"
    return f"tick {said.tick}, {said.who}: {said.text!r} (logits {said.logits:016x})"


def digest(said: Sequence[Said]) -> str:
    """The xxh3-64 of all utterances, in order."""
    state = xxhash.xxh3_64()
    for utterance in said:
        fields = f"{utterance.tick} {utterance.who} {utterance.token_ids} {utterance.logits}\n"
        state.update(fields.encode())
    return state.hexdigest()
