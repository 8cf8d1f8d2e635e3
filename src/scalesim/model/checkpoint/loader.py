"""The model loader: from a local folder or a Hugging Face hub id, safetensors only.

A checkpoint is not trusted: no pickle is loaded, no code is run, no path leaves the folder, and all
tensors are checked before use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalesim.errors import ConfigError, UnsupportedModelError, WeightsError
from scalesim.model.checkpoint.config import DTYPES, ModelConfig, ModelShape, stated_dtype
from scalesim.model.checkpoint.dummy import dummy_tensors
from scalesim.model.checkpoint.fields import MalformedError
from scalesim.model.checkpoint.files import read_json
from scalesim.model.checkpoint.loader_files import check_floating, check_memory, open_tensors
from scalesim.model.checkpoint.quantize import quantize_weights, scheme_config
from scalesim.model.checkpoint.weights import (
    EMBED,
    HEAD,
    TensorShape,
    assemble,
    expected_shapes,
    num_elements,
)
from scalesim.model.layers.decoder import Decoder
from scalesim.model.layers.native import NativeModel

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
MODEL_IMPLS = ("auto", "native", "transformers")
HARMLESS = ("rotary_emb.inv_freq", "attn.masked_bias")  # derived tensors that old versions saved


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its weights. ``folder`` also holds the tokenizer and chat template, if any.
    ``dummy_weights``: these are random, and no files were read."""

    config: ModelShape
    model: Decoder
    folder: Path
    quantize: str | None = None
    dummy_weights: bool = False

    @property
    def implementation(self) -> str:
        """Whose layers the model has: ``"native"`` or ``"transformers"``."""
        return "native" if isinstance(self.config, ModelConfig) else "transformers"

    @property
    def place(self) -> str:
        """Where the weights lie: ``"cpu"``, ``"cuda:0"``."""
        return self.model.place


def load_model(
    path_or_id: str | Path,
    *,
    dtype: str = "auto",
    dummy_weights: bool = False,
    seed: int = 0,
    place: str = "cpu",
    model_impl: str = "auto",
    quantize: str | None = None,
) -> LoadedModel:
    """Load a model with its weights at ``place`` in ``dtype`` (``"auto"``: float32 on a CPU, else
    the config's dtype).

    ``dummy_weights`` reads only the config, and makes random weights from ``seed``; they differ
    between CPU and GPU. ``model_impl`` is ``"native"``, ``"transformers"`` (transformers' layers
    over ScaleSim's pages) or ``"auto"``: native if the model is supported, else transformers.
    ``quantize`` stores matrices as ``"int8"`` or ``"float8"``, by torchao. Raises
    ``UnsupportedModelError``, ``WeightsError`` or ``ConfigError``.
    """
    if model_impl not in MODEL_IMPLS:
        raise ConfigError(f"model_impl {model_impl!r}: must be one of {', '.join(MODEL_IMPLS)}")
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: must be 'auto' or one of {', '.join(DTYPES)}")
    if quantize is not None:
        scheme_config(quantize)  # before anything is downloaded
    folder = resolve_folder(path_or_id, weights=not dummy_weights)

    def hosted() -> LoadedModel:
        from scalesim.model.layers.hosting import load_hosted

        stated = _dtype_at(place, dtype, stated_dtype(read_json(folder / "config.json")))
        model = load_hosted(folder, stated, place, seed if dummy_weights else None, quantize)
        return LoadedModel(model.config, model, folder, quantize, dummy_weights)

    if model_impl == "transformers":
        return hosted()
    try:
        config = ModelConfig.from_folder(folder)
    except MalformedError:
        raise
    except UnsupportedModelError as error:
        if model_impl == "native":
            raise
        try:
            return hosted()
        except UnsupportedModelError as other:
            raise UnsupportedModelError(
                f"neither path runs this model. Native: {error}. Transformers: {other}"
            ) from other
    torch_dtype = _dtype_at(place, dtype, config.dtype)
    if place == "cpu":
        check_memory(num_elements(config), torch_dtype)
    if dummy_weights:
        weights = assemble(config, dummy_tensors(config, seed, torch_dtype, place).pop)
    else:
        with open_checkpoint(folder, config, torch_dtype, place) as take:
            config = replace(config, tie_embeddings=take.tied)
            weights = assemble(config, take)
    if quantize is not None:
        weights = quantize_weights(weights, quantize)
    return LoadedModel(config, NativeModel(config, weights), folder, quantize, dummy_weights)


