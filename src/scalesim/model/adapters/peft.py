"""The reader of adapters in PEFT's layout: ``adapter_config.json``, ``adapter_model.safetensors``.

An adapter is not trusted: no pickle is loaded, and no path leaves the folder. A setting that would
make the outputs differ from PEFT's is refused by name. The weights are returned packed for the
pool.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalesim.checks import shown
from scalesim.core import Bytes2D
from scalesim.errors import AdapterError, WeightsError
from scalesim.model.adapters.layout import MAX_RANK, LoraLayout, Ranks, Scales, lora_sites
from scalesim.model.adapters.patterns import MAX_PATTERN, Patterns
from scalesim.model.adapters.places import CONFIG, WEIGHTS, AdapterPlace, adapter_place
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.fields import Fields
from scalesim.model.checkpoint.files import Json

MAX_ALPHA = 1e30  # a scale is a float32
ROOM = 16 << 20  # bytes of a weight file beside the weights
PROJECTIONS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
FUSED = ("self_attn.qkv_proj", "mlp.gate_up_proj")

# Settings that change what the adapter computes, with the supported values.
PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
# Settings without effect on a trained adapter; any other must be unset.
WITHOUT_EFFECT = frozenset(
    [
        "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode",
        "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version",
        "qalora_group_size", "revision", "runtime_config", "task_type",
    ]
)  # fmt: skip
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_DIGEST_BYTES = 16
READ = frozenset(
    [
        "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform",
        "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora", "alora_invocation_tokens",
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter packed into pages.

    ``pages`` ``[num_pages, page_bytes]`` hold the weights at the places of ``layout``, and zeros
    between. ``invocation_tokens`` activate the adapter; ``None``: it is always active. ``path`` is
    the folder or URL that it was read from, if it was.
    """

    layout: LoraLayout
    invocation_tokens: tuple[int, ...] | None
    pages: Bytes2D
    path: str | None = None


def read_adapter(
    path: str | Path, model: ModelConfig, dtype: torch.dtype, page_bytes: int
) -> PackedAdapter:
    """The adapter in the folder ``path``, or under the URL, for ``model``, with weights cast to
    ``dtype``. Raises ``AdapterError`` if it is missing, damaged, made for another base model or not
    supported."""
    try:
        return _read(adapter_place(path), model, dtype, page_bytes)
    except (AdapterError, WeightsError, OSError) as error:
        raise AdapterError(f"adapter {path}: {error}") from error


