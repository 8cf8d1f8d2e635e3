"""A model's shape and options, from the ``config.json`` of a Hugging Face folder.

Torch-free. What ScaleSim cannot run is refused here, by name, before any weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalesim.errors import UnsupportedModelError, WeightsError
from scalesim.model.rope import RopeConfig

Json = Mapping[str, Any]

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that the decoder needs to know; one class covers all supported families."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_eps: float
    rope: RopeConfig
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    dtype: str = "float32"
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @staticmethod
    def from_folder(folder: Path) -> ModelConfig:
        """Parse ``config.json`` and, where it is there, ``generation_config.json``.

        Raises ``WeightsError`` when the file is missing or not JSON, and ``UnsupportedModelError``.
        """
        raw = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        return parse_config(raw, read_json(generation) if generation.exists() else {})


def read_json(path: Path) -> Json:
    if not path.exists():
        raise WeightsError(f"{path} is missing: a model is a folder in Hugging Face's layout")
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise WeightsError(f"{path} holds a {type(parsed).__name__}, not an object")
    return parsed


def parse_config(raw: Json, generation: Json | None = None) -> ModelConfig:
    """The config of a model from the parsed JSON files. Raises ``UnsupportedModelError``."""
    family = _architecture(raw)
    _refuse(raw)
    num_heads = _positive(raw, "num_attention_heads")
    num_kv_heads = _positive(raw, "num_key_value_heads", num_heads)
    head_dim = _positive(raw, "head_dim", _positive(raw, "hidden_size") // num_heads)
    if num_heads % num_kv_heads:
        raise UnsupportedModelError(
            f"num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    if head_dim % 2:
        raise UnsupportedModelError(f"head_dim {head_dim} is odd: rotary needs pairs")
    max_position = _positive(raw, "max_position_embeddings")
    bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        architecture=family,
        vocab_size=_positive(raw, "vocab_size"),
        hidden_size=_positive(raw, "hidden_size"),
        intermediate_size=_positive(raw, "intermediate_size"),
        num_layers=_positive(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position=max_position,
        rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=RopeConfig.from_json(raw, max_position),
        qkv_bias=family == "Qwen2ForCausalLM" or bias,
        o_bias=family != "Qwen2ForCausalLM" and bias,
        mlp_bias=family == "LlamaForCausalLM" and bool(raw.get("mlp_bias", False)),
        qk_norm=family == "Qwen3ForCausalLM",
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        dtype=_dtype(raw),
        eos_token_ids=_token_ids(raw, generation or {}),
        bos_token_id=raw.get("bos_token_id"),
    )


def _architecture(raw: Json) -> str:
    named = raw.get("architectures") or []
    for name in named:
        if name in ARCHITECTURES:
            return str(name)
    raise UnsupportedModelError(
        f"architecture {', '.join(map(str, named)) or '(none named)'} is not supported; "
        f"supported are {', '.join(ARCHITECTURES)}"
    )


def _refuse(raw: Json) -> None:
    """Raise for settings that would change the model's output and that we do not run."""
    if raw.get("auto_map"):
        raise UnsupportedModelError("config.json has auto_map: remote code is never run")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"quantization_config ({method}): quantized weights are not run"
        )
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(f"hidden_act {activation!r}: only 'silu' is supported")
    if _slides(raw):
        raise UnsupportedModelError(
            f"sliding_window {raw.get('sliding_window')} is in use: "
            "only full attention is supported"
        )


def _slides(raw: Json) -> bool:
    if raw.get("layer_types"):
        return any(kind != "full_attention" for kind in raw["layer_types"])
    if not raw.get("use_sliding_window", False) or raw.get("sliding_window") is None:
        return False
    first = int(raw.get("max_window_layers", 28))
    return first < int(raw.get("num_hidden_layers", 0))


def _positive(raw: Json, key: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UnsupportedModelError(f"config.json: {key} is {value!r}; must be a positive integer")
    return value


def _dtype(raw: Json) -> str:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedModelError(f"dtype {name!r}: supported are {', '.join(DTYPES)}")
    return name


def _token_ids(raw: Json, generation: Json) -> tuple[int, ...]:
    ids: list[int] = []
    for value in (raw.get("eos_token_id"), generation.get("eos_token_id")):
        if value is not None:
            ids += value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(int(i) for i in ids))
