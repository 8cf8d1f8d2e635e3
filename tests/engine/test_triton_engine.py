"""The engine on the Triton set, in Triton's interpreter: what the CPU set says, it says too."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from scalesim_kernels import KernelSet, select
from scalesim_kernels.conformance.steady import steady_interpreter

from scalesim.engine.build import parts_for, with_settings
from scalesim.engine.engine import Engine
from tests.engine.world import BLOCK, PAGE_BYTES, TOKENIZER, Turns, said, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in masked lanes
TURNS = Turns(num_agents=3, rounds=2, prefix_len=30, new_len=6, output_len=5)


def play(kernels: KernelSet, device_pages: int = 60, **settings: Any) -> list[tuple[Any, int]]:
    settings |= {"device_memory": PAGE_BYTES * (device_pages + 1), "block_size": BLOCK}
    config = with_settings(None, {"host_memory": PAGE_BYTES * 60, "digests": True, **settings})
    parts = parts_for(tiny_model(), config, kernels, tokenizer=TOKENIZER)
    with steady_interpreter(), Engine(parts) as engine:
        return said(TURNS.play(engine))


@cache
def triton_says() -> list[tuple[Any, int]]:
    return play(select("triton"))


def test_the_same_texts_as_the_cpu_set() -> None:
    """A draw within rounding of a token's edge might differ; none of these does."""
    assert [tokens for tokens, _ in triton_says()] == [t for t, _ in play(select("cpu"))]


def test_the_same_bits_with_other_chunks_batches_and_pools() -> None:
    other = play(
        select("triton"),
        device_pages=TURNS.pages_per_agent + 1,
        max_num_seqs=2,
        max_num_batched_tokens=13,
    )
    assert other == triton_says()
