"""User-defined models and hardware: a model's ``config.json``, and a JSON file of a device's rates.

Only the shape of a model is read, so any decoder with plain attention can be used, native or not.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from scalesim.checks import shown
from scalesim.errors import ConfigError
from scalesim.regular_file import open_regular
from scalesim.replay.formats.rows import Row
from scalesim.replay.hardware import HARDWARE, MODELS, Hardware, ModelCosts, named
from scalesim.strict_json import decode_utf8

_MAX_FILE = 16 << 20
_MAX_PART = 1 << 30
_SHARES = ("gemm_share", "memory_share")
_OTHERWISE = ("kv_lora_rank", "ssm_cfg", "mamba_d_state", "state_size", "linear_num_key_heads")


def hardware_of(name: str) -> Hardware:
    """The device called ``name``, or the one described by the JSON file at that path. The file has
    the fields of ``Hardware``; those with a default are optional. Raises ``ConfigError``."""
    path = Path(name)
    if name in HARDWARE or not _is_path(path):
        return named(HARDWARE, name, "hardware")
    row = _read(path)
    known = {field.name: field for field in fields(Hardware)}
    unknown = sorted(row.fields.keys() - known.keys())
    if unknown:
        raise ConfigError(f"{path}: unknown field {shown(unknown[0])}; known: {', '.join(known)}")
    values: dict[str, Any] = {"name": str(row.fields.get("name", path.stem))[:40]}
    for field in known.values():
        if field.name == "name" or (field.name not in row.fields and field.default is not MISSING):
            continue
        maximum = 1.0 if field.name in _SHARES else 1e24
        values[field.name] = row.number(field.name, maximum, above=field.name != "step_overhead_s")
    return Hardware(**values)


def model_of(name: str) -> ModelCosts:
    """The model called ``name``, or the one of the ``config.json`` at that path or in that folder.
    Raises ``ConfigError``."""
    path = Path(name)
    if name in MODELS or not _is_path(path):
        return named(MODELS, name, "model")
    folder = path.is_dir()
    row = _read(path / "config.json" if folder else path)
    if isinstance(row.fields.get("text_config"), dict):
        row = replace(row, fields=row.fields["text_config"])  # of a multimodal model
    strange = next(filter(row.has, _OTHERWISE), None)
    if strange is not None:
        raise ConfigError(f"{path}: {strange}: only models whose state is plain K and V are known")
    is_config = path.name == "config.json"
    named_by = path if folder else path.parent if is_config else path.with_suffix("")
    return _shape(named_by.resolve().name, row)


def _shape(name: str, config: Row) -> ModelCosts:
    hidden, heads = _part(config, "hidden_size"), _part(config, "num_attention_heads")
    kv_heads = _part(config, "num_key_value_heads", heads)
    head_dim = _part(config, "head_dim", max(1, hidden // heads))
    layers = _part(config, "num_hidden_layers")
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    head = _part(config, "vocab_size") * hidden
    experts = _part(
        config, config.either("num_experts", "num_local_experts", "n_routed_experts"), 0
    )
    mlp = 3 * hidden * _part(config, "intermediate_size", 0 if experts else None)
    active: float | None = None
    if experts:
        width = _part(config, config.either("moe_intermediate_size", "intermediate_size"))
        taken = _part(config, "num_experts_per_tok")
        if taken > experts:
            raise config.wrong("num_experts_per_tok", f"at most the {experts} experts there are")
        dense = _part(config, "first_k_dense_replace", 0)
        if dense > layers:
            raise config.wrong("first_k_dense_replace", f"at most the {layers} layers")
        shared = width * _part(config, "n_shared_experts", 0)
        shared += _part(config, "shared_expert_intermediate_size", 0)
        fixed = head + layers * attention + dense * mlp + (layers - dense) * 3 * hidden * shared
        per_expert = (layers - dense) * 3 * hidden * width
        params, active = float(fixed + experts * per_expert), float(fixed + taken * per_expert)
    else:
        params = float(head + layers * (attention + mlp))
    tied = config.fields.get("tie_word_embeddings") or False
    if not isinstance(tied, bool):
        raise config.wrong("tie_word_embeddings", "true or false")
    return ModelCosts(name, params, layers, heads, kv_heads, head_dim, float(head), tied, active)


def _part(config: Row, key: str, default: int | None = None) -> int:
    """The size or count under ``key``."""
    if default is not None and not config.has(key):
        return default
    return config.whole(key, 0 if default == 0 else 1, _MAX_PART)


def _is_path(path: Path) -> bool:
    return path.exists() or path.suffix == ".json" or len(path.parts) > 1


def _read(path: Path) -> Row:
    with open_regular(path, ConfigError) as file:
        raw = file.read(_MAX_FILE + 1)
    if len(raw) > _MAX_FILE:
        raise ConfigError(f"{path} is larger than the {_MAX_FILE >> 20} MiB it may be")
    return Row.parsed(decode_utf8(raw, str(path), ConfigError), str(path), ConfigError)
