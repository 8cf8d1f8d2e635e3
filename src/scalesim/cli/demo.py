"""``scalesim demo``: one village under every policy, the cost of each, and whether all texts
agree."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext

import torch
from rich.console import RenderableType
from rich.text import Text

from scalesim.cli.capacity import capacity
from scalesim.cli.options import DemoOptions
from scalesim.cli.output import Output
from scalesim.cli.picture import write_picture
from scalesim.cli.play import Play, PlayScore, Said, play_tick
from scalesim.cli.report import write_report
from scalesim.cli.same_texts import agreement, first_difference
from scalesim.cli.screen import WIDE, Screen
from scalesim.cli.stage import Stage
from scalesim.cli.table import amount, caption, table, verdict
from scalesim.cli.timeline import write_timeline
from scalesim.cli.watch import DemoLog, DemoWatch


def demo(options: DemoOptions) -> int:
    """Exit code 0, or 1 if two policies gave different texts. Raises ``ConfigError``."""
    options.check()
    torch.set_num_threads(options.threads)
    console = Output()
    if options.capacity is not None:
        return capacity(options, options.capacity, console)
    begin = time.perf_counter()
    stage = Stage.build(options)
    console.print(introduction(stage, options), highlight=False)
    watch = DemoWatch() if options.report or options.timeline else None
    scores, texts, picture = play_all(stage, options, console, watch)
    console.print(table(scores))
    console.print(caption(scores), style="dim", highlight=False)
    console.print(f"\n{speakers(scores[0], options)}", highlight=False)
    difference = first_difference(texts)
    if difference is None:
        console.print(agreement(texts), style="bold green", highlight=False)
        found = verdict(scores, options.agents, options.resident)
        console.print(f"\n{found}", highlight=False)
    else:
        console.print(f"DIFFERENT TEXTS: {difference}", style="bold red", markup=False)
    if watch is not None:
        write_files(options, stage, scores, watch.log, texts)
    if options.picture is not None:
        found = verdict(scores, options.agents, options.resident)
        write_picture(options.picture, "scalesim demo", [picture, table(scores), found])
    words_s, all_s = scores[0].first_words_at - begin, time.perf_counter() - begin
    console.print(
        f"[dim]first words after {words_s:.0f} s, {all_s:.0f} s in all[/]", highlight=False
    )
    return 0 if difference is None else 1


def write_files(
    options: DemoOptions,
    stage: Stage,
    scores: Sequence[PlayScore],
    log: DemoLog,
    texts: Mapping[str, Sequence[Said]],
) -> None:
    """Write the report and the timeline that were asked for. Raises ``OSError``."""
    if options.timeline is not None:
        write_timeline(log, stage.page_bytes, options.timeline)
    if options.report is not None:
        said = next(iter(texts.values()))
        about = plain(introduction(stage, options))
        found = plain(verdict(scores, options.agents, options.resident))
        write_report(options.report, about, found, scores, log, said)


def plain(markup: str) -> str:
    """A text without rich's markup."""
    return Text.from_markup(markup).plain


def play_all(
    stage: Stage, options: DemoOptions, console: Output, watch: DemoWatch | None = None
) -> tuple[list[PlayScore], dict[str, list[Said]], RenderableType]:
    """Run every policy on an engine of its own, side by side. Returns the scores, all texts by
    policy, and what a wide live view shows in the end."""
    with ExitStack() as stack:
        plays = [stack.enter_context(stage.play(policy)) for policy in options.policies]
        screen = stack.enter_context(Screen(console, plays, options.ticks))
        for play in plays:
            screen.opens(play)
            for _ in play.opening():
                screen.opens(play)

        def play_round(play: Play) -> bool:
            with nullcontext() if watch is None else watch.round(play):
                goes_on = play.round()
            screen.played(play)
            return goes_on

        for _ in range(options.ticks):
            play_tick(plays, play_round)
        scores, texts = [play.score for play in plays], {play.policy: play.said for play in plays}
        return scores, texts, screen.picture(WIDE)


def introduction(stage: Stage, options: DemoOptions) -> str:
    pool = stage.device_bytes - stage.page_bytes
    voices = f"{len(stage.voices)} adapters give people their voices. " if stage.voices else ""
    return (
        f"[bold]{options.agents} agents live in a village.[/] Each owns about "
        f"{amount(stage.state_bytes / options.agents)} of KV, {amount(stage.state_bytes)} in all; "
        f"the device pool holds {amount(pool)}, the state of {options.resident} agents. An agent "
        "is asked when a task of its plan ends or somebody is met. How far off that is, its "
        "invocation distance, is told to the engine, and the policy deadline goes by it. "
        f"A model of {stage.num_params / 1e6:.1f} M parameters speaks, and what it says "
        f"decides what happens next. {voices}{stage.pace}\n"
    )


def speakers(score: PlayScore, options: DemoOptions) -> str:
    share = score.speakers / (options.ticks * options.agents)
    return (
        f"{score.engine.calls} calls in {options.ticks} ticks, each policy; {share:.0%} of the "
        f"agents spoke in a tick; {score.valid_actions:.0%} of the actions were valid."
    )
