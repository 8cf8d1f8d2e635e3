"""Tags: the contents of the tag runner's KV slots in place of floats, and the texts from them.

A tag identifies the tokens that its slot was computed from, so that reading a stale, foreign, torn
or half-copied page is detected. ``expected_text`` is the oracle: it computes the same texts from
tokens alone, and shares no code with the arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scalesim.batch import Batch
from scalesim.core import Int64s, UInt64s

LINEAGE, POSITION, TOKEN, STEP, CHECK = range(5)
NUM_FIELDS = 5
TAG_BYTES = 8 * NUM_FIELDS
POISON = 0x7FF8_DEAD_7FF8_DEAD
"""The check word of a slot that a bad (NaN) step wrote; a sequence that reads it becomes bad as
well."""

_TOKEN, _POSITION, _STEP = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_MASK = (1 << 64) - 1
Tags = npt.NDArray[np.uint64]


class TagError(AssertionError):
    """A slot does not hold the tag that its reader must find."""


def page_bytes_for(block_size: int) -> int:
    """Bytes of a page of ``block_size`` tags."""
    return block_size * TAG_BYTES


def mix(x: UInt64s) -> UInt64s:
    """A 64-bit finaliser (splitmix64's), elementwise."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def words(tokens: UInt64s, positions: UInt64s) -> UInt64s:
    """The word that each token at its position adds to the lineage, ``[n]``."""
    return mix(tokens * np.uint64(_TOKEN) + positions * np.uint64(_POSITION))


def seals(lineages: UInt64s, word: UInt64s, steps: UInt64s) -> UInt64s:
    """The check words of intact tags, ``[n]``."""
    return mix((lineages ^ word) + steps * np.uint64(_STEP))


def lineages_of(tokens: Int64s) -> UInt64s:
    """``[num_tokens]``: the lineage of each position of a sequence that begins with ``tokens``.

    The lineage is a sum of position-dependent words, so that a whole chunk is one cumulative sum.
    """
    count = len(tokens)
    return np.cumsum(words(tokens.astype(np.uint64), np.arange(count, dtype=np.uint64)))


def adapter_pages(tag: int, num_pages: int, page_bytes: int) -> npt.NDArray[np.uint8]:
    """The contents of the pages of adapter ``tag``, ``[num_pages, page_bytes]``."""
    count = num_pages * page_bytes // 8
    words_ = mix(np.arange(count, dtype=np.uint64) + np.uint64(tag << 32))
    return words_.view(np.uint8).reshape(num_pages, page_bytes)


def adapter_layout(tag: int, num_pages: int) -> int:
    """The layout number under which the tag runner knows an adapter (1 to 255 pages)."""
    assert 0 < num_pages < 256, num_pages
    return tag << 8 | num_pages


def model_block_size(tag: int, block_size: int) -> int:
    """How many tags of the model ``tag`` a page of ``block_size`` tags holds: all, a half or a
    quarter of these; then the end of the page is unused."""
    return max(1, block_size >> tag % 3)


def block_sizes(batch: Batch, block_size: int) -> Int64s:
    """How many tags of each sequence a page of ``block_size`` tags holds, ``[num_seqs]``."""
    sizes = np.full(batch.num_seqs, block_size, np.int64)
    if batch.weights is not None:
        for index in batch.weights.rows.nonzero()[0]:
            sizes[index] = model_block_size(int(batch.weights.layouts[index]) >> 8, block_size)
    return sizes


def weight_runs(tag: int, num_pages: int) -> tuple[int, ...]:
    """The pages of each part of the weights ``tag``: one part or two."""
    part = -(-num_pages // (1 + tag % 2))
    return tuple(min(part, num_pages - start) for start in range(0, num_pages, part))


def weight_pages(tag: int, num_pages: int, heads: Sequence[int]) -> list[int]:
    """The pages of the weights ``tag``, whose parts begin at ``heads``."""
    return [
        page
        for head, length in zip(heads, weight_runs(tag, num_pages), strict=False)
        for page in range(head, head + length)
    ]


def under_adapter(tokens: Int64s, tag: int, start: int = 0) -> Int64s:
    """``tokens`` as tags store them if the adapter, or model, ``tag`` is active from position
    ``start`` on."""
    coded = tokens.copy()
    coded[start:] += tag << 32
    return coded


def view_tags(pages: npt.NDArray[np.uint8], block_size: int) -> Tags:
    """``[num_pages × block_size, NUM_FIELDS]``: the tags of a pool ``[num_pages, page_bytes]``, in
    place."""
    num_pages, page_bytes = pages.shape
    if page_bytes != page_bytes_for(block_size):
        raise ValueError(
            f"a page has {page_bytes} bytes; {block_size} tags need {page_bytes_for(block_size)}"
        )
    return pages.reshape(-1).view(np.uint64).reshape(num_pages * block_size, NUM_FIELDS)


def are_tags_of(tags: Tags, tokens: UInt64s, positions: UInt64s, lineages: UInt64s) -> bool:
    """Whether each of ``tags`` ``[n, NUM_FIELDS]`` is intact and has this token, position and
    lineage; the other arguments are ``[n]``."""
    sound = seals(lineages, words(tokens, positions), tags[:, STEP])
    return bool(
        np.array_equal(tags[:, TOKEN], tokens)
        and np.array_equal(tags[:, POSITION], positions)
        and np.array_equal(tags[:, LINEAGE], lineages)
        and np.array_equal(tags[:, CHECK], sound)
    )


def expected_text(
    prompt: Sequence[int],
    num_tokens: int,
    *,
    key: int = 0,
    temperature: float = 1.0,
    vocab_size: int = 512,
    adapter: int = 0,
    start: int = 0,
) -> list[int]:
    """The ``num_tokens`` tokens that a tag runner must generate after ``prompt``. ``adapter`` is an
    adapter's tag, active from position ``start`` on."""
    lineage = 0

    def word(position: int, token: int) -> int:
        if position >= start:
            token += adapter << 32
        return _mix(token * _TOKEN + position * _POSITION)

    for position, token in enumerate(prompt):
        lineage = (lineage + word(position, token)) & _MASK
    warmth = int(np.float32(temperature).view(np.uint32))
    text: list[int] = []
    for position in range(len(prompt), len(prompt) + num_tokens):
        draw = _mix(lineage)
        if temperature > 0:
            draw = _mix(draw + _mix(key + _mix(position)) + warmth)
        token = draw % vocab_size
        text.append(token)
        lineage = (lineage + word(position, token)) & _MASK
    return text


def _mix(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
