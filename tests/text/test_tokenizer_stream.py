"""A stream of tokens gives the text that decoding them all at once gives, cut at the first stop."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from scalesim.errors import RequestError, UnsupportedModelError
from scalesim.model.text.token_stream import StopFinder, TokenStream
from scalesim.model.text.tokenizer import (
    MARKS,
    ByteTokenizer,
    HFTokenizer,
    Tokenizer,
    load_tokenizer,
)

from .tokenizers_made_here import MAKERS, NAMED, TEXT, byte_level

TOKENIZERS: dict[str, Tokenizer] = {
    **{name: HFTokenizer(make(), NAMED) for name, make in MAKERS.items()},
    "bytes": ByteTokenizer(),
}
BACKENDS: dict[str, Backend] = {name: make() for name, make in MAKERS.items()}

names = st.sampled_from(sorted(TOKENIZERS))
words = st.sampled_from(
    ["Ada", " the ", "  ", "🙂", "👩‍🚀", "é", "<|eos|>", "<tool>", "<é→>", "\n"]
)
texts = st.lists(words | st.text(max_size=6), max_size=12).map("".join)
short = st.text("ab🙂", min_size=1, max_size=4)
stops = st.lists(
    short | st.sampled_from(["the", " ", "aab", "\N{REPLACEMENT CHARACTER}"]), max_size=4
)


@st.composite
def tokens(draw: st.DrawFn) -> tuple[str, list[int]]:
    """A tokenizer's name, and ids: of a text, or any, so that bytes are broken in every way."""
    name = draw(names)
    tokenizer = TOKENIZERS[name]
    any_ids = st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40)
    of_text = texts.map(lambda text: tokenizer.encode(text, add_special_tokens=False))
    return name, draw(of_text | any_ids)


