"""A model's shape and options, from the ``config.json`` of a Hugging Face folder.

Torch-free. What ScaleSim cannot run is refused here, by name, before any weight is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalesim.errors import UnsupportedModelError, WeightsError
from scalesim.model.families import FAMILIES, Family
from scalesim.model.rope import RopeConfig, inverse_frequencies

Json = Mapping[str, Any]

LAYER_KINDS = ("full_attention", "sliding_attention")
ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh",)}
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """A mixture of experts: each token goes through the ``per_token`` experts that its router likes
    best. ``normalize``: their weights are made to add up to 1."""

    count: int
    per_token: int
    width: int
    normalize: bool
    layers: tuple[int, ...]  # the others have an ordinary MLP


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that the decoder needs to know; one class covers all native families.

    ``windows``: of each layer, how many positions it sees (``None``: all); empty where none has
    one. ``soft_cap``: of attention scores; ``logit_soft_cap``: of the logits. ``local_rope``: the
    rotation of layers with a window, where they have their own.
    """

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
    windows: tuple[int | None, ...] = ()
    soft_cap: float | None = None
    logit_soft_cap: float | None = None
    query_scalar: float | None = None  # scores are divided by its root; head_dim's where None
    local_rope: RopeConfig | None = None
    experts: ExpertsConfig | None = None

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]

    @property
    def attention_scale(self) -> float:
        return math.pow(self.query_scalar or self.head_dim, -0.5)

    def window_of(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None

    def rope_of(self, layer: int) -> RopeConfig:
        return self.rope if self.window_of(layer) is None else self.local_rope or self.rope

    def attention_options(self, layer: int) -> dict[str, Any]:
        """What the attention ops are given by keyword; empty for plain attention."""
        options = {"window": self.window_of(layer), "soft_cap": self.soft_cap}
        return {name: value for name, value in options.items() if value is not None}

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
    architecture = _architecture(raw)
    family = FAMILIES[architecture]
    _refuse(raw, family)
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
    rope, local_rope = _ropes(raw, family)
    inverse_frequencies(rope, head_dim)  # raises where its factors are too few
    num_layers = _positive(raw, "num_hidden_layers")
    bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        architecture=architecture,
        vocab_size=_positive(raw, "vocab_size"),
        hidden_size=_positive(raw, "hidden_size"),
        intermediate_size=_positive(raw, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position=rope.max_position(_positive(raw, "max_position_embeddings")),
        rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=rope,
        qkv_bias=family.bias or bias,
        o_bias=not family.bias and bias,
        mlp_bias=family.model_type == "llama" and bool(raw.get("mlp_bias", False)),
        qk_norm=family.qk_norm != "none",
        tie_embeddings=bool(raw.get("tie_word_embeddings", family.tied)),
        dtype=stated_dtype(raw),
        eos_token_ids=token_ids(raw, generation or {}),
        bos_token_id=raw.get("bos_token_id"),
        windows=_windows(raw, family, num_layers),
        soft_cap=raw.get("attn_logit_softcapping", family.soft_caps[0]),
        logit_soft_cap=raw.get("final_logit_softcapping", family.soft_caps[1]),
        query_scalar=raw.get("query_pre_attn_scalar", family.query_scalar),
        local_rope=local_rope,
        experts=_experts(raw, num_layers) if family.experts else None,
    )


def _architecture(raw: Json) -> str:
    named = raw.get("architectures") or []
    for name in named:
        if name in FAMILIES:
            return str(name)
    raise UnsupportedModelError(
        f"architecture {', '.join(map(str, named)) or '(none named)'} is not native; "
        f"native are {', '.join(FAMILIES)}"
    )


def _refuse(raw: Json, family: Family) -> None:
    """Raise for settings that would change the model's output and that we do not run.

    ``auto_map`` is not one: the code it names is never run, and these architectures are known.
    """
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"quantization_config ({method}): quantized weights are not run"
        )
    known = ACTIVATIONS[family.activation]
    activation = raw.get("hidden_activation") or raw.get("hidden_act") or known[0]
    if activation not in known:
        raise UnsupportedModelError(
            f"hidden_act {activation!r}: only {known[0]!r} is supported in {family.model_type}"
        )
    if raw.get("use_bidirectional_attention"):
        raise UnsupportedModelError("use_bidirectional_attention: only causal attention is run")
    if raw.get("attn_logit_softcapping") is not None and family.model_type != "gemma2":
        raise UnsupportedModelError(
            f"attn_logit_softcapping in {family.model_type}: supported in gemma2 only"
        )


