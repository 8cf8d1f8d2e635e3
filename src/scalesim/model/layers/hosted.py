"""Hosted models: a causal LM of transformers with ScaleSim's attention, KV pages and block table.

transformers' attention interface lets a model call another function in place of its attention, as
the transformers back ends of vLLM and TGI do. The model sees one long row of tokens with their
positions, from any number of sequences. ``hosting`` makes these models, and checks that they can be
run this way.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from scalesim_kernels import KernelSet
from torch import Tensor, nn

from scalesim.errors import AdapterError, UnsupportedModelError
from scalesim.model.checkpoint.config import ModelShape
from scalesim.model.layers.decoder import ForwardContext

INTERFACE = "scalesim"
# Keywords of attention that do not change its result here.
WITHOUT_EFFECT = frozenset(
    [
        "attention_mask", "cache_position", "dropout", "head_mask", "is_causal", "layer_idx",
        "num_items_in_batch", "output_attentions", "output_hidden_states", "output_router_logits",
        "past_key_values", "position_embeddings", "position_ids", "return_dict", "use_cache",
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """A layer's call to attention: heads and options. ``unknown`` are the keywords that are not
    supported and must not be ignored."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None
    unknown: tuple[str, ...]


class PagedLayers:
    """The attention of all layers of one model, whose modules hold this object as ``paged``.

    Without a ``step``, a call to attention is only noted, in ``calls`` by layer.
    """

    def __init__(self) -> None:
        self.calls: dict[int, AttentionCall] = {}
        self.step: ForwardContext | None = None
        self.no_rotation = torch.zeros(0)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, options: dict[str, Any]
    ) -> Tensor:
        """The attention of a layer, ``[num_tokens, num_heads, head_dim]``; q, k and v have the same
        layout, with their own numbers of heads."""
        assert self.step is not None
        heads = torch.cat((q, k, v), dim=1).flatten(1)
        return self.step.attend(heads, layer, self.no_rotation, scale, options)


def paged_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The attention function that models call. query : ``[1, num_heads, num_tokens, head_dim]``;
    returns ``[1, num_tokens, num_heads, head_dim]``, and no weights."""
    layers: PagedLayers = module.paged
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if layers.step is None:
        given = {**more, "attention_mask": attention_mask}
        layers.calls[module.layer_idx] = note_call(q, k, v, sliding_window, given)
        return query.new_zeros((1, *q.shape[:2], v.shape[2])), None
    given = {"window": sliding_window, "soft_cap": softcap}
    options = {name: option for name, option in given.items() if option is not None}
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    return layers.attend(module.layer_idx, q, k, v, float(scale), options)[None], None


def note_call(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, given: Mapping[str, Any]
) -> AttentionCall:
    unknown = [name for name, value in given.items() if value is not None]
    unknown = [name for name in unknown if name not in WITHOUT_EFFECT]
    if given.get("attention_mask") is not None:
        unknown.append("attention_mask")
    if given.get("is_causal") is False:
        unknown.append("is_causal=False")
    return AttentionCall(
        q.shape[1], k.shape[1], k.shape[2], v.shape[2], window, tuple(sorted(unknown))
    )


class Body(nn.Module):
    """A wrapper around a model's decoder that can return given hidden states, so that the rest of
    the model (head, scale, cap) can be run on some rows alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.given: Tensor | None = None
        self.output: type[Any] | None = None  # the class of what the decoder returned

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.given is not None and self.output is not None:
            return self.output(last_hidden_state=self.given)
        result = self.inner(*args, **kwargs)
        self.output = type(result)
        return result

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class PackedLinear(nn.Module):
    """A linear layer that uses the engine's kernels, so that a row's bits do not depend on the
    other rows."""

    def __init__(self, linear: nn.Linear, kernels: KernelSet) -> None:
        super().__init__()
        self.kernels, self.out = kernels, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias  # some models read these
        self.matrix = kernels.pack_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return self.kernels.linear(rows, self.matrix, self.bias).view(*x.shape[:-1], self.out)


class HostedModel:
    """A ``Decoder`` made of transformers' ``model``, whose attention is set to ``INTERFACE``."""

    takes_graphs = False  # the layers may read values on the host
    # torch's own norms and activations, of which a hosted model has its own, vary with other counts
    row_multiple = 16

    def __init__(self, model: Any, shape: ModelShape | None) -> None:
        self.hf_model, self._shape = model, shape
        self.layers = PagedLayers()
        weights = model.get_input_embeddings().weight
        self.dtype, self.place = weights.dtype, str(weights.device)
        for module in model.modules():
            if hasattr(module, "layer_idx"):
                module.paged = self.layers
        self._body = next((part for part in model.modules() if isinstance(part, Body)), None)
        if self._body is None:
            inner = model.get_decoder()
            self._body = Body(inner)
            name = next(name for name, part in model.named_modules() if part is inner)
            model.set_submodule(name, self._body)

    @property
    def config(self) -> ModelShape:
        assert self._shape is not None
        return self._shape

    def packed(self, kernels: KernelSet) -> HostedModel:
        """A copy of the model that shares the weights, with linear layers that use ``kernels``."""
        tensors = itertools.chain(self.hf_model.parameters(), self.hf_model.buffers())
        shared: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
        shared[id(self.hf_model.config)] = self.hf_model.config
        mine = copy.deepcopy(self.hf_model, shared)
        for name, part in list(mine.named_modules()):
            if type(part) is nn.Linear and type(part.weight) is nn.Parameter:
                mine.set_submodule(name, PackedLinear(part, kernels))
        return HostedModel(mine, self._shape)

    def reserve(self, num_positions: int) -> None:
        """Make the rotary table of the KV store: cosines of 1 and sines of 0, because K is already
        rotated."""
        half = self.config.head_dim // 2
        ones = torch.ones((num_positions, half), dtype=self.dtype, device=self.place)
        self.layers.no_rotation = torch.cat((ones, torch.zeros_like(ones)), dim=1)

    def note_calls(self, token_ids: Tensor) -> dict[int, AttentionCall]:
        """Run the model on ``token_ids`` and return each layer's call to attention."""
        self.layers.calls.clear()
        self.run(token_ids, torch.arange(len(token_ids), device=token_ids.device))
        return dict(self.layers.calls)

    def forward(self, token_ids: Tensor, context: ForwardContext) -> Tensor:
        if context.lora is not None:
            raise UnsupportedModelError("adapters are run on native models only")
        self.layers.step = context
        try:
            return self.run(token_ids, context.batch.positions)
        finally:
            self.layers.step = None

    def run(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        assert self._body is not None
        ids, position_ids = token_ids.long()[None], positions.long()[None]
        hidden: Tensor = self._body(input_ids=ids, position_ids=position_ids, use_cache=False)[0][0]
        return hidden

    def logits(self, hidden: Tensor, kernels: KernelSet, out: Tensor | None = None) -> Tensor:
        assert self._body is not None
        self._body.given = hidden[None]
        try:
            ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
            logits: Tensor = self.hf_model(input_ids=ids, use_cache=False).logits[0]
        finally:
            self._body.given = None
        return logits.float() if out is None else out.copy_(logits)


def no_adapters(path: str | Path) -> NoReturn:
    """The reader of adapter folders for hosted models: raises ``AdapterError``."""
    raise AdapterError(f"adapter {path}: adapters are run on native models only (docs/models.md)")
