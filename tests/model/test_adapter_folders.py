"""What a folder must hold to be an adapter, what is refused and why; packing loses nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesim.errors import AdapterError
from scalesim.model.adapters.layout import ALIGN, LayoutTable, LoraLayout, lora_sites
from scalesim.model.adapters.peft import (
    ModuleSettings,
    PackedAdapter,
    digest_of,
    read_adapter,
    tensor_name,
)
from tests.model.adapter_folders import adapter_tensors, write_adapter
from tests.model.conftest import TINY

PAGE = 8192


def read(folder: Path, dtype: torch.dtype = torch.float32, page_bytes: int = PAGE) -> Any:
    return read_adapter(folder, TINY, dtype, page_bytes)


def unpack(layout: LoraLayout, pages: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors in ``pages`` under their names in the file."""
    flat = torch.from_numpy(pages).view(-1).view(dtype)
    tensors = {}
    for layer, index, side, width, _, offsets in layout.rows():
        rows = torch.stack([flat[offset : offset + width] for offset in offsets.tolist()])
        tensors[tensor_name(layer, index, side)] = rows if side == "A" else rows.T.contiguous()
    return tensors


@pytest.mark.parametrize("rank", [1, 2, 3, 5, 8, 16, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpacked_weights_equal_the_files(rank: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """Bit for bit where the dtypes agree, else torch's cast."""
    tensors = adapter_tensors(TINY, rank, dtype=torch.float32)
    adapter = read(write_adapter(tmp_path / "a", TINY, rank, tensors=tensors), dtype)
    found = unpack(adapter.layout, adapter.pages, dtype)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.to(dtype)), name


ranks_of_layer = st.tuples(*[st.integers(0, 40)] * 7).filter(any)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    ranks=st.lists(ranks_of_layer, min_size=1, max_size=4),
    page=st.sampled_from([192, 256, 1024, 4096]),
)
def test_rows_neither_straddle_nor_overlap(ranks: Any, page: int) -> None:
    layout = LoraLayout(lora_sites(TINY), tuple(ranks), tuple((1.0,) * 7 for _ in ranks), page)
    used = np.zeros(layout.num_pages * page, np.int64)
    count = 0
    for _, _, _, width, _, offsets in layout.rows():
        for offset in offsets.tolist():
            assert offset % ALIGN == 0 and offset // page == (offset + width - 1) // page
            used[offset : offset + width] += 1
            count += width
    assert used.max() == 1 and used.sum() == count == layout.num_elements
    assert used[-page:].any(), "the last page is empty"


def test_a_row_longer_than_a_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        AdapterError, match="a rank row of 160 elements is longer than a page of 128"
    ):
        read(write_adapter(tmp_path / "a", TINY), page_bytes=512)


def identity(adapter: PackedAdapter) -> bytes:
    return digest_of(adapter.layout, adapter.invocation_tokens, adapter.pages)


def test_identity_is_the_content(tmp_path: Path) -> None:
    first = read(write_adapter(tmp_path / "a", TINY, 4))
    again = read(write_adapter(tmp_path / "b", TINY, 4))
    assert identity(first) == identity(again) and LayoutTable().number(first.layout) == 0
    table = LayoutTable()
    assert table.number(first.layout) == table.number(again.layout) == 0
    tensors = adapter_tensors(TINY, 4)
    tensors[tensor_name(1, 3, "B")][0, 0] += 1e-3
    digests = {
        identity(first),
        identity(read(write_adapter(tmp_path / "c", TINY, 4, tensors=tensors))),
        identity(read(write_adapter(tmp_path / "d", TINY, 4, lora_alpha=9))),
        identity(read(write_adapter(tmp_path / "e", TINY, 4, use_rslora=True))),
        identity(read(write_adapter(tmp_path / "f", TINY, 4, alora_invocation_tokens=[3]))),
    }
    assert len(digests) == 5


