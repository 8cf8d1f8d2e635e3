"""Adapter folders written by hand: a tiny config, random weights, one thing wrong where asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from scalesim.model.adapters.layout import lora_sites
from scalesim.model.adapters.peft import PROJECTIONS, tensor_name
from scalesim.model.checkpoint.config import ModelConfig


def adapter_tensors(
    model: ModelConfig, rank: int, *, slices: tuple[int, ...] = tuple(range(7)), seed: int = 0,
    dtype: torch.dtype = torch.float32, scale: float = 0.5,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """A and B of every layer for these of the seven projections, at one rank."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(model.num_layers):
        for site in lora_sites(model):
            for place, width in enumerate(site.out_widths):
                index = site.first_slice + place
                if index in slices:
                    a = torch.randn(rank, site.in_width, generator=generator)
                    b = torch.randn(width, rank, generator=generator)
                    a, b = a * scale * site.in_width**-0.5, b * scale * rank**-0.5
                    tensors[tensor_name(layer, index, "A")] = a.to(dtype)
                    tensors[tensor_name(layer, index, "B")] = b.to(dtype)
    return tensors


def adapter_json(rank: int, slices: tuple[int, ...] = tuple(range(7)), **settings: Any) -> Any:
    names = [PROJECTIONS[index].split(".")[1] for index in slices]
    plain = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": names}
    return {**plain, "bias": "none", "use_dora": False, "lora_dropout": 0.1, **settings}


def write_adapter(
    folder: Path, model: ModelConfig, rank: int = 4, *, seed: int = 0,
    slices: tuple[int, ...] = tuple(range(7)), tensors: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32, **settings: Any,
) -> Path:  # fmt: skip
    """A folder in PEFT's layout. ``settings`` go into its config as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(adapter_json(rank, slices, **settings))
    (folder / "adapter_config.json").write_text(text)
    if tensors is None:
        tensors = adapter_tensors(model, rank, slices=slices, seed=seed, dtype=dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