def _dtype_at(place: str, asked: str, stated: str) -> torch.dtype:
    name = asked if asked != "auto" else "float32" if place == "cpu" else stated
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def resolve_folder(path_or_id: str | Path, weights: bool = True) -> Path:
    """The local folder for a path or a hub id (downloaded or cached), as a path that stays where it
    is when the process changes its folder. Raises ``WeightsError`` if there is none."""
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path.absolute()
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


class StoredTensors:
    """The checked tensors of a checkpoint: a ``Take`` at ``place`` in ``dtype``.

    ``tied`` tells whether head and embedding are one matrix: if the config says so, unless the
    files hold two different ones. As in transformers, either name may hold the matrix.
    """

    def __init__(
        self, where: Mapping[str, Any], config: ModelConfig, dtype: torch.dtype, place: str
    ) -> None:
        expected = expected_shapes(config)
        self._names, self._where = known_names(where, expected), where
        self._dtype, self._place = dtype, place
        shapes = {name: tuple(self._slice(name).get_shape()) for name in self._names}
        if config.tie_embeddings and HEAD in shapes:
            expected[HEAD] = expected[EMBED]
            if EMBED not in shapes:
                del expected[EMBED]
        check_shapes(shapes, expected)
        for name in expected:
            check_floating(self._names[name], where[self._names[name]])
        both = EMBED in shapes and HEAD in shapes
        self.tied = config.tie_embeddings and not (
            both and not torch.equal(self._stored(EMBED), self._stored(HEAD))
        )

    def __call__(self, name: str) -> Tensor:
        if name == EMBED and name not in self._names:
            name = HEAD
        return self._stored(name).to(device=self._place, dtype=self._dtype).contiguous()

    def _stored(self, name: str) -> Tensor:
        tensor: Tensor = self._where[self._names[name]].get_tensor(self._names[name])
        return tensor

    def _slice(self, name: str) -> Any:
        return self._where[self._names[name]].get_slice(self._names[name])


def known_names(stored: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """The stored name of each tensor, by its expected name. A model that was saved without a head
    lacks the prefix ``model.`` in its names. Raises ``WeightsError`` if a tensor is stored under
    both names."""
    wanted, names = set(expected), {name: name for name in stored}
    for name in sorted(names):
        full = f"model.{name}"
        if name not in wanted and full in wanted:
            if full in names:
                raise WeightsError(
                    f"tensors {full!r} and {name!r} are both in the checkpoint; one of them must go"
                )
            names[full] = names.pop(name)
    return names


@contextmanager
def open_checkpoint(
    folder: Path, config: ModelConfig, dtype: torch.dtype, place: str = "cpu"
) -> Iterator[StoredTensors]:
    """The tensors of a folder, given one by one at ``place``, after their names, shapes and types
    were checked. Raises ``WeightsError``."""
    with open_tensors(folder) as where:
        yield StoredTensors(where, config, dtype, place)


def check_shapes(found: Mapping[str, TensorShape], expected: Mapping[str, TensorShape]) -> None:
    """Raise ``WeightsError`` naming the first tensor that is missing, misshaped or unknown."""
    for name, shape in expected.items():
        if name not in found:
            raise WeightsError(f"tensor {name!r} is missing from the checkpoint")
        if found[name] != shape:
            raise WeightsError(
                f"tensor {name!r} has shape {list(found[name])}; the config asks for {list(shape)}"
            )
    for name in sorted(found.keys() - expected.keys()):
        if not name.endswith(HARMLESS):
            raise WeightsError(
                f"tensor {name!r} is not part of this architecture; "
                "ignoring it would change the model"
            )
