"""One's own model and hardware, described by a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scalesim.errors import ConfigError
from scalesim.replay.hardware import HARDWARE, MODELS, CostModel, StepWork
from scalesim.replay.own import hardware_of, model_of

QWEN = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}  # fmt: skip
MIXED = {"hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128,
         "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_attention_heads": 32,
         "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936}  # fmt: skip
DEVICE = {"peak_flops": 1e14, "memory_bytes_per_s": 1e12, "memory_bytes": 1.6e10,
          "link_bytes_per_s": 1e10}  # fmt: skip


def model(folder: Path, **config: Any) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def device(folder: Path, **fields: Any) -> str:
    path = folder / "mine.json"
    path.write_text(json.dumps({**DEVICE, **fields}))
    return str(path)


def test_a_config_gives_what_the_table_says(tmp_path: Path) -> None:
    known, own = MODELS["qwen2.5-7b"], model_of(model(tmp_path, **QWEN))
    assert own.geometry() == known.geometry() and own.name == tmp_path.name
    assert own.num_params == pytest.approx(known.num_params, rel=0.001)
    assert model_of(str(tmp_path / "config.json")) == own
    assert model_of(model(tmp_path, text_config=QWEN)) == own


def test_experts_are_all_read_and_few_computed(tmp_path: Path) -> None:
    """Qwen3-30B-A3B: 30 billion parameters, 3 of them a token."""
    own = model_of(model(tmp_path, **MIXED))
    cost = CostModel(HARDWARE["h100"], own)
    assert cost.read_bytes(StepWork(1, 0, 0)) == pytest.approx(60.4e9, rel=0.01)
    assert cost.flops(StepWork(1, 0, 0)) == pytest.approx(6.06e9, rel=0.01)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers is None; it must be a whole number"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 1 << 40}, "hidden_size is 1099511627776"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"num_experts": 4, "num_experts_per_tok": 8}, "num_experts_per_tok is 8"),
        (
            {"num_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 99},
            "dense_replace",
        ),
    ],
)
def test_a_config_that_is_wrong_is_named(tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        model_of(model(tmp_path, **{**QWEN, **change}))


def test_a_device_is_its_rates(tmp_path: Path) -> None:
    own = hardware_of(device(tmp_path, gemm_share=0.5, step_overhead_s=0))
    assert (own.name, own.gemm_share, own.memory_share) == ("mine", 0.5, 0.8)
    assert own.link_bytes_per_s == 1e10 and own.step_overhead_s == 0.0
    assert hardware_of("h100") is HARDWARE["h100"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peak_flops": 0}, "peak_flops is 0; it must be a number above 0"),
        ({"peak_flops": None}, "peak_flops is None"),
        ({"link_bytes_per_s": "52GB"}, "link_bytes_per_s is '52GB'"),
        ({"memory_bytes_per_s": float("nan")}, "memory_bytes_per_s is nan"),
        ({"memory_bytes": float("inf")}, "memory_bytes is inf"),
        ({"gemm_share": 1.5}, "gemm_share is 1.5; it must be a number above 0, up to 1"),
        ({"flops": 1}, "unknown field 'flops'; known: name, peak_flops"),
    ],
)
def test_a_device_that_is_wrong_is_named(tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        hardware_of(device(tmp_path, **change))


@pytest.mark.parametrize("read", [hardware_of, model_of])
def test_a_file_that_is_none_is_named(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(ConfigError, match="is missing"):
        read(str(path))
    for content, says in (
        (b"{", "is not JSON"),
        (b"[]", "must be a JSON object"),
        (b"\xff", "is not UTF-8"),
        (b"[" * 100_000, "nested deeper"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=says):
            read(str(path))
    with pytest.raises(ConfigError, match=r"unknown .* 'abacus'; there are"):
        read("abacus")