def _read(
    place: AdapterPlace, model: ModelConfig, dtype: torch.dtype, page_bytes: int
) -> PackedAdapter:
    raw = place.config()
    refuse(raw)
    ranks, scales = ranks_and_scales(raw, model)
    layout = LoraLayout(lora_sites(model), ranks, scales, page_bytes // dtype.itemsize)
    invocation = invocation_tokens(raw, model)
    pages = pack(layout, read_tensors(place, layout), dtype)
    return PackedAdapter(layout, invocation, pages, str(place))


def read_tensors(place: AdapterPlace, layout: LoraLayout) -> dict[str, Tensor]:
    """The tensors of the weight file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = place.weights(layout.num_elements * torch.float64.itemsize + ROOM)
    try:
        return load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise AdapterError(f"{WEIGHTS} is not a readable safetensors file: {error}") from error


# -- the config -------------------------------------------------------------------------------


def ranks_and_scales(raw: Json, model: ModelConfig) -> tuple[Ranks, Scales]:
    """Ranks and scales by layer and projection; 0 for a projection without an adapter. Raises
    ``AdapterError`` naming the setting."""
    modules = ModuleSettings(raw)
    ranks, scales = [], []
    for layer in range(model.num_layers):
        keys = [f"model.layers.{layer}.{name}" for name in PROJECTIONS]
        found = tuple(modules.rank(key) if modules.is_target(key) else 0 for key in keys)
        refuse_layer(modules, model, layer, found)
        ranks.append(found)
        scales.append(tuple(modules.scale(*of) for of in zip(keys, found, strict=True)))
    if not any(map(any, ranks)):
        raise AdapterError(
            f"target_modules {shown(raw.get('target_modules'))} name none of the projections "
            f"{', '.join(name.split('.')[1] for name in PROJECTIONS)}"
        )
    return tuple(ranks), tuple(scales)


def wrong(what: str) -> AdapterError:
    return AdapterError(f"{CONFIG}: {what}")


def refuse(raw: Json) -> None:
    """Raise for settings with which the adapter would not be plain LoRA."""
    for name, value in raw.items():
        if name in PLAIN:
            if value not in PLAIN[name]:
                accepted = ", ".join(map(repr, PLAIN[name]))
                raise wrong(f"{name} is {shown(value)}; run is only {accepted}")
        elif name not in WITHOUT_EFFECT | READ and value not in (None, False, [], {}, ""):
            raise wrong(f"{name} is {shown(value)}: not run")


def refuse_layer(
    modules: ModuleSettings, model: ModelConfig, layer: int, ranks: Sequence[int]
) -> None:
    """Raise if a target is a projection that this base model stores in another form."""
    fused = [f"model.layers.{layer}.{name}" for name in FUSED]
    split = any(ranks[index] for index in (0, 1, 2, 4, 5))
    if model.family.fused and (split or any(map(modules.is_target, fused))):
        raise wrong(
            f"{model.family.model_type} keeps q, k, v and gate, up in one matrix each "
            "(qkv_proj, gate_up_proj), whose adapters are not run; o_proj and down_proj are"
        )
    experts = model.experts
    if experts is not None and layer in experts.layers and any(ranks[4:]):
        raise wrong(
            f"target_modules include the MLP of layer {layer}, which is a mixture of experts; "
            "adapters are run on its attention only"
        )


@dataclass(frozen=True)
class ModuleSettings:
    """The settings of an ``adapter_config.json`` for each module; ``key`` is a module's name."""

    raw: Json
    patterns: Patterns = field(default_factory=Patterns)

    @property
    def fields(self) -> Fields:
        return Fields(CONFIG, self.raw, AdapterError)

    def is_target(self, key: str) -> bool:
        """Whether the module has weights in the adapter, by PEFT's rules in PEFT's order."""
        if self._names(self.raw.get("exclude_modules"), key):
            return False
        targets = self.raw.get("target_modules")
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return True
        if not self._names(targets, key):
            return False
        layers = self.raw.get("layers_to_transform")
        if isinstance(targets, str) or layers is None or layers == []:
            return True
        chosen = self.fields.wholes("layers_to_transform")
        # A name has one number between dots, its layer's, so a matching pattern found that one.
        number = next(int(part) for part in key.split(".") if part.isdecimal())
        before = self.raw.get("layers_pattern") or [r"[^.]*"]
        for pattern in before if isinstance(before, list) else [before]:
            if self._match(pattern, r"(?:^|.*?\.)(?:{})\.\d+\.", key):
                return number in chosen
        return False

    def rank(self, key: str) -> int:
        rank = self._by_pattern("rank_pattern", key, self.raw.get("r", 8))
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise wrong(f"rank {shown(rank)} of {key}; must be 1 to {MAX_RANK}")
        return rank

    def scale(self, key: str, rank: int) -> float:
        if not rank:
            return 0.0
        alpha: Any = self._by_pattern("alpha_pattern", key, self.raw.get("lora_alpha", 8))
        if type(alpha) not in (int, float) or not abs(alpha) <= MAX_ALPHA:
            rule = f"must be a finite number, at most {MAX_ALPHA:g}"
            raise wrong(f"lora_alpha {shown(alpha)} of {key}; {rule}")
        rslora = self.fields.flag("use_rslora", null=True)
        return float(alpha) / (math.sqrt(rank) if rslora else rank)

    def _names(self, targets: object, key: str) -> bool:
        """Whether ``targets`` include the module: a string is a pattern for the whole key, a list
        holds keys or ends of keys."""
        if isinstance(targets, str):
            return bool(targets) and self._match(targets, r"(?:{})\Z", key)
        if targets is None:
            return False
        if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
            raise wrong(f"module names {shown(targets)} must be a list or a pattern")
        parts = key.split(".")
        ends = {".".join(parts[start:]) for start in range(len(parts))}
        return not ends.isdisjoint(targets)

    def _by_pattern(self, name: str, key: str, default: object) -> object:
        """The value of the first pattern that matches an end of ``key``, as in PEFT."""
        for pattern, value in self.fields.table(name).raw.items():
            if self._match(pattern, r"(.*\.)?({})$", key):
                return value
        return default

    def _match(self, pattern: object, around: str, key: str) -> bool:
        """Whether ``pattern``, put into ``around``, matches ``key``."""
        if not isinstance(pattern, str):
            raise wrong(f"pattern {shown(pattern)} must be a string")
        if len(pattern) > MAX_PATTERN:
            raise wrong(f"a pattern of {len(pattern)} characters; {MAX_PATTERN} are run")
        try:
            return self.patterns.match(around.replace("{}", pattern), key)
        except AdapterError as error:
            raise wrong(str(error)) from error


def invocation_tokens(raw: Json, model: ModelConfig) -> tuple[int, ...] | None:
    """The tokens that activate the adapter; ``None``: it is always active."""
    tokens = raw.get("alora_invocation_tokens")
    if tokens is None or tokens == []:
        return None
    named = f"alora_invocation_tokens {shown(tokens)}"
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise wrong(f"{named} must be token ids")
    if min(tokens) < 0 or max(tokens) >= model.vocab_size:
        raise wrong(f"{named} leave the vocabulary, 0 to {model.vocab_size - 1}")
    return tuple(tokens)


# -- the weights ------------------------------------------------------------------------------


def pack(layout: LoraLayout, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Bytes2D:
    """Check the tensors of a weight file and pack them into pages ``[num_pages, page_bytes]``."""
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


def pieces(offsets: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[tuple[int, int, int, int]]:
    """Runs of evenly spaced rows: (first row, end row, offset, stride) of each."""
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


def digest_of(layout: LoraLayout, invocation: tuple[int, ...] | None, pages: Bytes2D) -> bytes:
    """128 bits of the SHA-256 of all that determines the adapter's outputs: the same in every
    process, since snapshots keep it, and nobody can prepare two adapters with equal digests."""
    state = sha256()
    header = repr((layout.ranks, layout.scales, layout.page_elems, invocation))
    state.update(len(header).to_bytes(8, "little") + header.encode())
    state.update(np.ascontiguousarray(pages).data)
    return state.digest()[:_DIGEST_BYTES]