def cut(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """The reference: try every end, then every stop string from the longest."""
    for end in range(len(text) + 1):
        for string in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(string):
                return text[: end - len(string)], string
    return text, None


def shown(stream: TokenStream, ids: Sequence[int]) -> str:
    return "".join([stream.push(token_id) for token_id in ids] + [stream.finish()])


@given(tokens())
@example(("byte_level", list("👩".encode())))
def test_pieces_are_the_whole_text(drawn: tuple[str, list[int]]) -> None:
    name, ids = drawn
    stream = TokenStream(TOKENIZERS[name])
    assert shown(stream, ids) == stream.text == TOKENIZERS[name].decode(ids)
    assert stream.finished and stream.stop_string is None
    if name in BACKENDS:
        assert stream.text == BACKENDS[name].decode(ids, skip_special_tokens=True)


@given(tokens(), stops)
def test_stop_strings_cut_as_on_the_whole_text(
    drawn: tuple[str, list[int]], stop: list[str]
) -> None:
    name, ids = drawn
    stream = TokenStream(TOKENIZERS[name], stop)
    assert shown(stream, ids) == stream.text
    assert (stream.text, stream.stop_string) == cut(TOKENIZERS[name].decode(ids), stop)


@given(
    st.text("ab", max_size=60),
    st.lists(st.text("ab", min_size=1, max_size=6), min_size=1),
    st.data(),
)
def test_every_piece_is_shown_as_soon_as_it_is_certain(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    """What is kept back is exactly the longest end of the text that begins a stop string."""
    finder, given_text, seen = StopFinder(stop), "", ""
    while text:
        piece_len = data.draw(st.integers(1, len(text)))
        piece, text = text[:piece_len], text[piece_len:]
        safe, found = finder.feed(piece)
        given_text, seen = given_text + piece, seen + safe
        if found is not None:
            assert (seen, found) == cut(given_text, stop)
            return
        assert cut(given_text, stop) == (given_text, None)
        begun = [
            n for n in range(len(given_text) + 1) for s in stop if n and given_text[-n:] == s[:n]
        ]
        assert seen == given_text[: len(given_text) - max(begun, default=0)]
    assert seen + finder.flush() == given_text


@given(tokens())
def test_no_half_character_is_shown(drawn: tuple[str, list[int]]) -> None:
    name, ids = drawn
    whole, stream, so_far = TOKENIZERS[name].decode(ids), TokenStream(TOKENIZERS[name]), ""
    for token_id in ids:
        so_far += stream.push(token_id)
        assert whole.startswith(so_far)


def test_text_comes_while_tokens_come() -> None:
    tokenizer = ByteTokenizer()
    stream = TokenStream(tokenizer, stop=["END"])
    pushed = [
        stream.push(token_id) for token_id in tokenizer.encode("aé ENDE", add_special_tokens=False)
    ]
    assert pushed == ["a", "", "é", " ", "", "", "", ""]
    assert stream.finished and stream.stop_string == "END" and stream.text == "aé "
    assert stream.push(ord("x")) == stream.finish() == "" and stream.text == "aé "


def test_of_stops_that_end_together_the_longest_counts() -> None:
    stream = TokenStream(ByteTokenizer(), stop=["c", "bc", "bcd"])
    assert shown(stream, b"abcd") == "a"
    assert stream.stop_string == "bc"


def test_work_per_token_does_not_grow() -> None:
    """Broken bytes and a stop string that never completes are where re-decoding goes quadratic."""

    def seconds(num_tokens: int) -> float:
        stream = TokenStream(ByteTokenizer(), stop=["\N{REPLACEMENT CHARACTER}" * 50 + "x"])
        begin = time.thread_time()
        shown(stream, [0xE2, 0xFF] * (num_tokens // 2))
        return time.thread_time() - begin

    assert min(seconds(32_000) for _ in range(3)) < 16 * min(seconds(4_000) for _ in range(3))


@given(texts)
def test_encode_then_decode(text: str) -> None:
    for name in ("byte_level", "bytes"):
        tokenizer = TOKENIZERS[name]
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_marks_of_thinking_and_calls_are_text_even_where_they_are_special() -> None:
    backend = byte_level()
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in (*MARKS, "<hid>")])
    tokenizer = HFTokenizer(backend, {})
    text = "".join(MARKS)
    ids = tokenizer.encode(f"{text}<hid>", add_special_tokens=False)
    assert len(ids) == len(MARKS) + 1
    assert tokenizer.decode(ids) == text == shown(TokenStream(tokenizer), ids)


def test_the_byte_tokenizer_knows_its_special_tokens() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("<|im_start|>é") == [256, 259, *"é".encode()]
    assert tokenizer.decode([256, 259, *"é".encode(), 260]) == "é"
    assert {256 + ByteTokenizer.SPECIAL.index("<|eos|>")} <= tokenizer.eos_token_ids
    assert tokenizer.decode([300, 104, 105]) == "hi"


@pytest.mark.parametrize("name", ["byte_level", "bytes"])
@pytest.mark.parametrize("text", ["a\ud800b", b"bytes", None])
def test_a_prompt_must_be_text(name: str, text: object) -> None:
    with pytest.raises(RequestError, match=r"the prompt (is a|has the lone surrogate)"):
        TOKENIZERS[name].encode(text)  # type: ignore[arg-type]


class TestModelFolder:
    def test_reads_tokens_and_names(self, tmp_path: Path) -> None:
        backend = byte_level()
        backend.enable_truncation(4)
        backend.enable_padding(length=64)
        backend.save(str(tmp_path / "tokenizer.json"))
        config = {"bos_token": {"content": "<|bos|>"}, "eos_token": "<|im_end|>", "pad_token": None}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.special_tokens == {"bos_token": "<|bos|>", "eos_token": "<|im_end|>"}
        assert tokenizer.eos_token_ids == {backend.token_to_id("<|im_end|>")}
        assert tokenizer.vocab_size == backend.get_vocab_size()
        assert tokenizer.decode(tokenizer.encode(TEXT[0])) == TEXT[0]

    def test_works_without_a_config(self, tmp_path: Path) -> None:
        byte_level().save(str(tmp_path / "tokenizer.json"))
        assert load_tokenizer(tmp_path).eos_token_ids == frozenset()

    def test_a_named_token_is_never_shown(self, tmp_path: Path) -> None:
        tokenizer = HFTokenizer(byte_level(), {"eos_token": "<tool>"})
        ids = tokenizer.encode("a<tool>b")
        assert shown(TokenStream(tokenizer), ids) == tokenizer.decode(ids) == "ab"

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedModelError, match=r"has no tokenizer\.json; download"):
            load_tokenizer(tmp_path)
        (tmp_path / "tokenizer.model").touch()
        with pytest.raises(UnsupportedModelError, match="save_pretrained"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("tokenizer.json", "{", "is not a tokenizer"),
            ("tokenizer_config.json", "{", "is not JSON"),
            ("tokenizer_config.json", "[]", "holds a list, not an object"),
            ("tokenizer_config.json", '{"eos_token": 3}', "eos_token is 3; it must be a string"),
            ("tokenizer_config.json", '{"eos_token": "</s>"}', "'</s>' is not in tokenizer.json"),
        ],
    )
    def test_broken(self, tmp_path: Path, file: str, content: str, message: str) -> None:
        byte_level().save(str(tmp_path / "tokenizer.json"))
        (tmp_path / file).write_text(content)
        with pytest.raises(UnsupportedModelError, match=message):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize(
        "decoder",
        [
            decoders.WordPiece(),
            decoders.BPEDecoder(),
            decoders.Strip(" ", 1, 0),
            decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]),
            decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        ],
    )
    def test_a_decoder_without_an_exact_stream_is_refused(self, decoder: decoders.Decoder) -> None:
        backend = Backend(models.WordLevel({"a": 0}, unk_token="a"))
        backend.decoder = decoder
        with pytest.raises(UnsupportedModelError, match="cannot stream its decoder step"):
            HFTokenizer(backend, {})


def tokenizer_with(pattern: str) -> Tokenizer:
    """One that splits texts by ``pattern``."""
    raw = json.loads(byte_level().to_str())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    raw["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{**split, "invert": False}, {**bytes_only, "trim_offsets": True}],
    }
    return HFTokenizer(Backend.from_str(json.dumps(raw)), NAMED)


def test_a_pattern_that_gives_up_is_an_error_of_that_text() -> None:
    """The library panics, which is no ``Exception``: only who sent the text may hear of it."""
    tokenizer = tokenizer_with(r"(?=(a+)+b)a")
    assert tokenizer.encode("an")
    with pytest.raises(RequestError, match=r"tokenizer fails on this text: .*retry-limit"):
        tokenizer.encode("a" * 40)


def test_others_go_on_while_a_text_is_encoded() -> None:
    """Encoding takes seconds for a long text, and nothing of Python may wait for it."""
    tokenizer, count, over = HFTokenizer(byte_level(), NAMED), [0], [False]

    def others() -> None:
        while not over[0]:
            count[0] += 1
            time.sleep(0)  # lets go at once: only ``encode`` could hold on

    thread = Thread(target=others)
    text = " ".join(TEXT) * 100
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(10.0)  # whoever runs, runs on until it lets go
    try:
        thread.start()
        before = count[0]
        tokenizer.encode(text)
        assert count[0] > before
    finally:
        over[0] = True
        sys.setswitchinterval(switch_s)
        thread.join()
