"""``python -m tests.long NAME [NAME ...]``: run campaigns of the long tier; ``all`` is every one.

Each prints a line: what was done, of what goal, from which seeds, in how much processor time.
``--resume FILE`` keeps and continues where it stopped. Exit code 1 if a seed failed: it prints how
to replay it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tests.engine import interrupts
from tests.long import (
    on_callers,
    on_clients,
    on_faults,
    on_models,
    on_programs,
    on_tags,
    on_updates,
)
from tests.long.campaign import Campaign, load, pursue
from tests.snapshot import damage, kills

CAMPAIGNS = {
    each.name: each
    for each in (
        Campaign(
            "operations",
            "operations",
            1_000_000,
            "operations on pools of 1 to 64 pages; books and contents compared after each",
            on_tags.operations,
            least=1_000,
        ),
        Campaign(
            "schedules",
            "schedules",
            10_000,
            "requests' lives under hostile schedules; books compared after each operation",
            on_tags.schedules,
            least=100,
        ),
        Campaign(
            "aborts",
            "aborts",
            100_000,
            "aborts at random phases; in the end every page is free",
            on_tags.aborts,
            least=500,
        ),
        Campaign(
            "faults",
            "faulted runs",
            lambda: len(on_faults.cases()),
            "every part fails at its N-th call, once or for ever; then nobody is lost",
            on_faults.run,
            least=50,
        ),
        Campaign(
            "updates",
            "updates",
            10_000,
            "hot updates of adapters under load; each text is that of the weights of its hand-in",
            on_updates.run,
            least=50,
        ),
        Campaign(
            "replacements",
            "replacements",
            1_000,
            "models are replaced under load; each text is that of the weights of its hand-in",
            on_updates.replacements,
            least=20,
        ),
        Campaign(
            "callers",
            "bad callers",
            len(on_callers.CASES),
            "hostile values beside a workload, checked and unchecked; its texts and pages compared",
            on_callers.run,
            least=20,
        ),
        Campaign(
            "disconnects",
            "disconnects",
            10_000,
            "clients of the server leave at random moments; others are answered, nothing is left",
            on_clients.disconnects,
            least=50,
        ),
        Campaign(
            "gather",
            "calls",
            sum(on_clients.CROWDS),
            "calls of the OpenAI SDK in ever larger gathers, up to 10 000; none is refused",
            on_clients.gather,
        ),
        Campaign(
            "interrupts",
            "interrupted calls",
            lambda: len(interrupts.cases()),
            "Ctrl-C at every point of every kind of call; nothing is held, nothing runs on",
            interrupts.seed,
            least=50,
        ),
        Campaign(
            "interleavings",
            "cases",
            7,
            "every interleaving of small cases; books compared in every state, texts at every end",
            on_tags.interleavings,
        ),
        Campaign(
            "swaps",
            "schedules",
            1_000,
            "games of a tiny model on hostile streams; tokens and logits' bits against no swaps",
            on_models.swaps,
            least=10,
        ),
        Campaign(
            "orders",
            "runs",
            256,
            "batch sizes 1 to 64, pools, policies, chunks, orders of threads; every logit's bits",
            on_models.orders,
            least=8,
        ),
        Campaign(
            "kills",
            "kills",
            200,
            "programs with a snapshot a tick, killed by SIGKILL at random calls of functions; "
            "texts and values compared, no more than the open tick is repeated",
            kills.run,
            least=10,
        ),
        Campaign(
            "damage",
            "damages",
            10_000,
            "bits flipped and ends cut off in snapshots; each is seen, none crashes, texts and "
            "values compared",
            damage.run,
            least=100,
        ),
        Campaign(
            "hostile",
            "programs",
            1_000,
            "random programs over the public API, smallest pools; texts against transformers, and "
            "nothing is left behind",
            on_programs.run,
            least=10,
        ),
    )
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tests.long", description=__doc__)
    top.add_argument("names", nargs="+", choices=[*CAMPAIGNS, "all"], metavar="NAME")
    top.add_argument("--seed", type=int, default=0, help="the first")
    top.add_argument("--count", type=int, help="units in all; the campaign's goal if not given")
    top.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="of processor time each; the campaign's least is done in any case",
    )
    top.add_argument("--resume", type=Path, help="a file that keeps how far each has come")
    return top


def main() -> int:
    options = parser().parse_args()
    torch.set_num_threads(1)  # the models are so small that a second one costs
    names = list(CAMPAIGNS) if "all" in options.names else options.names
    sound = True
    for name in names:
        campaign = CAMPAIGNS[name]
        state = load(options.resume, campaign, options.seed)
        count = campaign.size if options.count is None else options.count
        sound &= pursue(campaign, state, count=count, seconds=options.seconds, path=options.resume)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
