"""Loads a model: a local folder or a Hugging Face hub id, safetensors only, checked before use.

A checkpoint is input from strangers: no pickle, no code, no path that leaves its folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalesim.errors import ConfigError, WeightsError
from scalesim.model.config import DTYPES, ModelConfig, read_json
from scalesim.model.dummy import dummy_tensors
from scalesim.model.llama import Llama
from scalesim.model.weights import Shape, Take, assemble, expected_shapes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
HARMLESS = (
    "rotary_emb.inv_freq",
    "attn.masked_bias",
)  # saved by old versions; derived, not learned


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """``folder`` also holds the tokenizer and chat template, where there are any."""

    config: ModelConfig
    model: Llama
    folder: Path

    @property
    def place(self) -> str:
        """Where the weights lie: ``"cpu"``, ``"cuda:0"``."""
        return str(self.model.weights.embed.device)


def load_model(
    path_or_id: str | Path,
    *,
    dtype: str = "auto",
    dummy_weights: bool = False,
    seed: int = 0,
    place: str = "cpu",
) -> LoadedModel:
    """Load a model in ``dtype`` (``"auto"``: float32 on a CPU, else what its config says), its
    weights at ``place``.

    ``dummy_weights`` takes only the config and makes random weights from ``seed``, other ones on a
    GPU than on a CPU. Raises ``UnsupportedModelError``, ``WeightsError`` or ``ConfigError``.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: must be 'auto' or one of {', '.join(DTYPES)}")
    folder = resolve_folder(path_or_id, weights=not dummy_weights)
    config = ModelConfig.from_folder(folder)
    if dtype == "auto":
        dtype = "float32" if place == "cpu" else config.dtype
    torch_dtype: torch.dtype = getattr(torch, dtype)
    if dummy_weights:
        weights = assemble(config, dummy_tensors(config, seed, torch_dtype, place).pop)
    else:
        with open_checkpoint(folder, config, torch_dtype, place) as take:
            weights = assemble(config, take)
    return LoadedModel(config, Llama(config, weights), folder)


def resolve_folder(path_or_id: str | Path, weights: bool = True) -> Path:
    """The local folder of a path, or of a hub id (downloaded or cached)."""
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    name = str(path_or_id)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise WeightsError(f"{name}: no such model folder")
    return _download(name, HUB_FILES if weights else ["*.json", "*.jinja", "*.txt", "*.model"])


def _download(hub_id: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{hub_id!r} is no local folder, is not in the Hugging Face cache, and the hub cannot "
            "be reached; give a folder, or connect once to download it"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise WeightsError(f"{hub_id!r} is no local folder, and the hub said: {error}") from error


@contextmanager
def open_checkpoint(
    folder: Path, config: ModelConfig, dtype: torch.dtype, place: str = "cpu"
) -> Iterator[Take]:
    """Check names and shapes of a folder's tensors, then give them one by one, at ``place``."""
    from safetensors import SafetensorError, safe_open

    with ExitStack() as stack:
        where: dict[str, Any] = {}
        for path, listed in weight_files(folder).items():
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
            names = set(file.keys())
            if missing := sorted(listed - names):
                raise WeightsError(
                    f"{path} lacks tensor {missing[0]!r}, which the index puts there"
                )
            where |= dict.fromkeys(names, file)
        shapes = {name: tuple(where[name].get_slice(name).get_shape()) for name in where}
        check_shapes(shapes, expected_shapes(config))

        def take(name: str) -> Tensor:
            tensor: Tensor = where[name].get_tensor(name)
            return tensor.to(device=place, dtype=dtype).contiguous()

        yield take


def check_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Raise ``WeightsError`` naming the first tensor that is missing, misshaped or unknown."""
    for name, shape in expected.items():
        if name not in found:
            raise WeightsError(f"tensor {name!r} is missing from the checkpoint")
        if found[name] != shape:
            raise WeightsError(
                f"tensor {name!r} has shape {list(found[name])}; the config asks for {list(shape)}"
            )
    tied_copy = set() if "lm_head.weight" in expected else {"lm_head.weight"}
    for name in sorted(found.keys() - expected.keys() - tied_copy):
        if not name.endswith(HARMLESS):
            raise WeightsError(
                f"tensor {name!r} is not part of this architecture; "
                "ignoring it would change the model"
            )


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """Each weight file of the folder, with the tensors that the index puts there (if it does)."""
    if (folder / INDEX).exists():
        files: dict[Path, set[str]] = {}
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise WeightsError(f"{folder / INDEX} has no weight_map")
        for tensor, name in weight_map.items():
            files.setdefault(safe_path(folder, str(name)), set()).add(tensor)
        return files
    if (folder / SINGLE).exists():
        return {safe_path(folder, SINGLE): set()}
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise WeightsError(
            f"{folder} holds pickled weights only ({pickles[0]}): loading them could run code; "
            "convert them to safetensors"
        )
    raise WeightsError(f"{folder} holds neither {SINGLE} nor {INDEX}")


def safe_path(folder: Path, name: str) -> Path:
    """``folder / name``; refused when the name or a link leads out of the model.

    The hub's cache keeps ``snapshots/<commit>/file`` as links to ``blobs/`` of the same repository.
    """
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
        raise WeightsError(f"{folder / INDEX} names {name!r}: only plain file names are accepted")
    path = folder / name
    if not path.exists():
        raise WeightsError(f"weight file {path} is missing")
    here = folder.resolve()
    allowed = [here]
    if here.parent.name == "snapshots":
        allowed.append(here.parent.parent / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(place) for place in allowed):
        raise WeightsError(f"weight file {path} links to {target}, outside the model's folder")
    return path
