"""Native families beyond Llama's in an engine: what a window, experts or soft caps add must not
depend on memory, chunks or neighbours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scalesim.model.checkpoint.config import ExpertsConfig, ModelConfig
from scalesim.model.checkpoint.loader import load_model
from scalesim.model.layers.rope import RopeConfig
from tests.engine.world import TOKENIZER
from tests.model_folders import write_dummy_model

from .conftest import TINY
from .pressure import check_texts

SMALL = replace(TINY, vocab_size=TOKENIZER.vocab_size)
GEMMA2 = replace(
    SMALL, architecture="Gemma2ForCausalLM", windows=(20, None), soft_cap=5.0, logit_soft_cap=9.0,
    tie_embeddings=True,
)  # fmt: skip
GEMMA3 = replace(
    SMALL, architecture="Gemma3ForCausalLM", windows=(33, None), qk_norm=True,
    local_rope=RopeConfig(100.0),
)  # fmt: skip
EXPERTS = replace(
    SMALL, architecture="Qwen3MoeForCausalLM", qk_norm=True,
    experts=ExpertsConfig(4, 2, 48, True, (0, 1)),
)  # fmt: skip


@pytest.mark.parametrize("config", [GEMMA2, GEMMA3, EXPERTS], ids=lambda c: c.architecture)
def test_texts_do_not_depend_on_memory(config: ModelConfig, tmp_path: Path) -> None:
    check_texts(load_model(write_dummy_model(tmp_path / "model", config)))
