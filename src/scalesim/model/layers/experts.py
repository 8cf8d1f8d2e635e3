"""A mixture of experts: each token goes through the few MLPs with the highest router scores.

Tokens are grouped by expert on the host, so a step with experts cannot be captured as a graph. A
token's bits do not depend on other tokens: groups are padded to the kernels' row multiple, and the
outputs of a token's experts are added in the order of their numbers.
"""

from __future__ import annotations

import torch
from scalesim_kernels import KernelSet
from torch import Tensor

from scalesim.model.checkpoint.config import ExpertsConfig
from scalesim.model.checkpoint.weights import ExpertWeights


def route(logits: Tensor, config: ExpertsConfig) -> tuple[Tensor, Tensor]:
    """The experts of each token, ``[num_tokens, per_token]``, and their weights, in fp32."""
    weights, chosen = torch.softmax(logits.float(), dim=-1).topk(config.per_token)
    if config.normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return chosen, weights


def mix_experts(
    x: Tensor, weights: ExpertWeights, config: ExpertsConfig, kernels: KernelSet
) -> Tensor:
    """The weighted sum of each token's expert outputs, ``[num_tokens, hidden]``."""
    chosen, shares = route(kernels.linear(x, weights.router), config)
    shares, out = shares.to(x.dtype), torch.zeros_like(x)
    for index in sorted(set(chosen.flatten().tolist())):
        tokens, place = torch.where(chosen == index)
        rows = torch.cat((tokens, tokens[:1].expand(-len(tokens) % kernels.row_multiple)))
        expert = weights.experts[index]
        wide = kernels.silu_mul(kernels.linear(x.index_select(0, rows), expert.gate_up.weight))
        given = kernels.linear(wide, expert.down.weight)[: len(tokens)]
        out.index_add_(0, tokens, given * shares[tokens, place, None])
    return out
