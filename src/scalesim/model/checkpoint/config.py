"""Model configurations: shape and options, from the ``config.json`` of a Hugging Face folder.

Settings that ScaleSim cannot run are refused here, by name, before any weight is read. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalesim.errors import UnsupportedModelError
from scalesim.model.checkpoint.families import FAMILIES, Family
from scalesim.model.checkpoint.fields import Fields
from scalesim.model.checkpoint.files import Json, read_json, read_json_if_there
from scalesim.model.layers.rope import RopeConfig, inverse_frequencies

# Upper bounds that no model exceeds, so that data in proportion to the sizes fits into memory.
MAX_LAYERS = 4096
MAX_WIDTH = 1 << 20
MAX_HEADS = MAX_HEAD_DIM = MAX_EXPERTS = 1 << 14
MAX_EXPERTS_IN_ALL = 1 << 17
MAX_VOCAB = 1 << 24

LAYER_KINDS = ("full_attention", "sliding_attention")
ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh",)}
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """A mixture of experts: each token goes through the ``per_token`` experts with the highest
    router scores. With ``normalize``, their weights are scaled to a sum of 1."""

    count: int
    per_token: int
    width: int
    normalize: bool
    layers: tuple[int, ...]  # layers with experts; the others have an ordinary MLP


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The shape of a model, as engines and runners need it; for native and hosted models."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int  # for hosted models, used only to size the workspace
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(ModelShape):
    """The configuration of a native model; one class covers all native families.

    ``windows`` is each layer's attention window in positions (``None``: no window); empty if no
    layer has one. ``soft_cap`` applies to attention scores, ``logit_soft_cap`` to the logits.
    ``local_rope`` is the rotation of layers with a window, if they have their own.
    """

    rms_eps: float
    rope: RopeConfig
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    dtype: str = "float32"
    bos_token_id: int | None = None
    windows: tuple[int | None, ...] = ()
    soft_cap: float | None = None
    logit_soft_cap: float | None = None
    query_scalar: float | None = None  # scores are divided by its root; None: head_dim
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
        """Keyword arguments of the attention ops for this layer; empty for plain attention."""
        options = {"window": self.window_of(layer), "soft_cap": self.soft_cap}
        return {name: value for name, value in options.items() if value is not None}

    @staticmethod
    def from_folder(folder: Path) -> ModelConfig:
        """Parse ``config.json`` and, if there is one, ``generation_config.json``.

        Raises ``WeightsError`` if ``config.json`` is missing or not JSON, and
        ``UnsupportedModelError`` as ``parse_config`` does.
        """
        return parse_config(
            read_json(folder / "config.json"), read_json_if_there(folder / "generation_config.json")
        )


def parse_config(raw: Json, generation: Json | None = None) -> ModelConfig:
    """The config of a model from the parsed JSON files. Raises ``UnsupportedModelError``, naming
    the field and its rule, for a value of a wrong type or range, or one that is not supported."""
    fields = Fields("config.json", raw)
    architecture = _architecture(fields)
    family = FAMILIES[architecture]
    _refuse(fields, family)
    hidden = fields.whole("hidden_size", maximum=MAX_WIDTH)
    num_heads = fields.whole("num_attention_heads", maximum=MAX_HEADS)
    num_kv_heads = fields.whole("num_key_value_heads", num_heads, maximum=MAX_HEADS, null=True)
    head_dim = fields.whole("head_dim", hidden // num_heads, maximum=MAX_HEAD_DIM, null=True)
    if num_heads % num_kv_heads:
        raise UnsupportedModelError(
            f"num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    if head_dim < 2 or head_dim % 2:
        raise UnsupportedModelError(f"head_dim {head_dim} is odd or 0: rotary needs pairs")
    rope, local_rope = _ropes(fields, family)
    inverse_frequencies(rope, head_dim)  # raises if there are too few factors
    num_layers = fields.whole("num_hidden_layers", maximum=MAX_LAYERS)
    bias = fields.flag("attention_bias", null=True)
    vocab_size = fields.whole("vocab_size", maximum=MAX_VOCAB)
    caps = family.soft_caps
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.whole("intermediate_size", maximum=MAX_WIDTH),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position=rope.max_position(fields.whole("max_position_embeddings")),
        rms_eps=fields.number("rms_norm_eps", family.rms_eps, minimum=0, maximum=1),
        rope=rope,
        qkv_bias=family.bias or bias,
        o_bias=not family.bias and bias,
        mlp_bias=fields.flag("mlp_bias", null=True) and family.model_type == "llama",
        qk_norm=family.qk_norm != "none",
        tie_embeddings=fields.flag("tie_word_embeddings", family.tied),
        dtype=stated_dtype(raw),
        eos_token_ids=token_ids(raw, generation or {}),
        bos_token_id=fields.whole("bos_token_id", None, minimum=0, null=True),
        windows=_windows(fields, family, num_layers),
        soft_cap=_soft_cap(fields, "attn_logit_softcapping", caps[0]),
        logit_soft_cap=_soft_cap(fields, "final_logit_softcapping", caps[1]),
        query_scalar=fields.number(
            "query_pre_attn_scalar", family.query_scalar, above=0, null=family.query_scalar is None
        ),
        local_rope=local_rope,
        experts=_experts(fields, num_layers) if family.experts else None,
    )


def _soft_cap(fields: Fields, key: str, default: float | None) -> float | None:
    """The soft cap under ``key``; ``null`` means none, whatever the family's default."""
    if key in fields.raw and fields.raw[key] is None:
        return None
    cap: float | None = fields.number(key, default, above=0)
    return cap


