"""``python -m tools.village STEP``: makes the village's model, a step after another.

text: print some of the training text. tokens: train the tokenizer. train: train the model, going on
from the checkpoint if there is one, and export it. export: write the checkpoint's weights into the
model's folder. voices: train the voices' adapters. card: measure, and write the card.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tools.village.train import Run

MODEL = Path("src/scalesim/village/model")


def main() -> None:
    options = parser().parse_args()
    STEPS[options.step](options)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m tools.village",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("step", choices=list(STEPS))
    found.add_argument("--model", type=Path, default=MODEL, help="the model's folder")
    found.add_argument("--seed", type=int, default=0, help="of tokenizer and training")
    found.add_argument("--steps", type=int, default=2600, help="of training")
    found.add_argument("--checkpoint", type=Path, default=Path("village.pt"))
    found.add_argument("--stop-at", help="a time of today, UTC, as 14:30: training ends before it")
    return found


def text(options: argparse.Namespace) -> None:
    from tools.village.corpus import documents

    for messages in islice(documents(options.seed), 5):
        print(*(f"{each['role']:>9}  {each['content']}" for each in messages), sep="\n", end="\n\n")


def tokens(options: argparse.Namespace) -> None:
    from tools.village.tokens import save_tokenizer, train_tokenizer

    save_tokenizer(train_tokenizer(options.seed), options.model)


def train(options: argparse.Namespace) -> None:
    run_of(options).train(options.checkpoint)
    export(options)


def export(options: argparse.Namespace) -> None:
    from tools.village.train import save_model

    run = run_of(options)
    run.load(options.checkpoint)
    save_model(run.model, options.model)


def voices(options: argparse.Namespace) -> None:
    from tools.village.adapters import train_adapter
    from tools.village.voices import VOICES

    for voice in VOICES:
        folder = options.model / "voices" / voice.name
        train_adapter(options.model, tokenizer_of(options), voice, folder)


def card(options: argparse.Namespace) -> None:
    from tools.village import card as writer
    from tools.village.adapters import own_is_best

    run = run_of(options)
    run.load(options.checkpoint)
    folder = options.model / "voices"
    best = own_is_best(options.model, tokenizer_of(options), folder) if folder.is_dir() else None
    page = writer.card(writer.judge(options.model), run.step, best)
    (options.model / "README.md").write_text(page)
    print(page)


def run_of(options: argparse.Namespace) -> Run:
    from tools.village.train import Recipe, Run

    stop_at = None
    if options.stop_at is not None:
        hour, minute = map(int, options.stop_at.split(":"))
        now = datetime.now(timezone.utc)
        stop_at = now.replace(hour=hour, minute=minute, second=0).timestamp()
    return Run(Recipe(options.steps, options.seed, stop_at=stop_at), tokenizer_of(options))


def tokenizer_of(options: argparse.Namespace) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(options.model / "tokenizer.json"))


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    each.__name__: each for each in (text, tokens, train, export, voices, card)
}

if __name__ == "__main__":
    main()