def _windows(raw: Json, family: Family, num_layers: int) -> tuple[int | None, ...]:
    """Of each layer; empty where no layer has one."""
    kinds = _layer_kinds(raw, family, num_layers)
    if unknown := [kind for kind in kinds if kind not in LAYER_KINDS]:
        raise UnsupportedModelError(
            f"layer type {unknown[0]!r}: known are {', '.join(LAYER_KINDS)}"
        )
    if LAYER_KINDS[1] not in kinds:
        return ()
    window = raw.get("sliding_window", 4096)
    if family.windows == "none":
        raise UnsupportedModelError(
            f"sliding_window {window} is in use: {family.model_type} has full attention only"
        )
    if window is None:
        raise UnsupportedModelError("layer_types has sliding_attention; sliding_window is missing")
    size = _positive(raw, "sliding_window", 4096)
    return tuple(size if kind == LAYER_KINDS[1] else None for kind in kinds)


def _layer_kinds(raw: Json, family: Family, num_layers: int) -> list[str]:
    full, sliding = LAYER_KINDS
    if raw.get("layer_types") and family.windows != "all":
        kinds = list(raw["layer_types"])
        if len(kinds) != num_layers:
            raise UnsupportedModelError(f"layer_types names {len(kinds)} layers of {num_layers}")
        return kinds
    every = range(num_layers)
    off = "sliding_window" in raw and raw["sliding_window"] is None
    if family.windows == "even":
        return [full if layer % 2 else sliding for layer in every]
    if family.windows == "most":
        pattern = int(raw.get("sliding_window_pattern", 6))
        return [sliding if (layer + 1) % pattern else full for layer in every]
    if family.windows == "all":
        # As transformers reads them: Phi-3's default is none, Mistral's 4096.
        off = off or (family.fused and "sliding_window" not in raw)
        return [full if off else sliding] * num_layers
    if off or not raw.get("use_sliding_window", False):
        return [full] * num_layers
    first = 0 if family.experts else int(raw.get("max_window_layers", 28))
    return [sliding if layer >= first else full for layer in every]


def _ropes(raw: Json, family: Family) -> tuple[RopeConfig, RopeConfig | None]:
    """Of layers without a window and with one; ``None`` where they are the same."""
    stated = _positive(raw, "max_position_embeddings")
    nested = {kind: (raw.get("rope_parameters") or {}).get(kind) for kind in LAYER_KINDS}
    if not family.local_rope:
        if any(nested.values()):
            raise UnsupportedModelError("rope_parameters by layer type: one for all is supported")
        return RopeConfig.from_json(raw, stated), None
    old = {"rope_theta": 1e6, **{key: raw[key] for key in ("rope_theta",) if key in raw}}
    full = RopeConfig.from_json(
        {**old, "rope_scaling": raw.get("rope_scaling"), "rope_parameters": nested[LAYER_KINDS[0]]},
        stated,
    )
    local = {"rope_theta": raw.get("rope_local_base_freq", 1e4)}
    parameters = {**local, "rope_parameters": nested[LAYER_KINDS[1]]}
    return full, RopeConfig.from_json(parameters, stated)


def _experts(raw: Json, num_layers: int) -> ExpertsConfig | None:
    count = _positive(raw, "num_experts", raw.get("num_local_experts", 128))
    step = _positive(raw, "decoder_sparse_step", 1)
    dense = raw.get("mlp_only_layers") or []
    layers = [i for i in range(num_layers) if i not in dense and (i + 1) % step == 0]
    return ExpertsConfig(
        count,
        _positive(raw, "num_experts_per_tok", 8),
        _positive(raw, "moe_intermediate_size", 768),
        bool(raw.get("norm_topk_prob", False)),
        tuple(layers),
    )


def _positive(raw: Json, key: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UnsupportedModelError(f"config.json: {key} is {value!r}; must be a positive integer")
    return value


def stated_dtype(raw: Json) -> str:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedModelError(f"dtype {name!r}: supported are {', '.join(DTYPES)}")
    return name


def token_ids(raw: Json, generation: Json) -> tuple[int, ...]:
    ids: list[int] = []
    for value in (raw.get("eos_token_id"), generation.get("eos_token_id")):
        if value is not None:
            ids += value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(int(i) for i in ids))
