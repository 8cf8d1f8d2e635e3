"""Weight-only quantization by torchao, an optional extra: matrices in 8 bits.

Embeddings, the head and routers keep their precision. The loaders quantize; the engine's kernels
then need ``with_quantized``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from scalesim_kernels import KernelSet
from scalesim_kernels.cpu_rows import RowProduct
from torch import Tensor, nn

from scalesim.errors import ConfigError
from scalesim.model.checkpoint.weights import ExpertWeights, LayerWeights, Weights

SCHEMES = ("int8", "float8")  # int8 has a scale for each row, float8 one for the matrix


def scheme_config(scheme: str) -> Any:
    """torchao's settings for ``scheme``. Raises ``ConfigError`` for an unknown name, or without
    torchao."""
    if scheme not in SCHEMES:
        raise ConfigError(f"quantize={scheme!r}: must be one of {', '.join(SCHEMES)}, or None")
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    except ImportError as error:
        raise ConfigError(
            f"quantize={scheme!r} needs torchao: pip install 'scalesim-runtime[quantize]'"
        ) from error
    return Int8WeightOnlyConfig() if scheme == "int8" else Float8WeightOnlyConfig()


def quantize_modules(model: nn.Module, scheme: str) -> None:
    """Quantize every linear layer but the head, in place."""
    from torchao.quantization import quantize_

    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None

    def chosen(module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.Linear) and module is not head

    quantize_(model, scheme_config(scheme), chosen)


def quantize_weights(weights: Weights, scheme: str) -> Weights:
    """The native decoder's weights with quantized matrices."""

    def one(matrix: Tensor) -> Tensor:
        holder = nn.Linear(1, 1, bias=False)
        holder.weight = nn.Parameter(matrix, requires_grad=False)
        whole = nn.Sequential(holder)
        quantize_modules(whole, scheme)
        return holder.weight

    def layer(old: LayerWeights) -> LayerWeights:
        new = old.packed(one)
        if isinstance(new.mlp, ExpertWeights) and isinstance(old.mlp, ExpertWeights):
            new = replace(new, mlp=replace(new.mlp, router=old.mlp.router))
        return new

    return replace(weights, layers=tuple(map(layer, weights.layers)))


def with_quantized(kernels: KernelSet) -> KernelSet:
    """``kernels`` with a ``linear`` that also takes matrices quantized by torchao. On a CPU, a
    row's bits do not depend on the other rows, as with ``kernels`` themselves."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if type(weight) is Tensor:
            return kernels.linear(x, weight, bias)
        if not x.is_cpu:
            return F.linear(x, weight, bias)
        kind = (type(weight), weight.shape, bias is None)
        return RowProduct(lambda rows: F.linear(rows, weight, bias), kind, weight.shape[0])(x)

    def pack_weight(weight: Tensor) -> Tensor:
        return kernels.pack_weight(weight) if type(weight) is Tensor else weight

    return replace(kernels, linear=linear, pack_weight=pack_weight)
