"""Fixtures of the commands' tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scalesim.cli.stage import OWN_MODEL
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.layers.rope import RopeConfig
from tests.model_folders import write_dummy_model

TINY = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=1536,
    hidden_size=32,
    intermediate_size=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    max_position=1024,
    rms_eps=1e-6,
    rope=RopeConfig(),
    eos_token_ids=(0,),
)


@pytest.fixture(scope="session")
def village_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights and the village's own tokens."""
    folder = write_dummy_model(tmp_path_factory.mktemp("village"), TINY)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(OWN_MODEL / name, folder / name)
    return folder
