"""Engines with KV in fp8: pages of a quarter of fp32's bytes, texts that memory does not change."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scalesim_kernels import PagedBatch, select
from scalesim_kernels.float8 import FLOAT8, narrowed
from torch import Tensor

from scalesim.engine.build import parts_for, with_settings
from scalesim.engine.engine import Engine
from scalesim.errors import ConfigError
from tests.engine import test_adapters
from tests.engine.test_same_texts import check_empty
from tests.engine.world import (
    BLOCK,
    PAGE_BYTES,
    TOKENIZER,
    Turns,
    said,
    tiny_engine,
    tiny_model,
)

TURNS = Turns(num_agents=6, rounds=2)
PAGES = TURNS.num_agents * TURNS.pages_per_agent


def fp8_engine(
    device_pages: int = 4 * PAGES, host_pages: int = 4 * PAGES, **settings: Any
) -> Engine:
    """Pools of so many pages, of which fp32's have four times the bytes."""
    return tiny_engine(
        kv_dtype="fp8", digests=True, **settings,
        device_memory=PAGE_BYTES // 4 * (device_pages + 1),
        host_memory=PAGE_BYTES // 4 * host_pages,
    )  # fmt: skip


@cache
def unlimited() -> list[tuple[tuple[int, ...], int]]:
    with fp8_engine(policy="resident") as engine:
        return said(TURNS.play(engine))


def test_the_bits_are_those_of_rounded_kv_in_fp32() -> None:
    """An engine on pages of fp32 whose store rounds K and V says the same, bit for bit."""
    kernels = select("cpu")

    def store(qkv: Tensor, pool: Tensor, layer: int, batch: PagedBatch, *rest: Any) -> Tensor:
        q = kernels.qk_norm_rope_store(qkv, pool, layer, batch, *rest)
        kept = batch.token_rows != 0
        rows, positions = batch.token_rows[kept].long(), batch.positions[kept].long()
        pages, slots = batch.block_table[rows, positions // BLOCK].long(), positions % BLOCK
        kv = pool[pages, layer, :, :, slots]
        pool[pages, layer, :, :, slots] = narrowed(kv, FLOAT8).to(kv.dtype)
        return q

    rounding = replace(kernels, qk_norm_rope_store=store)
    config = with_settings(None, {"device_memory": 200 * PAGE_BYTES, "block_size": BLOCK})
    parts = parts_for(tiny_model(), replace(config, digests=True), rounding, tokenizer=TOKENIZER)
    with Engine(parts) as engine:
        assert said(TURNS.play(engine)) == unlimited()


def test_a_page_has_a_byte_an_element() -> None:
    with fp8_engine(device_pages=10, host_pages=20) as engine:
        memory = engine.parts.memory
        assert memory.residency.device.num_usable == 10
        assert memory.residency.host.num_usable == 20


@pytest.mark.parametrize("policy", ["deadline", "lru-swap", "lru-recompute"])
def test_texts_do_not_depend_on_memory_or_chunks(policy: str) -> None:
    """Pages are evicted, saved, loaded and computed again, by chunks of other sizes."""
    with fp8_engine(
        policy=policy, device_pages=PAGES // 3, host_pages=PAGES, max_num_seqs=3,
        max_num_batched_tokens=37,
    ) as engine:  # fmt: skip
        assert said(TURNS.play(engine, hint=lambda agent, turn: 1)) == unlimited()
        assert engine.parts.memory.counters.evicted_pages > 0
    check_empty(engine)


def test_adapters_keep_the_models_dtype_on_the_same_pages() -> None:
    texts = []
    for pages in (4000, 400):
        with fp8_engine(device_pages=pages, host_pages=4000) as engine:
            texts.append(said(test_adapters.play(engine, num_agents=16)))
            assert (engine.parts.memory.counters.evicted_pages > 0) == (pages == 400)
    assert texts[0] == texts[1]
    with tiny_engine(device_pages=1000, digests=True) as engine:
        exact = said(test_adapters.play(engine, num_agents=16))
    assert {tokens for tokens, _ in texts[0]} & {tokens for tokens, _ in exact}
    assert all(a != b for (_, a), (_, b) in zip(texts[0], exact, strict=True))


def test_log_probabilities_stay_near() -> None:
    prompt = np.random.default_rng(3).integers(0, 256, 200).tolist()
    found = []
    for kv_dtype in ("auto", "fp8"):
        with tiny_engine(kv_dtype=kv_dtype) as engine:
            reply = engine.agent("a").generate(prompt, max_tokens=0, prompt_logprobs=0)
            assert reply.prompt_logprobs is not None
            found.append(reply.prompt_logprobs.logprobs)
    gap = np.abs(found[0] - found[1])
    assert 0 < gap.mean() < 0.05


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_dtype"):
        with_settings(None, {"kv_dtype": "int4"})
    loaded = tiny_model()
    odd = replace(loaded, config=replace(loaded.config, head_dim=18))
    with pytest.raises(ConfigError, match=r"heads of 18 elements.*multiple of 4.*kv_dtype='auto'"):
        parts_for(odd, with_settings(None, {"kv_dtype": "fp8"}), tokenizer=TOKENIZER)
