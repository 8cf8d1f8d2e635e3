"""The tag runner sees every wrong slot, and otherwise says what the oracle says."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from scalesim.batch import NO_TOKEN, Batch, SamplingBatch
from scalesim.memory.links.link import Timeline
from scalesim.testing.tag_runner import StubRunner, TagError, TagRunner, expected_text
from scalesim.testing.tags import TAG_BYTES, page_bytes_for, view_tags

SIZE, VOCAB, KEY = 4, 61, 12345


def runner(**options: Any) -> TagRunner:
    pages = np.zeros((8, page_bytes_for(SIZE)), np.uint8)
    return TagRunner(
        pages,
        SIZE,
        max_num_seqs=2,
        max_num_rows=3,
        max_blocks_per_row=7,
        vocab_size=VOCAB,
        **options,
    )


def batch(
    step: int, start: int, tokens: list[int], *, temperature: float = 1.0, **changes: Any
) -> Batch:
    """One sequence in row 1 and slot 0, whose blocks lie in pages 1, 2, 3, ..."""
    count = len(tokens)
    made = Batch(
        step=step,
        token_ids=np.array(tokens, np.int32),
        positions=np.arange(start, start + count, dtype=np.int32),
        query_start=np.array([0, count], np.int32),
        rows=np.array([1], np.int32),
        slots=np.array([0], np.int32),
        sample=np.array([True]),
        sampling=SamplingBatch(
            np.array([temperature], np.float32),
            np.zeros(1, np.int32),
            np.ones(1, np.float32),
            np.array([KEY], np.uint64),
        ),
        table_rows=np.full(7, 1, np.int32),
        table_cols=np.arange(7, dtype=np.int32),
        table_pages=np.arange(1, 8, dtype=np.int32),
        page_copies=np.empty((0, 2), np.int32),
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("verify", ["all", "new", "off"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 9])
def test_texts_are_the_oracles(verify: Any, temperature: float, chunk: int) -> None:
    prompt, text = [5, 6, 7, 8, 9, 5, 6, 7, 8], []
    tags = runner(verify=verify)
    step = 0
    for start in range(0, len(prompt), chunk):
        output = tags.collect(
            tags.launch(batch(step, start, prompt[start:][:chunk], temperature=temperature))
        )
        step += 1
    for _ in range(8):
        text.append(int(output.token_ids[0]))
        start = len(prompt) + len(text) - 1
        output = tags.collect(tags.launch(batch(step, start, text[-1:], temperature=temperature)))
        step += 1
    assert text == expected_text(prompt, 8, key=KEY, temperature=temperature, vocab_size=VOCAB)


def test_two_in_flight_run_late_and_fill_in_placeholders() -> None:
    timeline = Timeline()
    tags = runner(steps_in_flight=2, timeline=timeline)
    first = tags.launch(batch(0, 0, [1, 2, 3]))
    second = tags.launch(batch(1, 3, [NO_TOKEN]))
    assert not timeline.has_reached(first.fence)
    with pytest.raises(AssertionError, match="in flight"):
        tags.launch(batch(2, 4, [NO_TOKEN]))
    text = [int(tags.collect(first).token_ids[0])]
    assert timeline.has_reached(first.fence) and not timeline.has_reached(second.fence)
    text.append(int(tags.collect(second).token_ids[0]))
    assert text == expected_text([1, 2, 3], 2, key=KEY, vocab_size=VOCAB)
    tags.launch(batch(2, 6, [NO_TOKEN]))
    with pytest.raises(TagError, match="placeholders stand at"):
        tags.run_next()


@pytest.mark.parametrize("byte", range(TAG_BYTES))
def test_any_wrong_byte_is_seen_or_changes_the_digest(byte: int) -> None:
    def run(verify: Any, damage: int) -> int:
        tags = runner(verify=verify)
        tags.collect(tags.launch(batch(0, 0, [1, 2, 3, 4, 5])))
        tags.pages[1, 2 * TAG_BYTES + byte] ^= damage
        digests = tags.collect(tags.launch(batch(1, 5, [6]))).digests
        assert digests is not None
        return int(digests[0])

    with pytest.raises(TagError, match=r"row 1, position [23], page 1"):
        run("all", 1)
    assert run("off", 0) == run("all", 0) != run("off", 1)


def test_swapped_stale_and_missing_pages_raise() -> None:
    for pages in ([2, 1], [1, 3], [1, 1]):
        tags = runner()
        tags.collect(tags.launch(batch(0, 0, [1, 2, 3, 4, 5, 6, 7])))
        wrong = np.array([*pages, 3, 4, 5, 6, 7], np.int32)
        with pytest.raises(TagError):
            tags.launch(batch(1, 7, [8], table_pages=wrong))
    tags = runner()
    with pytest.raises(TagError, match="no page"):
        tags.launch(batch(0, 0, [1], table_pages=np.zeros(7, np.int32)))


def test_copies_come_before_writes() -> None:
    tags = runner()
    tags.collect(tags.launch(batch(0, 0, [1, 2, 3])))
    pages = np.array([7, 2, 3, 4, 5, 6, 1], np.int32)
    copy = np.array([[1, 7]], np.int32)
    tags.launch(batch(1, 3, [9], table_pages=pages, page_copies=copy))
    assert view_tags(tags.pages, SIZE)[7 * SIZE + 3, 2] == 9
    assert not view_tags(tags.pages, SIZE)[1 * SIZE + 3].any()


def test_a_bad_step_poisons_what_it_wrote_and_whoever_reads_it() -> None:
    tags = runner(bad=lambda slot, token: tags_bad[0])
    tags_bad = [True]
    assert tags.collect(tags.launch(batch(0, 0, [1, 2, 3]))).bad.tolist() == [True]
    tags_bad[0] = False
    assert tags.collect(tags.launch(batch(1, 3, [4]))).bad.tolist() == [True]
    assert tags.collect(tags.launch(batch(2, 0, [1, 2, 3, 4]))).bad.tolist() == [False]


def test_stub_runner_gives_a_token_to_who_samples() -> None:
    stub = StubRunner(VOCAB, timeline=Timeline())
    tokens = stub.collect(stub.launch(batch(0, 0, [1, 2, 3]))).token_ids
    assert 0 <= tokens[0] < VOCAB
    quiet = batch(1, 3, [1], sample=np.array([False]))
    assert stub.collect(stub.launch(quiet)).token_ids.tolist() == [NO_TOKEN]
