"""Reads an adapter in PEFT's folder layout: ``adapter_config.json``, ``adapter_model.safetensors``.

An adapter is input from strangers: no pickle, no path that leaves its folder, and whatever would
make its outputs differ from PEFT's is refused by name. What comes back is packed for the pool.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from scalesim.checks import shown
from scalesim.core import Bytes2D
from scalesim.errors import AdapterError, WeightsError
from scalesim.model.adapters.layout import MAX_RANK, LoraLayout, Ranks, Scales, lora_sites
from scalesim.model.adapters.patterns import MAX_PATTERN, Patterns
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.fields import Fields
from scalesim.model.checkpoint.files import Json, read_bytes, read_json
from scalesim.model.checkpoint.loader_files import PICKLES, safe_path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_ALPHA = 1e30  # a scale is a float32
ROOM = 16 << 20  # of a weight file, for all but weights
PROJECTIONS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
FUSED = ("self_attn.qkv_proj", "mlp.gate_up_proj")

# Settings that change what the adapter computes, with the only values that we run.
PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
# Settings without effect on a trained adapter; any other must be unset.
WITHOUT_EFFECT = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    ]
)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SEED = secrets.randbits(64)  # digests live as long as the process: nobody can prepare equal ones
READ = frozenset(
    [
        "r",
        "lora_alpha",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "alora_invocation_tokens",
    ]
)


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Ranks and scales by layer and projection (0 where it is the base model's), and the tokens
    that activate the adapter (``None``: it always is)."""

    ranks: Ranks
    scales: Scales
    invocation_tokens: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """``pages`` ``[num_pages, page_bytes]`` hold the weights as ``layout`` says, zeros between.
    ``digest`` names the content: layout, invocation tokens and every byte of the pages."""

    digest: bytes
    layout: LoraLayout
    invocation_tokens: tuple[int, ...] | None
    pages: Bytes2D


def read_adapter(
    folder: str | Path, model: ModelConfig, dtype: torch.dtype, page_bytes: int
) -> PackedAdapter:
    """The adapter in ``folder`` for ``model``, weights cast to ``dtype``. Raises ``AdapterError``
    for one that is missing, damaged, made for another base, or beyond what is run."""
    path = Path(folder).expanduser()
    try:
        return _read(path, model, dtype, page_bytes)
    except AdapterError as error:
        raise AdapterError(f"adapter {path}: {error}") from error
    except (WeightsError, OSError) as error:
        raise AdapterError(f"adapter {path}: {error}") from error


def _read(path: Path, model: ModelConfig, dtype: torch.dtype, page_bytes: int) -> PackedAdapter:
    if not path.is_dir():
        raise AdapterError("no such folder")
    raw = read_json(safe_path(path, CONFIG), MAX_CONFIG_BYTES, AdapterError)
    config = parse_adapter_config(raw, model)
    layout = LoraLayout(
        lora_sites(model), config.ranks, config.scales, page_bytes // dtype.itemsize
    )
    pages = pack(layout, read_tensors(path, layout), dtype)
    return PackedAdapter(digest_of(layout, config, pages), layout, config.invocation_tokens, pages)


