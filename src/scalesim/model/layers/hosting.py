"""The loader of hosted models: transformers' layers with ScaleSim's attention over pages.

A model that cannot be run this way is refused with the reason: from its config, before any weight
is read; from the calls that its layers make to attention; and at last by comparing its logits with
those under its own attention. No code in the folder is run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scalesim_kernels import PagedBatch, select
from torch import Tensor

from scalesim.errors import UnsupportedModelError, WeightsError
from scalesim.model.checkpoint.config import (
    MAX_LAYERS,
    MAX_VOCAB,
    ModelShape,
    refuse_layer_kinds,
    refuse_quantized,
    token_ids,
)
from scalesim.model.checkpoint.dummy import dummy_tensor
from scalesim.model.checkpoint.fields import MOST_WHOLE, Fields
from scalesim.model.checkpoint.files import Json, read_json, read_json_if_there
from scalesim.model.checkpoint.loader_files import check_floating, check_memory, open_tensors
from scalesim.model.checkpoint.quantize import quantize_modules
from scalesim.model.layers.decoder import ForwardContext
from scalesim.model.layers.hosted import INTERFACE, AttentionCall, HostedModel, paged_attention

PROBE = 23  # tokens of the comparison: more than a page of 16, not a multiple of a chunk
CHUNK = 9
LIMITS = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}  # standard deviations
SIZES = ("_size", "_dim", "_heads", "_experts", "n_embd", "n_head", "n_inner", "d_model")
EXTRA = "pip install 'scalesim-runtime[transformers]'"


def load_hosted(
    folder: Path, dtype: torch.dtype, place: str, dummy_seed: int | None = None,
    quantize: str | None = None,
) -> HostedModel:  # fmt: skip
    """Load the model in ``folder``; with ``dummy_seed``, with random weights; ``quantize`` as in
    ``load_model``. Raises ``UnsupportedModelError`` or ``WeightsError``."""
    raw = read_json(folder / "config.json")
    refuse(raw)
    with speaking_for_transformers():
        model = make(folder, dtype, dummy_seed).to(place)
    if quantize is not None:
        quantize_modules(model, quantize)
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{type(model).__name__} has an attention of its own that cannot be replaced: it does "
            "not call transformers' attention interface"
        )
    own = own_logits(model)
    model.set_attn_implementation(INTERFACE)
    hosted = HostedModel(model, None)
    with torch.inference_mode(), speaking_for_transformers():
        calls = hosted.note_calls(probe_tokens(model))
    shape = shape_of(model.config.get_text_config(), raw, folder, calls)
    hosted = HostedModel(model, shape)
    compare(hosted, own)
    return hosted


def refuse(raw: Json) -> None:
    """Raise ``UnsupportedModelError`` if the config already shows that the model cannot be run."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError as error:
        raise UnsupportedModelError(f"transformers is not installed: {EXTRA}") from error
    fields = Fields("config.json", raw)
    check_sizes("config.json", raw)
    named = fields.names("architectures")
    if fields.flag("is_encoder_decoder", null=True):
        raise UnsupportedModelError(f"{named}: an encoder and a decoder; only decoders are run")
    if any(key.endswith(("vision_config", "audio_config")) for key in raw):
        raise UnsupportedModelError(f"{named}: multi-modal; only text models are run")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(raw.get("model_type")))
    names = known if isinstance(known, tuple) else (known,)
    if known is None or not set(named) & set(names):
        code = "it brings code (auto_map), which is never run" if raw.get("auto_map") else ""
        raise UnsupportedModelError(
            f"architecture {', '.join(named) or '(none named)'} is no causal language model of the "
            f"installed transformers; {code or 'a newer one may know it'}"
        )
    refuse_quantized(fields)
    refuse_layer_kinds(fields.names("layer_types"))


def check_sizes(where: str, raw: Json) -> None:
    """Raise for sizes that no model has: transformers would try to make so many layers."""
    fields = Fields(where, raw)
    for key, value in raw.items():
        if isinstance(value, dict):
            check_sizes(f"{where}: {key}", value)
        elif type(value) is int:
            maximum = (
                MAX_LAYERS if "layer" in key else MAX_VOCAB if key.endswith(SIZES) else MOST_WHOLE
            )
            fields.whole(key, minimum=-MOST_WHOLE, maximum=maximum)


@contextlib.contextmanager
def speaking_for_transformers() -> Iterator[None]:
    """Turn transformers' errors, which have no class of their own, into
    ``UnsupportedModelError``."""
    try:
        yield
    except (UnsupportedModelError, WeightsError):
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise UnsupportedModelError(
            f"transformers raised {type(error).__name__}: {first}"
        ) from error


def make(folder: Path, dtype: torch.dtype, dummy_seed: int | None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(INTERFACE, paged_attention)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager"}
    with torch.device("meta"):
        sketch = AutoModelForCausalLM.from_config(config, **options)
    check_memory(sum(parameter.numel() for parameter in sketch.parameters()), dtype)
    if dummy_seed is not None:
        model = AutoModelForCausalLM.from_config(config, **options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    shape = tuple(parameter.shape)
                    parameter.copy_(dummy_tensor(name, shape, dummy_seed, dtype))
        return model.eval()
    check_stored(folder, sketch)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, config=config, trust_remote_code=False, local_files_only=True,
        use_safetensors=True, output_loading_info=True, **options,
    )  # fmt: skip
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, report.get(what) or ())):
            raise WeightsError(f"{what.replace('_', ' ')} in {folder}: {found[0]}")
    return model.eval()


