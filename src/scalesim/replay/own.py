"""One's own model and hardware: a model's ``config.json``, and a JSON file of a device's rates.

A model is read for its shape alone, so any decoder with plain attention will do, native or not.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from scalesim.errors import ConfigError
from scalesim.replay.hardware import HARDWARE, MODELS, Hardware, ModelShape, named

_MAX_FILE = 16 << 20
_MAX_PART = 1 << 30
_SHARES = ("gemm_share", "memory_share")
_OTHERWISE = ("kv_lora_rank", "ssm_cfg", "mamba_d_state", "state_size", "linear_num_key_heads")


def hardware_of(name: str) -> Hardware:
    """The device of this name, or that which the JSON file at this path describes: the fields of
    ``Hardware``, those with a default may be left out. Raises ``ConfigError``."""
    path = Path(name)
    if name in HARDWARE or not _is_path(path):
        return named(HARDWARE, name, "hardware")
    raw = _read(path)
    known = {field.name: field for field in fields(Hardware)}
    unknown = sorted(raw.keys() - known.keys())
    if unknown:
        raise ConfigError(f"{path}: unknown field {unknown[0]!r}; known: {', '.join(known)}")
    values: dict[str, Any] = {"name": str(raw.get("name", path.stem))[:40]}
    for field in known.values():
        if field.name == "name" or (field.name not in raw and field.default is not MISSING):
            continue
        value, most = raw.get(field.name), 1.0 if field.name in _SHARES else 1e24
        least = 0.0 if field.name == "step_overhead_s" else math.ulp(0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
            least <= value <= most
        ):  # fmt: skip
            raise ConfigError(
                f"{path}: {field.name} is {reprlib.repr(value)}; it must be a number above 0, "
                f"up to {most:g}"
            )
        values[field.name] = float(value)
    return Hardware(**values)


def model_of(name: str) -> ModelShape:
    """The model of this name, or that of the ``config.json`` at this path or in this folder.
    Raises ``ConfigError``."""
    path = Path(name)
    if name in MODELS or not _is_path(path):
        return named(MODELS, name, "model")
    folder = path.is_dir()
    raw = _read(path / "config.json" if folder else path)
    if isinstance(raw.get("text_config"), dict):
        raw = raw["text_config"]  # a model of pictures too: its text part
    strange = next((key for key in _OTHERWISE if raw.get(key) is not None), None)
    if strange is not None:
        raise ConfigError(f"{path}: {strange}: only models whose state is plain K and V are known")
    is_config = path.name == "config.json"
    named_by = path if folder else path.parent if is_config else path.with_suffix("")
    return _shape(named_by.resolve().name, _Config(path, raw))


def _shape(name: str, config: _Config) -> ModelShape:
    hidden, heads = config.part("hidden_size"), config.part("num_attention_heads")
    kv_heads = config.part("num_key_value_heads", heads)
    head_dim = config.part("head_dim", max(1, hidden // heads))
    layers = config.part("num_hidden_layers")
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    head = config.part("vocab_size") * hidden
    experts = config.either(("num_experts", "num_local_experts", "n_routed_experts"), 0)
    mlp = 3 * hidden * config.part("intermediate_size", 0 if experts else None)
    active: float | None = None
    if experts:
        width = config.either(("moe_intermediate_size", "intermediate_size"))
        taken = config.part("num_experts_per_tok")
        if taken > experts:
            raise config.wrong("num_experts_per_tok", f"at most the {experts} experts there are")
        dense = config.part("first_k_dense_replace", 0)
        if dense > layers:
            raise config.wrong("first_k_dense_replace", f"at most the {layers} layers")
        shared = width * config.part("n_shared_experts", 0)
        shared += config.part("shared_expert_intermediate_size", 0)
        fixed = head + layers * attention + dense * mlp + (layers - dense) * 3 * hidden * shared
        each = (layers - dense) * 3 * hidden * width
        params, active = float(fixed + experts * each), float(fixed + taken * each)
    else:
        params = float(head + layers * (attention + mlp))
    return ModelShape(name, params, layers, heads, kv_heads, head_dim, active)


class _Config:
    """Whole numbers of a ``config.json``."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self._path, self._raw = path, raw

    def part(self, key: str, default: int | None = None) -> int:
        value = self._raw.get(key)
        if value is None and default is not None:
            return default
        least = 0 if default == 0 else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MAX_PART:
            raise self.wrong(key, f"a whole number, {least} to {_MAX_PART}")
        return value

    def either(self, keys: tuple[str, ...], default: int | None = None) -> int:
        """The first of ``keys`` that is there."""
        key = next((key for key in keys if self._raw.get(key) is not None), keys[0])
        return self.part(key, default)

    def wrong(self, key: str, rule: str) -> ConfigError:
        value = reprlib.repr(self._raw.get(key))
        return ConfigError(f"{self._path}: {key} is {value}; it must be {rule}")


def _is_path(path: Path) -> bool:
    return path.exists() or path.suffix == ".json" or len(path.parts) > 1


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path} is no file; give a name or the path of a JSON file")
    try:
        with path.open("rb") as file:
            found = file.read(_MAX_FILE + 1)
        if len(found) > _MAX_FILE:
            raise ConfigError(f"{path} is larger than the {_MAX_FILE >> 20} MiB it may be")
        raw = json.loads(found)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {reprlib.repr(raw)}; it must be a JSON object")
    return raw
