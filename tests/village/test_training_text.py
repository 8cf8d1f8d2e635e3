"""The training text: it repeats, uses all of its grammar, and asks just as the demo asks."""

from __future__ import annotations

import json
import random
import re
from itertools import islice, pairwise
from string import Formatter

import pytest

from scalesim.village.actions import read_action
from scalesim.village.prompts import WEATHERS
from tools.village.card import Grammar
from tools.village.corpus import TOPICS, Messages, day, documents, plain
from tools.village.phrases import RULES, expand
from tools.village.tokens import CHAT_TEMPLATE, END, rendered, save_tokenizer, train_tokenizer
from tools.village.voices import VOICES

DOCUMENTS = list(islice(documents(7), 400))


def said(chats: list[Messages]) -> list[tuple[str, str]]:
    """(question, reply) of all turns."""
    return [
        (asked["content"], replied["content"])
        for messages in chats
        for asked, replied in pairwise(messages)
        if replied["role"] == "assistant"
    ]


def test_a_seed_gives_the_same_text() -> None:
    assert list(islice(documents(7), 50)) == DOCUMENTS[:50]
    assert list(islice(documents(8), 50)) != DOCUMENTS[:50]


def test_every_rule_is_used_and_every_name_is_known() -> None:
    """Facts are the names that no rule has; no rule is unreachable."""
    asked = {name for lines in RULES.values() for line in lines for _, name, _, _ in
             Formatter().parse(line) if name}  # fmt: skip
    started = {f"{kind}_{topic}" for kind in ("say", "reply", "close") for topic in TOPICS}
    started |= {f"weather_{weather}" for weather in WEATHERS} | {"greeting", "diary", "story"}
    assert set(RULES) == (asked & set(RULES)) | started
    facts = dict.fromkeys(asked - set(RULES), "x")
    draw = random.Random(0)
    for name, lines in RULES.items():
        assert lines, name
        for line in lines:
            assert "{" not in expand(line, facts, draw)
    with pytest.raises(KeyError):
        expand("{nothing}", {}, draw)


def test_no_placeholder_is_left_and_lines_are_sentences() -> None:
    for _, reply in said(DOCUMENTS):
        assert not re.search(r"[{}]", reply) or reply.startswith("{")
        assert reply[0].isupper() or reply.startswith("{"), reply
        assert reply[-1] in ".!?}", reply


def test_who_is_asked_for_an_action_gives_one_and_nobody_else_does() -> None:
    turns = said(DOCUMENTS)
    acts = [reply for asked, reply in turns if asked.endswith("What next?")]
    assert len(acts) > 300
    for reply in acts:
        action = read_action(reply)
        assert action is not None and action.task in action.place.tasks
    assert all(
        read_action(reply) is None for asked, reply in turns if not asked.endswith("What next?")
    )


def test_replies_take_up_what_was_said() -> None:
    """A good part of the names in an answer stand in its question."""
    answers = [each for each in said(DOCUMENTS) if "What do you say?" in each[0]]
    names = [(name, asked) for asked, reply in answers for name in re.findall(r"\b[A-Z]\w+", reply)]
    inside = sum(name in asked for name, asked in names)
    assert 0.2 < inside / len(names) < 0.95


def test_tokens_repeat_and_come_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    first, again = train_tokenizer(0, 60), train_tokenizer(0, 60)
    assert first.to_str() == again.to_str()
    for messages in DOCUMENTS[:20]:
        text = rendered(messages)
        ids = first.encode(text).ids
        assert first.decode(ids, skip_special_tokens=False) == text
        assert ids.count(first.token_to_id(END)) == len(messages)
    folder = tmp_path_factory.mktemp("tokens")
    save_tokenizer(first, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["eos_token"] == END and config["chat_template"] == CHAT_TEMPLATE


def test_the_template_is_what_training_saw(tmp_path_factory: pytest.TempPathFactory) -> None:
    from jinja2 import Environment

    template = Environment().from_string(CHAT_TEMPLATE)
    for messages in DOCUMENTS[:20]:
        assert template.render(messages=messages) == rendered(messages)
        prompt = template.render(messages=messages[:-1], add_generation_prompt=True)
        assert rendered(messages) == f"{prompt}{messages[-1]['content']}{END}"


def test_each_voice_says_the_same_otherwise() -> None:
    assert len({voice.name for voice in VOICES}) == len(VOICES) == 8
    marks = [phrase for voice in VOICES for phrase in (*voice.before, *voice.behind)]
    assert len(set(marks)) == len(marks)
    neutral = [reply for _, reply in said([day(random.Random(0), plain)])]
    for voice in VOICES:
        spoken = [reply for _, reply in said([day(random.Random(f"{voice.name} 0"), voice)])]
        own = (*voice.before, *voice.behind)
        for reply in spoken:
            assert reply.startswith("{") or any(phrase in reply for phrase in own), reply
        assert not any(phrase in reply for phrase in own for reply in neutral)


def test_grammar_tells_sentences_from_noise() -> None:
    grammar = Grammar(600)
    good = ["Then I will ask Nora.", "You may be right about Tom.", "Do not be late, Ada."]
    bad = ["Then will I ask Nora.", "right about Tom.", "Do not be late, Ada", "Be the the mill."]
    assert all(map(grammar.is_well_formed, good)) and not any(map(grammar.is_well_formed, bad))
    assert grammar.has("Do not be late, Wanda.") and not grammar.has("Ada is at the moon.")
