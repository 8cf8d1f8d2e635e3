"""Page sizes, and the block size that a model gets."""

from __future__ import annotations

import pytest

from scalesim.errors import ConfigError
from scalesim.memory.geometry import PageGeometry


def test_llama_8b_is_2_mib_at_16_tokens() -> None:
    geometry = PageGeometry.choose(32, 8, 128, 2)
    assert geometry.block_size == 16
    assert geometry.page_bytes == 2 << 20
    assert geometry.shape == (32, 2, 8, 16, 128)


@pytest.mark.parametrize(("layers", "block_size"), [(8, 16), (4, 16), (2, 32), (1, 64)])
def test_block_size_reaches_64_kib_where_it_can(layers: int, block_size: int) -> None:
    assert PageGeometry.choose(layers, 2, 64, 4).block_size == block_size
    assert PageGeometry.choose(layers, 2, 64, 4, 32).block_size == 32


def test_the_largest_when_none_reaches_it() -> None:
    assert PageGeometry.choose(1, 1, 16, 4).block_size == 64


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert PageGeometry(1, 1, 16, 16, 4).blocks_for(tokens) == blocks


@pytest.mark.parametrize(
    ("page_bytes", "tokens"), [(2048, 16), (6143, 32), (6144, 48), (1 << 14, 128)]
)
def test_the_most_tokens_that_fit_a_page(page_bytes: int, tokens: int) -> None:
    assert PageGeometry.fitting(1, 1, 16, 4, page_bytes) == PageGeometry(1, 1, 16, tokens, 4)
    some = PageGeometry.fitting(1, 1, 16, 4, page_bytes, (16, 32))
    assert some.block_size == min(tokens, 32)


def test_a_page_takes_sixteen_tokens_at_least() -> None:
    with pytest.raises(ConfigError, match="KV of 16 tokens has 2048 bytes, and a page has 2047"):
        PageGeometry.fitting(1, 1, 16, 4, 2047)


def test_impossible_shapes() -> None:
    with pytest.raises(ConfigError, match="head_dim is 0: must be positive"):
        PageGeometry(1, 1, 0, 16, 4)
    with pytest.raises(ConfigError, match="block_size is 24: must be a multiple of 16"):
        PageGeometry(1, 1, 16, 24, 4)