def _architecture(fields: Fields) -> str:
    named = fields.names("architectures")
    for name in named:
        if name in FAMILIES:
            return name
    raise UnsupportedModelError(
        f"architecture {', '.join(named) or '(none named)'} is not native; "
        f"native are {', '.join(FAMILIES)}"
    )


def refuse_quantized(fields: Fields) -> None:
    """Raise for a checkpoint whose weights are stored in a quantized form."""
    quantization = fields.table("quantization_config")
    if quantization.raw:
        method = quantization.name("quant_method", "unknown")
        raise UnsupportedModelError(
            f"quantization_config ({method}): quantized weights are not run"
        )


def refuse_layer_kinds(kinds: Iterable[str]) -> None:
    for kind in kinds:
        if kind not in LAYER_KINDS:
            raise UnsupportedModelError(f"layer type {kind!r}: known are {', '.join(LAYER_KINDS)}")


def _refuse(fields: Fields, family: Family) -> None:
    """Raise for settings that would change the model's output and are not supported.

    ``auto_map`` is ignored: the code that it names is never run, and these architectures are known.
    """
    refuse_quantized(fields)
    known = ACTIVATIONS[family.activation]
    stated = "hidden_activation" if "hidden_activation" in fields else "hidden_act"
    activation = fields.name(stated, known[0], null=stated == "hidden_act")
    if activation not in known:
        raise UnsupportedModelError(
            f"hidden_act {activation!r}: only {known[0]!r} is supported in {family.model_type}"
        )
    if fields.flag("use_bidirectional_attention", null=True):
        raise UnsupportedModelError("use_bidirectional_attention: only causal attention is run")
    if "attn_logit_softcapping" in fields and family.model_type != "gemma2":
        raise UnsupportedModelError(
            f"attn_logit_softcapping in {family.model_type}: supported in gemma2 only"
        )


def _windows(fields: Fields, family: Family, num_layers: int) -> tuple[int | None, ...]:
    """The window of each layer; empty if no layer has one."""
    kinds = _layer_kinds(fields, family, num_layers)
    refuse_layer_kinds(kinds)
    if LAYER_KINDS[1] not in kinds:
        return ()
    if family.windows == "none":
        raise UnsupportedModelError(
            f"sliding_window {fields.raw.get('sliding_window', 4096)} is in use: "
            f"{family.model_type} has full attention only"
        )
    size = fields.whole("sliding_window", 4096 if "sliding_window" not in fields.raw else None,
                        null=True)  # fmt: skip
    if size is None:
        raise UnsupportedModelError("layer_types has sliding_attention; sliding_window is missing")
    return tuple(size if kind == LAYER_KINDS[1] else None for kind in kinds)