def read_tensors(folder: Path, layout: LoraLayout) -> dict[str, Tensor]:
    """What the weight file holds. It is read at once, not mapped: a mapped file that somebody cuts
    short ends the process."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    max_bytes = layout.num_elements * torch.float64.itemsize + ROOM
    content = read_bytes(weights_path(folder), max_bytes, AdapterError)
    try:
        return load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise AdapterError(f"{WEIGHTS} is not a readable safetensors file: {error}") from error


def weights_path(folder: Path) -> Path:
    if not (folder / WEIGHTS).exists():
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        if pickles:
            raise AdapterError(
                f"holds pickled weights only ({pickles[0]}): loading them could run code; save the "
                "adapter as safetensors"
            )
    return safe_path(folder, WEIGHTS)


# -- the config -------------------------------------------------------------------------------


def parse_adapter_config(raw: Json, model: ModelConfig) -> AdapterConfig:
    """Ranks and scales from the parsed JSON. Raises ``AdapterError`` naming the setting."""
    refuse(raw)
    patterns = Patterns()
    rslora = Fields(CONFIG, raw, AdapterError).flag("use_rslora", null=True)
    ranks, scales = [], []
    for layer in range(model.num_layers):
        keys = [f"model.layers.{layer}.{name}" for name in PROJECTIONS]
        targets = [is_target(raw, key, patterns) for key in keys]
        here = [
            _rank(raw, key, patterns) if target else 0
            for key, target in zip(keys, targets, strict=True)
        ]
        refuse_layer(raw, model, layer, here, patterns)
        ranks.append(tuple(here))
        scales.append(
            tuple(
                _scale(raw, key, rank, rslora, patterns) if rank else 0.0
                for key, rank in zip(keys, here, strict=True)
            )
        )
    if not any(map(any, ranks)):
        raise AdapterError(
            f"target_modules {shown(raw.get('target_modules'))} name none of the projections "
            f"{', '.join(name.split('.')[1] for name in PROJECTIONS)}"
        )
    return AdapterConfig(tuple(ranks), tuple(scales), _invocation(raw, model))


def refuse(raw: Json) -> None:
    """Raise for what would make the adapter compute something else than plain LoRA."""
    for name, value in raw.items():
        if name in PLAIN:
            if value not in PLAIN[name]:
                accepted = ", ".join(map(repr, PLAIN[name]))
                raise AdapterError(f"{CONFIG}: {name} is {shown(value)}; run is only {accepted}")
        elif name not in WITHOUT_EFFECT | READ and value not in (None, False, [], {}, ""):
            raise AdapterError(f"{CONFIG}: {name} is {shown(value)}: not run")


def refuse_layer(
    raw: Json, model: ModelConfig, layer: int, ranks: list[int], patterns: Patterns
) -> None:
    """Raise where a target is a projection that this base model keeps in another form."""
    fused = [f"model.layers.{layer}.{name}" for name in FUSED]
    split = any(ranks[index] for index in (0, 1, 2, 4, 5))
    if model.family.fused and (split or any(is_target(raw, key, patterns) for key in fused)):
        raise AdapterError(
            f"{CONFIG}: {model.family.model_type} keeps q, k, v and gate, up in one matrix each "
            "(qkv_proj, gate_up_proj), whose adapters are not run; o_proj and down_proj are"
        )
    experts = model.experts
    if experts is not None and layer in experts.layers and any(ranks[4:]):
        raise AdapterError(
            f"{CONFIG}: target_modules include the MLP of layer {layer}, which is a mixture of "
            "experts; adapters are run on its attention only"
        )


def is_target(raw: Json, key: str, patterns: Patterns | None = None) -> bool:
    """Whether the module ``key`` has weights in the adapter: PEFT's rules, in its order."""
    patterns = patterns or Patterns()
    if _names(raw.get("exclude_modules"), key, patterns):
        return False
    targets = raw.get("target_modules")
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return True
    if not _names(targets, key, patterns):
        return False
    layers = raw.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return True
    chosen = Fields(CONFIG, raw, AdapterError).wholes("layers_to_transform")
    # A name has one number between dots, its layer's: where a pattern matches, it is that.
    number = next(int(part) for part in key.split(".") if part.isdecimal())
    before = raw.get("layers_pattern") or [r"[^.]*"]
    for pattern in before if isinstance(before, list) else [before]:
        if _match(patterns, pattern, r"(?:^|.*?\.)(?:{})\.\d+\.", key):
            return number in chosen
    return False


def _names(targets: object, key: str, patterns: Patterns) -> bool:
    """A string is a pattern for the whole key; a list holds keys, or ends of them."""
    if isinstance(targets, str):
        return bool(targets) and _match(patterns, targets, r"(?:{})\Z", key)
    if targets is None:
        return False
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise AdapterError(f"{CONFIG}: module names {shown(targets)} must be a list or a pattern")
    parts = key.split(".")
    ends = {".".join(parts[start:]) for start in range(len(parts))}
    return not ends.isdisjoint(targets)


def _match(patterns: Patterns, pattern: object, around: str, key: str) -> bool:
    """Whether ``pattern``, put into ``around``, matches ``key``."""
    if not isinstance(pattern, str):
        raise AdapterError(f"{CONFIG}: pattern {shown(pattern)} must be a string")
    if len(pattern) > MAX_PATTERN:
        raise AdapterError(
            f"{CONFIG}: a pattern of {len(pattern)} characters; {MAX_PATTERN} are run"
        )
    try:
        return patterns.match(around.replace("{}", pattern), key)
    except AdapterError as error:
        raise AdapterError(f"{CONFIG}: {error}") from error


def _by_pattern(raw: Json, name: str, key: str, default: object, patterns: Patterns) -> object:
    """The value of the first pattern that the end of ``key`` matches, as PEFT picks it."""
    table = Fields(CONFIG, raw, AdapterError).table(name).raw
    for pattern, value in table.items():
        if _match(patterns, pattern, r"(.*\.)?({})$", key):
            return value
    return default


def _rank(raw: Json, key: str, patterns: Patterns) -> int:
    rank = _by_pattern(raw, "rank_pattern", key, raw.get("r", 8), patterns)
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise AdapterError(f"{CONFIG}: rank {shown(rank)} of {key}; must be 1 to {MAX_RANK}")
    return rank


