"""Named and added tokens of a folder: as transformers reads the same folder, file by file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from scalesim.errors import UnsupportedModelError
from scalesim.model.text.chat import load_chat_template
from scalesim.model.text.tokenizer import load_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{{ image_token }}{{ pad_token }}"
)
TEXT = "<s>a<new>b<|other|> </s> <extra><|im_end|>ab <img> [M]<u>"
MESSAGES = [{"role": "user", "content": "a<new>b"}]


def token(content: str, **flags: bool) -> dict[str, Any]:
    defaults = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": content, **defaults, **flags}


def typed(content: str, **flags: bool) -> dict[str, Any]:
    return {"__type": "AddedToken", **token(content, **flags)}


BASE = {"bos_token": "<s>", "eos_token": "</s>"}
FIRST = 259  # the id that the next added token gets
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FOLDERS: list[dict[str, Any]] = [
    {CONFIG: BASE},
    {CONFIG: {}, MAP: BASE},
    {MAP: BASE},
    {CONFIG: BASE, MAP: {"eos_token": "<|im_end|>"}},
    {CONFIG: BASE, MAP: {"bos_token": None}},
    {CONFIG: {"bos_token": None, "eos_token": "</s>"}},
    {CONFIG: {"bos_token": typed("<s>"), "eos_token": typed("</s>", rstrip=True)}},
    {CONFIG: {}, MAP: {"bos_token": token("<s>"), "eos_token": token("</s>", lstrip=True)}},
    {CONFIG: BASE, ADDED: {"<new>": FIRST}},
    {CONFIG: BASE, ADDED: {"<|other|>": FIRST + 1, "<new>": FIRST}},
    {CONFIG: BASE, MAP: {"eos_token": "<new>"}, ADDED: {"<new>": FIRST}},
    {CONFIG: BASE, MAP: {"eos_token": token("<new>", rstrip=True)}, ADDED: {"<new>": FIRST}},
    {CONFIG: {**BASE, "added_tokens_decoder": {str(FIRST): token("<new>", special=True)}}},
    {CONFIG: {**BASE, "added_tokens_decoder": {str(FIRST): token("<new>", special=False)}}},
    {
        CONFIG: {
            "bos_token": "<s>",
            "eos_token": "<new>",
            "added_tokens_decoder": {
                "1": token("<s>", special=True),
                str(FIRST + 1): token("<|other|>", special=False, lstrip=True),
                str(FIRST): token("<new>", special=True, rstrip=True),
            },
        }
    },
    # with added_tokens_decoder, the two older files do not count
    {
        CONFIG: {**BASE, "added_tokens_decoder": {str(FIRST): token("<new>", special=True)}},
        MAP: {"eos_token": "<|im_end|>"},
        ADDED: {"<|other|>": FIRST + 1},
    },
    {CONFIG: {**BASE, "added_tokens_decoder": {}}, MAP: {"eos_token": "<|im_end|>"}},
    {CONFIG: {**BASE, "additional_special_tokens": ["<extra>", "<new>"]}},
    {CONFIG: {**BASE, "extra_special_tokens": ["<extra>", "<new>"]}},
    {CONFIG: {**BASE, "extra_special_tokens": {"image_token": "<img>"}}},
    {CONFIG: {**BASE, "image_token": "<img>"}},
    {CONFIG: {**BASE, "pad_token": "<new>"}},  # in no vocabulary
    {CONFIG: {**BASE, "unk_token": "<u>", "mask_token": "[M]"}},
    {CONFIG: BASE, MAP: {"additional_special_tokens": ["<extra>"]}},
    {CONFIG: BASE, MAP: {"extra_special_tokens": ["<extra>"]}},
    {CONFIG: BASE, MAP: {"extra_special_tokens": [token("<extra>", lstrip=True)]}},
    {CONFIG: BASE, MAP: {"pad_token": "a"}},  # an ordinary token becomes a named one
]


def write(folder: Path, files: dict[str, Any]) -> None:
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([AddedToken("<|im_end|>", special=True)])
    assert backend.get_vocab_size() == FIRST
    backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        if name == CONFIG:
            content = {"tokenizer_class": "PreTrainedTokenizerFast", **content}
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


@pytest.mark.parametrize("files", FOLDERS, ids=lambda files: str(files)[:80])
def test_as_transformers_reads_the_folder(files: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write(tmp_path, files)
    if CONFIG not in files:  # without one, transformers asks config.json for a class
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    else:
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.vocab_size == len(theirs)
    ids = theirs(TEXT)["input_ids"]
    assert ours.encode(TEXT) == ids
    for skip in (False, True):
        theirs_text = theirs.decode(ids, skip_special_tokens=skip)
        assert ours.decode(ids, skip_special_tokens=skip) == theirs_text
    want = {theirs.eos_token_id} - {None}
    assert ours.eos_token_ids == want
    template = load_chat_template(tmp_path, ours.special_tokens)
    assert template is not None
    assert template.render(MESSAGES, add_generation_prompt=False) == theirs.apply_chat_template(
        MESSAGES, tokenize=False
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (MAP, {"eos_token": 3}, "special_tokens_map.json: eos_token is 3"),
        (MAP, {"eos_token": {"content": None}}, "special_tokens_map.json: eos_token is"),
        (MAP, {"eos_token": {"content": "</s>", "lstrip": 1}}, "eos_token: lstrip is 1"),
        (MAP, {"extra_special_tokens": 5}, "extra_special_tokens is 5; must be a list"),
        (MAP, {"extra_special_tokens": [5]}, "extra_special_tokens: 0 is 5"),
        (ADDED, {"<new>": "x"}, "added_tokens.json: <new> is 'x'"),
        (ADDED, {"<new>": -1}, "added_tokens.json: <new> is -1"),
        (ADDED, [], "added_tokens.json holds a list"),
        (CONFIG, {"added_tokens_decoder": []}, "added_tokens_decoder is"),
        (CONFIG, {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder: x is"),
        (CONFIG, {"added_tokens_decoder": {"5": "<a>"}}, "5 is '<a>'; it must be an object"),
        (CONFIG, {"added_tokens_decoder": {"5": {"content": 3}}}, "5 is {'content': 3}"),
        (CONFIG, {"eos_token": "<never>"}, "'<never>' is not in tokenizer.json"),
        (MAP, {"eos_token": "<never>"}, "'<never>' is not in tokenizer.json"),
    ],
)
def test_what_is_no_token_is_refused(
    name: str, content: object, words: str, tmp_path: Path
) -> None:
    write(tmp_path, {})
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError, match=words):
        load_tokenizer(tmp_path)
