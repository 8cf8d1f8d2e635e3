"""Model families: what the checkpoints of one architecture have in common.

One decoder serves all families; these records and ``config.json`` select its options. Torch-free;
read by the config's parser, the loader and the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Norms:
    """Names of a layer's norms by their place; ``None`` if there is none. A norm *after* attention
    or MLP is applied to its output before that is added to the residual."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


SANDWICH = Norms(
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
AFTER = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")

Windows = Literal["none", "all", "late", "even", "most"]
"""The layers with a sliding window if ``layer_types`` is absent: none (a window is refused); all;
those from ``max_window_layers`` on, if ``use_sliding_window``; every other, from the first; all but
every ``sliding_window_pattern``-th."""


@dataclass(frozen=True, slots=True)
class Family:
    """Properties of a family.

    ``qk_norm``: norms of Q and K, for each head or over all heads together. ``bias``: q, k and v
    have a bias, whatever the config says. ``fused``: checkpoints hold ``qkv_proj`` and
    ``gate_up_proj``. ``shifted_norms``: a norm's weight is stored minus 1, and multiplied in fp32.
    ``scaled_embedding``: embeddings are multiplied by ``sqrt(hidden_size)``. ``local_rope``: layers
    with a window have a rotation of their own. ``experts``: layers may be mixtures of experts.
    ``tied``, ``rms_eps``, ``query_scalar`` and ``soft_caps`` are the defaults of absent fields.
    """

    model_type: str
    norms: Norms = Norms()
    qk_norm: Literal["none", "head", "all"] = "none"
    bias: bool = False
    fused: bool = False
    windows: Windows = "none"
    activation: Literal["silu", "gelu_tanh"] = "silu"
    shifted_norms: bool = False
    scaled_embedding: bool = False
    local_rope: bool = False
    experts: bool = False
    tied: bool = False
    rms_eps: float = 1e-6
    query_scalar: int | None = None
    soft_caps: tuple[float | None, float | None] = (None, None)  # of scores, of logits


GEMMA = Family(
    "gemma2", norms=SANDWICH, activation="gelu_tanh", shifted_norms=True, scaled_embedding=True,
    tied=True, query_scalar=256,
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("llama"),
    "MistralForCausalLM": Family("mistral", windows="all"),
    "Qwen2ForCausalLM": Family("qwen2", bias=True, windows="late"),
    "Qwen3ForCausalLM": Family("qwen3", qk_norm="head", windows="late"),
    "Qwen3MoeForCausalLM": Family("qwen3_moe", qk_norm="head", windows="late", experts=True),
    "Phi3ForCausalLM": Family("phi3", fused=True, windows="all", rms_eps=1e-5),
    "Olmo2ForCausalLM": Family("olmo2", norms=AFTER, qk_norm="all", rms_eps=1e-5),
    "Gemma2ForCausalLM": replace(GEMMA, windows="even", soft_caps=(50.0, 30.0)),
    "Gemma3ForCausalLM": replace(
        GEMMA, model_type="gemma3_text", qk_norm="head", windows="most", local_rope=True
    ),
}