REFUSED_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "use_dora is True: not run"),
    ({"bias": "lora_only"}, "bias is 'lora_only'; run is only 'none'"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"lora_bias": True}, "lora_bias is True: not run"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]: not run"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'; run is only 'LORA'"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
    ({"use_qalora": True}, "use_qalora"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ({"something_new": 3}, "something_new is 3: not run"),
    ({"r": 0}, "rank 0 of model.layers.0.self_attn.q_proj; must be 1 to 256"),
    ({"r": 257}, "rank 257"),
    ({"r": True}, "rank True"),
    ({"rank_pattern": {"q_proj": 8}}, "gives it rank 8"),
    ({"r": 8}, r"is \[4, 64\]; adapter_config.json gives it rank 8"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern is .*; must be an object"),
    ({"rank_pattern": {"(": 8}}, "pattern .* is not valid"),
    ({"lora_alpha": float("nan")}, "lora_alpha nan"),
    ({"lora_alpha": float("inf")}, "lora_alpha inf"),
    ({"lora_alpha": "16"}, "lora_alpha '16'"),
    ({"target_modules": ["lm_head"]}, "name none of the projections"),
    ({"target_modules": None}, "name none of the projections"),
    ({"target_modules": [1]}, "must be a list or a pattern"),
    ({"target_modules": "(" * 600}, "a pattern of .* characters"),
    ({"target_modules": ["q_proj"]}, "is not one that adapter_config.json asks for"),
    ({"layers_to_transform": [0]}, "is not one that adapter_config.json asks for"),
    ({"alora_invocation_tokens": [1, 10_000]}, "leave the vocabulary, 0 to 198"),
    ({"alora_invocation_tokens": "hi"}, "must be token ids"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "reason"), REFUSED_SETTINGS, ids=lambda value: str(value)[:40])
def test_refused_settings(wrong: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", TINY, **wrong)
    with pytest.raises(AdapterError, match=reason) as caught:
        read(folder)
    assert str(folder) in str(caught.value)


def without(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def changed(name: str, change: Any) -> Any:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


A, B = tensor_name(0, 0, "A"), tensor_name(1, 6, "B")
REFUSED_TENSORS: list[tuple[Any, str]] = [
    (without(A), f"lacks tensor '{A}'"),
    (without(B), f"lacks tensor '{B}'"),
    (changed(A, lambda a: a[:, :-1]), r"is \[4, 63\]; this base model's .* wants \[4, 64\]"),
    (changed(B, lambda b: b[:-1]), r"is \[63, 4\]; this base model's projection wants \[64, 4\]"),
    (changed(A, lambda a: a[:2]), r"is \[2, 64\]; adapter_config.json gives it rank 4"),
    (changed(A, lambda a: a[None]), r"is \[1, 4, 64\]"),
    (changed(A, lambda a: a * float("nan")), "holds NaN or infinite values"),
    (changed(B, lambda b: b / 0), "holds NaN or infinite values"),
    (changed(A, lambda a: a.to(torch.int8)), "is torch.int8; weights are floating-point"),
    (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": t[A].clone()}), "is not one"),
    (lambda t: t.update({A.replace("A.weight", "magnitude_vector"): t[A] + 1}), "is not one"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "reason"), REFUSED_TENSORS, ids=range(len(REFUSED_TENSORS)))
def test_refused_tensors(wrong: Any, reason: str, tmp_path: Path) -> None:
    tensors = adapter_tensors(TINY, 4)
    wrong(tensors)
    folder = write_adapter(tmp_path / "a", TINY, tensors=tensors)
    with pytest.raises(AdapterError, match=reason):
        read(folder)


def test_values_that_the_dtype_does_not_hold_are_refused(tmp_path: Path) -> None:
    tensors = adapter_tensors(TINY, 4)
    tensors[A][0, 0] = 1e6
    folder = write_adapter(tmp_path / "a", TINY, tensors=tensors)
    assert read(folder).layout.ranks[0][0] == 4
    with pytest.raises(AdapterError, match=r"NaN or infinite values in torch.float16"):
        read(folder, torch.float16)


def test_refused_files(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", TINY)
    with pytest.raises(AdapterError, match="no such folder"):
        read(tmp_path / "none")
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    outside = tmp_path / "outside.safetensors"
    shutil.move(weights, outside)
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is missing"):
        read(folder)
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterError, match=r"pickled weights only .adapter_model.bin"):
        read(folder)
    weights.symlink_to(outside)
    with pytest.raises(AdapterError, match=r"links to .*outside"):
        read(folder)
    weights.unlink()
    weights.write_bytes(outside.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="not a readable safetensors file"):
        read(folder)
    shutil.copy(outside, weights)
    assert read(folder).pages.shape[1] == PAGE
    text = config.read_text()
    config.write_text(text[:-5])
    with pytest.raises(AdapterError, match="is not JSON"):
        read(folder)
    config.unlink()
    (tmp_path / "elsewhere.json").write_text(text)
    config.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(AdapterError, match=r"links to .*outside"):
        read(folder)


@pytest.mark.parametrize(
    "settings_",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q|down)_proj"},
        {"target_modules": "q_proj"},  # a pattern for the whole key, which it is not
        {"target_modules": ["q_proj", "mlp.up_proj"], "layers_to_transform": [1]},
        {"target_modules": ["v_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": ["v_proj"], "layers_to_transform": 0, "layers_pattern": ["h", "layers"]},
        {"target_modules": ["v_proj"], "layers_to_transform": [0], "layers_pattern": "blocks"},
        {"target_modules": ["_proj"]},
        {"target_modules": ["k_proj", "o_proj"], "exclude_modules": r".*layers\.1.*"},
        {"target_modules": ["k_proj", "o_proj"], "exclude_modules": ["o_proj"]},
        {"target_modules": ["model.layers.0.mlp.gate_proj"]},
    ],
    ids=str,
)
def test_targets_are_those_of_peft(settings_: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    from peft.tuners.tuners_utils import check_target_module_exists

    raw = json.loads(json.dumps(settings_))
    config = peft.LoraConfig(**settings_)
    for layer in range(12):
        for index in range(7):
            key = tensor_name(layer, index, "A").split(".", 2)[2].removesuffix(".lora_A.weight")
            found = check_target_module_exists(config, key)
            excluded = type(found).__name__ == "_ExcludedModule"
            theirs = settings_["target_modules"] == "all-linear" or (bool(found) and not excluded)
            assert ModuleSettings(raw).is_target(key) == theirs, key