def _layer_kinds(fields: Fields, family: Family, num_layers: int) -> list[str]:
    full, sliding = LAYER_KINDS
    kinds = fields.names("layer_types")
    if kinds and family.windows != "all":
        if len(kinds) != num_layers:
            raise UnsupportedModelError(f"layer_types names {len(kinds)} layers of {num_layers}")
        return kinds
    every = range(num_layers)
    off = "sliding_window" in fields.raw and fields.raw["sliding_window"] is None
    if family.windows == "even":
        return [full if layer % 2 else sliding for layer in every]
    if family.windows == "most":
        pattern = fields.whole("sliding_window_pattern", 6)
        return [sliding if (layer + 1) % pattern else full for layer in every]
    if family.windows == "all":
        # As in transformers: without the key, Phi-3 has no window, Mistral one of 4096.
        off = off or (family.fused and "sliding_window" not in fields.raw)
        return [full if off else sliding] * num_layers
    in_use = fields.flag("use_sliding_window", null=family.windows == "none")
    if off or not in_use:
        return [full] * num_layers
    first = 0 if family.experts else fields.whole("max_window_layers", 28, minimum=0)
    return [sliding if layer >= first else full for layer in every]


def _ropes(fields: Fields, family: Family) -> tuple[RopeConfig, RopeConfig | None]:
    """The rotations of layers without a window and with one; ``None`` for the second if both are
    the same."""
    raw, stated = fields.raw, fields.whole("max_position_embeddings")
    parameters = fields.table("rope_parameters")
    nested = {kind: parameters.table(kind).raw for kind in LAYER_KINDS}
    if not family.local_rope:
        if any(nested.values()):
            raise UnsupportedModelError("rope_parameters by layer type: one for all is supported")
        return RopeConfig.from_json(raw, stated), None
    old = {"rope_theta": 1e6, **{key: raw[key] for key in ("rope_theta",) if key in fields}}
    full = RopeConfig.from_json(
        {**old, "rope_scaling": raw.get("rope_scaling"), "rope_parameters": nested[LAYER_KINDS[0]]},
        stated,
    )
    local = {"rope_theta": fields.number("rope_local_base_freq", 1e4, null=True)}
    return full, RopeConfig.from_json({**local, "rope_parameters": nested[LAYER_KINDS[1]]}, stated)


def _experts(fields: Fields, num_layers: int) -> ExpertsConfig:
    other = fields.whole("num_local_experts", 128, maximum=MAX_EXPERTS, null=True)
    count = fields.whole("num_experts", other, maximum=MAX_EXPERTS)
    if count * num_layers > MAX_EXPERTS_IN_ALL:
        raise UnsupportedModelError(
            f"config.json: num_experts {count} in num_hidden_layers {num_layers}; run are "
            f"{MAX_EXPERTS_IN_ALL} in all"
        )
    per_token = fields.whole("num_experts_per_tok", 8)
    if per_token > count:
        raise fields.wrong("num_experts_per_tok", per_token, f"at most num_experts, {count}")
    step = fields.whole("decoder_sparse_step", 1)
    dense = set(fields.wholes("mlp_only_layers"))
    layers = [i for i in range(num_layers) if i not in dense and (i + 1) % step == 0]
    return ExpertsConfig(
        count,
        per_token,
        fields.whole("moe_intermediate_size", 768, maximum=MAX_WIDTH),
        fields.flag("norm_topk_prob"),
        tuple(layers),
    )


def stated_dtype(raw: Json) -> str:
    fields = Fields("config.json", raw)
    key = "dtype" if "dtype" in fields else "torch_dtype"
    name = str(fields.name(key, "float32", null=True)).removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedModelError(f"dtype {name!r}: supported are {', '.join(DTYPES)}")
    return name


def token_ids(raw: Json, generation: Json) -> tuple[int, ...]:
    """End-of-sequence ids: those of generation_config.json, at which transformers stops; if it
    names none, those of config.json."""
    of_config = Fields("config.json", raw).wholes("eos_token_id")
    of_generation = Fields("generation_config.json", generation).wholes("eos_token_id")
    return tuple(dict.fromkeys(of_generation or of_config))