def check_stored(folder: Path, sketch: Any) -> None:
    """Raise ``WeightsError`` if transformers would not load the weights that the index names: it
    takes the last file that has a tensor, whatever the index says, and integers as floats."""
    with open_tensors(folder) as where:
        files = {id(file): set(file.keys()) for file in where.values()}
        parameters = {name for name, _ in sketch.named_parameters()}
        prefix = f"{sketch.base_model_prefix}."
        for name, file in where.items():
            if sum(name in names for names in files.values()) > 1:
                raise WeightsError(
                    f"tensor {name!r} is in several files of {folder}: such checkpoints are run "
                    "natively only; save it anew with each tensor once"
                )
            if parameters & {name, prefix + name, name.removeprefix(prefix)}:
                check_floating(name, file)


def shape_of(
    config: Any, raw: Json, folder: Path, calls: Mapping[int, AttentionCall]
) -> ModelShape:
    """The model's shape with its KV geometry, from the config and from the layers' calls to
    attention. Raises ``UnsupportedModelError`` if these differ or are not supported."""
    name, num_layers = raw["architectures"][0], config.num_hidden_layers
    if sorted(calls) != list(range(num_layers)):
        raise UnsupportedModelError(
            f"{name}: {len(calls)} of {num_layers} layers have attention that can be replaced; the "
            "state of the others (recurrent, convolutional, linear) is not KV"
        )
    first = calls[0]
    for layer, call in calls.items():
        if call.unknown:
            raise UnsupportedModelError(
                f"{name}: layer {layer} gives its attention {', '.join(call.unknown)}: not run"
            )
        if replace(call, window=None) != replace(first, window=None):
            raise UnsupportedModelError(
                f"{name}: layers 0 and {layer} have KV of different shapes: not run"
            )
    if first.value_dim != first.head_dim or first.head_dim % 2:
        raise UnsupportedModelError(
            f"{name}: keys of {first.head_dim} and values of {first.value_dim} elements; run are "
            "models where both are the same even number"
        )
    windows = {getattr(config, "sliding_window", None)} - {None, False}
    if windows and getattr(config, "use_sliding_window", True) is not False:
        used = {call.window for call in calls.values()} - {None}
        if used != windows:
            raise UnsupportedModelError(
                f"{name}: sliding_window is {windows.pop()}, but its layers do not tell their "
                "attention: not run"
            )
    return ModelShape(
        architecture=name,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        num_layers=num_layers,
        num_heads=first.num_heads,
        num_kv_heads=first.num_kv_heads,
        head_dim=first.head_dim,
        max_position=max_position(config),
        eos_token_ids=token_ids(raw, read_json_if_there(folder / "generation_config.json")),
    )


def max_position(config: Any) -> int:
    """The longest context; for a rotation that changes with a sequence's length, the length up to
    which it does not change."""
    stated = getattr(config, "max_position_embeddings", None)
    if not isinstance(stated, int) or stated <= 0:
        raise UnsupportedModelError(f"max_position_embeddings is {stated!r}: must be positive")
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes, *(part for part in ropes.values() if isinstance(part, dict))]:
        if rope.get("rope_type") == "longrope":
            stated = min(stated, int(rope["original_max_position_embeddings"]))
    return stated


def probe_tokens(model: Any) -> Tensor:
    count = model.config.get_text_config().vocab_size
    ids = torch.randint(count, (PROBE,), generator=torch.Generator().manual_seed(0))
    return ids.int().to(model.get_input_embeddings().weight.device)


def own_logits(model: Any) -> Tensor:
    """The probe's logits under the model's own attention, ``[PROBE, vocab]`` fp32."""
    with torch.inference_mode(), speaking_for_transformers():
        logits: Tensor = model(input_ids=probe_tokens(model).long()[None], use_cache=False).logits
    return logits[0].float()


def compare(hosted: HostedModel, want: Tensor) -> None:
    """Raise ``UnsupportedModelError`` if the probe, run in chunks over pages, does not give the
    logits ``want``."""
    shape, place = hosted.config, hosted.place
    kernels = select("cpu" if place == "cpu" else "reference")
    num_pages = 2 + PROBE // 16
    size = (num_pages, shape.num_layers, 2, shape.num_kv_heads, 16, shape.head_dim)
    pool = torch.zeros(size, dtype=hosted.dtype, device=place)
    table = torch.arange(num_pages + 1, dtype=torch.int32, device=place)[None].repeat(2, 1)
    table = table.clamp(max=num_pages - 1)
    tokens, parts = probe_tokens(hosted.hf_model), []
    hosted.reserve(PROBE)
    with torch.inference_mode(), speaking_for_transformers():
        for start in range(0, PROBE, CHUNK):
            end = min(PROBE, start + CHUNK)
            batch = chunk_of(table, start, end, place)
            context = ForwardContext.planned(hosted, kernels, pool, batch, True)
            hidden = hosted.forward(tokens[start:end], context)
            parts.append(hosted.logits(hidden, kernels))
    error = float((torch.cat(parts) - want).abs().max() / want.std())
    if not error <= LIMITS[hosted.dtype]:
        raise UnsupportedModelError(
            f"{shape.architecture}: with KV in pages its logits are {error:.1e} standard "
            f"deviations from its own, more than {LIMITS[hosted.dtype]:.0e}: its layers depend on "
            "more than tokens, positions and KV"
        )


def chunk_of(table: Tensor, start: int, end: int, place: str) -> PagedBatch:
    def int32(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=place)

    count = end - start
    return PagedBatch(
        table, int32(*range(start, end)), int32(*[1] * count), int32(1), int32(0, count),
        int32(end), int(count == 1),
    )  # fmt: skip
