"""Warms up the runners of an engine's own model and of one in pages, whose KV is smaller, then runs
both in one step, the weights at two places; prints what was compiled."""

from __future__ import annotations

import os

os.environ.pop("TRITON_INTERPRET", None)

from dataclasses import replace

import numpy as np
import torch
from scalesim_kernels import select
from scalesim_kernels.compile_only import TARGETS, compiled

from benchmarks.gpu.host import NoDevice, batch
from scalesim.batch_options import AttachmentBatch
from scalesim.device.streams import Fences
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.layers.native import NativeModel
from scalesim.model.layers.rope import RopeConfig
from scalesim.model.paged_weights import PagedModel, WeightLayout
from scalesim.model.runner.cuda_branch import CudaBranch
from scalesim.model.runner.cuda_runner import CudaRunner
from scalesim.model.runner.pool_view import pool_view
from scalesim.model.runner.settings import RunnerSettings
from scalesim.model.runner.several_models import ModelRunners

OWN = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=512, hidden_size=256, intermediate_size=512,
    num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64, max_position=1024, rms_eps=1e-6,
    rope=RopeConfig(),
)  # fmt: skip
ADDED = replace(OWN, architecture="Qwen2ForCausalLM", qkv_bias=True, num_kv_heads=1)
SETTINGS = RunnerSettings(16, 128, 49, 16)
CHUNK = 32


def geometry(shape: ModelConfig) -> PageGeometry:
    return PageGeometry(shape.num_layers, shape.num_kv_heads, shape.head_dim, 16, 2)


kernels = select("triton")
sample = kernels.sample  # what nothing computes must still be a token
kernels = replace(kernels, sample=lambda *args: sample(*args).zero_())
dtype, pages = torch.float16, torch.zeros((400, geometry(OWN).page_bytes), dtype=torch.uint8)
own_layout, layout = (WeightLayout(shape, dtype, pages.shape[1]) for shape in (OWN, ADDED))
elsewhere = torch.zeros((400, pages.shape[1]), dtype=torch.uint8)
own_model = NativeModel(OWN, own_layout.view(elsewhere, [0] * len(own_layout.runs)))
paged, device, fences = PagedModel(layout, pages), NoDevice(), Fences()


def pool(shape: ModelConfig) -> torch.Tensor:
    return pool_view(pages, geometry(shape), dtype)


with compiled(TARGETS["sm_90"]) as found:
    own = CudaRunner(own_model, kernels, pool(OWN), device, fences, SETTINGS)
    own.warm_up((CHUNK,))
    table = own.device_table
    added = CudaBranch(paged.model, kernels, pool(ADDED), device, SETTINGS, table)
    added.warm_up((CHUNK,))
    runners = ModelRunners(own)
    runners.add(1, added, paged)
    print("warm", len(found))
    found.clear()
    for step, head in enumerate((7, 7, 100)):
        given = batch(4, 2, adapters=False)
        numbers = np.array([0, 1] * 3, np.int32)
        rows = np.where(numbers == 1, 48, 0).astype(np.int32)
        heads = np.arange(len(layout.runs)) * max(layout.runs) + head
        changes = np.full(len(heads), 48, np.int32), np.arange(len(heads)), heads
        columns, places = (each.astype(np.int32) for each in changes[1:])
        given = replace(
            given, step=step, weights=AttachmentBatch(rows, numbers, np.zeros_like(rows)),
            table_rows=changes[0], table_cols=columns, table_pages=places,
        )  # fmt: skip
        runners.collect(runners.launch(given))
    print("served", len(found), *(kernel.name for kernel in found))
