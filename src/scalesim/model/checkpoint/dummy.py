"""Random weights for any config: for tests and ``--dummy-weights``.

The scales keep activations of a deep random model in range: norms near 1, matrices at
``1 / sqrt(in)``, and logits with a standard deviation of about 2, neither flat nor one-hot.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.weights import TensorShape, expected_shapes

LOGIT_STD = 2.0


def dummy_tensor(
    name: str, shape: TensorShape, seed: int, dtype: torch.dtype, place: str = "cpu"
) -> Tensor:
    """A random tensor, a function of (name, shape, seed, kind of ``place``) alone."""
    generator = torch.Generator(place).manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    values = torch.randn(shape, generator=generator, device=place)
    if name.endswith("norm.weight"):
        values = 1 + 0.1 * values
    elif name.endswith(".bias"):
        values = 0.1 * values
    elif not name.startswith("model.embed"):
        values = values * shape[-1] ** -0.5
    if name == "lm_head.weight":
        values = values * LOGIT_STD
    return values.to(dtype)


def dummy_tensors(
    config: ModelConfig, seed: int, dtype: torch.dtype, place: str = "cpu"
) -> dict[str, Tensor]:
    """Every tensor of a checkpoint of this config."""
    shapes = expected_shapes(config)
    tensors = {
        name: dummy_tensor(name, shape, seed, dtype, place) for name, shape in shapes.items()
    }
    if config.family.shifted_norms:
        for name, tensor in tensors.items():
            if name.endswith("norm.weight"):
                tensor -= 1
    if config.tie_embeddings:  # the embedding is also the head, so it gets the head's scale
        tensors["model.embed_tokens.weight"] *= LOGIT_STD * config.hidden_size**-0.5
    return tensors
