"""The model's card: what the model is, and how good, measured on text that it was not trained on.

A sentence counts as well-formed if it begins and ends as one, and every two neighbouring words of
it are neighbours somewhere in a large sample of the grammar's text, names apart.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from scalesim import Engine, Request, SamplingParams
from scalesim.village.actions import read_action
from scalesim.village.people import FIRST
from tools.village.corpus import Messages, day, documents
from tools.village.train import ROW_LEN, rows

HELD_OUT_SEED = 1
"""Of documents; the batches of training have seeds from 2**32 on, the tokenizer 0."""
TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class Judgement:
    """``perplexity`` is a token's, over whole documents. ``known_places``: actions whose task is
    one of its place's. ``new``: sentences that the sample does not have word by word."""

    parameters: int
    perplexity: float
    sentences: int
    well_formed: float
    new: float
    actions: int
    valid_actions: float
    known_places: float
    examples: Sequence[tuple[str, str]]


def perplexity(model: LlamaForCausalLM, tokenizer: Tokenizer, number: int = 24) -> float:
    """Of ``number`` rows of held-out documents."""
    tokens = rows(tokenizer, HELD_OUT_SEED, number, ROW_LEN)
    with torch.no_grad():
        losses = [float(model(input_ids=row, labels=row).loss) for row in tokens.split(4)]
    return math.exp(sum(losses) / len(losses))


def words(sentence: str) -> list[str]:
    """The words of a sentence, all first names alike, between marks of its beginning and end."""
    found = re.findall(r"[A-Za-z]+", sentence)
    return ["<", *("NAME" if word in FIRST else word for word in found), ">"]


def sentences(text: str) -> list[str]:
    return [each for each in re.split(r"(?<=[.!?])\s+", text.strip()) if each]


class Grammar:
    """The neighbouring words, and the sentences, of a sample of what the corpus's people say."""

    def __init__(self, num_documents: int = 20_000) -> None:
        self._pairs: set[tuple[str, str]] = set()
        self._sentences: set[tuple[str, ...]] = set()
        for messages in islice(documents(HELD_OUT_SEED + 1), num_documents):
            for message in messages:
                if message["role"] == "assistant" and not message["content"].startswith("{"):
                    for sentence in sentences(message["content"]):
                        found = words(sentence)
                        self._sentences.add(tuple(found))
                        self._pairs.update(pairwise(found))

    def is_well_formed(self, sentence: str) -> bool:
        found = words(sentence)
        return (
            sentence[0].isupper()
            and sentence[-1] in ".!?"
            and all(pair in self._pairs for pair in pairwise(found))
        )

    def has(self, sentence: str) -> bool:
        return tuple(words(sentence)) in self._sentences


def questions(number: int) -> list[Messages]:
    """Held-out chats up to a question, of all kinds as the corpus has them."""
    draw = random.Random(f"card {HELD_OUT_SEED}")
    return [day(draw)[:-1] for _ in range(number)]


def judge(folder: Path, number: int = 300) -> Judgement:
    """Ask the model ``number`` held-out questions by a ScaleSim engine, and judge what it says."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    asked = questions(number)
    params = SamplingParams(max_tokens=80, temperature=TEMPERATURE)
    with Engine(folder, device="cpu", device_memory="1GB", host_memory="0GB") as engine:
        replies = engine.run([Request(messages, params=params) for messages in asked])
    texts = [
        (messages[-1]["content"], reply.text or "")
        for messages, reply in zip(asked, replies, strict=True)
    ]
    acted = [text for question, text in texts if question.endswith("What next?")]
    said = [(question, text) for question, text in texts if not question.endswith("What next?")]
    read = [read_action(text) for text in acted]
    valid = [action for action in read if action is not None]
    every = [sentence for _, text in said for sentence in sentences(text)]
    grammar = Grammar()
    return Judgement(
        parameters=sum(each.numel() for each in model.parameters()),
        perplexity=perplexity(model, tokenizer),
        sentences=len(every),
        well_formed=sum(map(grammar.is_well_formed, every)) / len(every),
        new=sum(not grammar.has(sentence) for sentence in every) / len(every),
        actions=len(acted),
        valid_actions=len(valid) / len(acted),
        known_places=sum(each.task in each.place.tasks for each in valid) / len(acted),
        examples=said[:6],
    )


def card(found: Judgement, steps: int, voices: float | None) -> str:
    """The card, as Markdown."""
    lines = [
        "# The village's model", "",
        f"A Llama of {found.parameters / 1e6:.1f} million parameters, trained from random weights "
        f"in {steps} steps on the text that `tools/village` writes. It speaks for people of a "
        "village, and for nothing else: it knows no facts and follows no instructions. It is for "
        "ScaleSim's demo. Licence: Apache-2.0, like all of the project.", "",
        "| measured on held-out text | |", "|---|---|",
        f"| perplexity a token | {found.perplexity:.2f} |",
        f"| well-formed sentences, of {found.sentences} | {found.well_formed:.1%} |",
        f"| sentences that a large sample of the grammar does not have | {found.new:.1%} |",
        f"| valid JSON actions, unconstrained, of {found.actions} | {found.valid_actions:.1%} |",
        f"| actions whose task is one of their place's | {found.known_places:.1%} |",
    ]  # fmt: skip
    if voices is not None:
        lines.append(
            f"| held-out chats that their own voice's adapter finds likeliest | {voices:.1%} |"
        )
    lines += [
        "",
        f"Sampled at temperature {TEMPERATURE}. `python -m tools.village card` measures",
        "this and writes this page. Some of what it said:",
        "",
    ]
    for question, text in found.examples:
        lines += [f"> {question}", ">", f"> **{text}**", ""]
    return "\n".join(lines)