def _scale(raw: Json, key: str, rank: int, rslora: bool, patterns: Patterns) -> float:
    alpha: Any = _by_pattern(raw, "alpha_pattern", key, raw.get("lora_alpha", 8), patterns)
    if type(alpha) not in (int, float) or not abs(alpha) <= MAX_ALPHA:
        raise AdapterError(
            f"{CONFIG}: lora_alpha {shown(alpha)} of {key}; must be a finite number, at most "
            f"{MAX_ALPHA:g}"
        )
    return float(alpha) / (math.sqrt(rank) if rslora else rank)


def _invocation(raw: Json, model: ModelConfig) -> tuple[int, ...] | None:
    tokens = raw.get("alora_invocation_tokens")
    if tokens is None or tokens == []:
        return None
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise AdapterError(f"{CONFIG}: alora_invocation_tokens {shown(tokens)} must be token ids")
    if min(tokens) < 0 or max(tokens) >= model.vocab_size:
        raise AdapterError(
            f"{CONFIG}: alora_invocation_tokens {shown(tokens)} leave the vocabulary, 0 to "
            f"{model.vocab_size - 1}"
        )
    return tuple(tokens)


# -- the weights ------------------------------------------------------------------------------


def pack(layout: LoraLayout, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Bytes2D:
    """The tensors of a weight file, checked, as pages."""
    check_tensors(layout, tensors)
    flat = torch.zeros(layout.num_pages * layout.page_elems, dtype=dtype)
    for layer, index, side, width, rank, offsets in layout.rows():
        name = tensor_name(layer, index, side)
        tensor = tensors[name]
        if tensor.dtype not in FLOATS:
            raise AdapterError(
                f"tensor {name!r} is {tensor.dtype}; weights are floating-point, of 16 bits or more"
            )
        rows = (tensor if side == "A" else tensor.T).to(dtype)
        if not bool(torch.isfinite(rows).all()):
            raise AdapterError(f"tensor {name!r} holds NaN or infinite values in {dtype}")
        for start, end, offset, stride in pieces(offsets):
            count = end - start
            target = flat.as_strided((count, width), (stride or width, 1), offset)
            target.copy_(rows[start:end])
        assert len(offsets) == rank
    result: Bytes2D = flat.view(torch.uint8).view(layout.num_pages, -1).numpy()
    return result


def unpack(layout: LoraLayout, pages: Bytes2D, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in ``pages`` under their names in the file: what ``pack`` was given."""
    flat = torch.from_numpy(pages).view(-1).view(dtype)
    tensors = {}
    for layer, index, side, width, _, offsets in layout.rows():
        rows = torch.stack([flat[offset : offset + width] for offset in offsets.tolist()])
        tensors[tensor_name(layer, index, side)] = rows if side == "A" else rows.T.contiguous()
    return tensors


def pieces(offsets: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[tuple[int, int, int, int]]:
    """(first row, end row, offset, stride) of the runs of evenly spaced rows."""
    steps = np.diff(offsets)
    regular = int(steps.min()) if len(steps) else 0
    cuts = [0, *(np.flatnonzero(steps != regular) + 1).tolist(), len(offsets)]
    for start, end in itertools.pairwise(cuts):
        yield start, end, int(offsets[start]), regular


def check_tensors(layout: LoraLayout, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``AdapterError`` for the first tensor that is missing, misshaped or unknown."""
    found = set(tensors)
    for layer, index, side, width, rank, _ in layout.rows():
        name = tensor_name(layer, index, side)
        if name not in found:
            raise AdapterError(f"{WEIGHTS} lacks tensor {name!r}, which {CONFIG} asks for")
        shape = tuple(tensors[name].shape)
        want = (rank, width) if side == "A" else (width, rank)
        if len(shape) != 2 or shape[side == "B"] != rank:
            raise AdapterError(f"tensor {name!r} is {list(shape)}; {CONFIG} gives it rank {rank}")
        if shape != want:
            raise AdapterError(
                f"tensor {name!r} is {list(shape)}; this base model's projection wants {list(want)}"
            )
        found.discard(name)
    if found:
        raise AdapterError(
            f"tensor {min(found)!r} is not one that {CONFIG} asks for; ignoring it would change "
            "the adapter"
        )


def tensor_name(layer: int, index: int, side: str) -> str:
    return f"base_model.model.model.layers.{layer}.{PROJECTIONS[index]}.lora_{side}.weight"


def digest_of(layout: LoraLayout, config: AdapterConfig, pages: Bytes2D) -> bytes:
    """xxh3-128 over what the adapter computes with: equal digests, equal outputs."""
    state = xxhash.xxh3_128(seed=_SEED)
    header = repr((layout.ranks, layout.scales, layout.page_elems, config.invocation_tokens))
    state.update(len(header).to_bytes(8, "little") + header.encode())
    state.update(np.ascontiguousarray(pages).data)
    return state.digest()
