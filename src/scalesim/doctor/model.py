"""Examination of a model folder: native or hosted, the size of its pages, and missing files.

Reads configs, headers of weight files, tokenizer and template; no weights, and no network access.
"""

from __future__ import annotations

from pathlib import Path

import torch

from scalesim.doctor.findings import Section, Settings
from scalesim.engine.backends import available_bytes
from scalesim.engine.build import resolve_device, text_of
from scalesim.errors import ScaleSimError, UnsupportedModelError, WeightsError
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.fields import MalformedError
from scalesim.model.checkpoint.files import read_json
from scalesim.model.checkpoint.loader import open_checkpoint
from scalesim.model.checkpoint.loader_files import weight_files
from scalesim.model.checkpoint.weights import num_elements
from scalesim.model.text.chat import load_chat_template

COMPLETE = "a complete checkpoint; dummy_weights=True does without"


def probe(settings: Settings) -> Section:
    assert settings.model is not None
    section, folder = Section("model", {"folder": settings.model}), Path(settings.model)
    place = resolve_device(settings.device)
    section.facts["path"] = None
    try:
        config = config_of(folder)
        section.facts |= {"path": "native", "architecture": config.architecture}
        shape(section, config, geometry_of(folder, place), place)
        weights(section, folder, config)
    except MalformedError as error:
        section.find("error", str(error), "a config.json as transformers saves it")
    except UnsupportedModelError as error:
        hosted(section, folder, str(error))
    except ScaleSimError as error:
        section.find("error", str(error), "a model's folder, in Hugging Face's layout")
    if section.facts["path"] is not None:
        text(section, folder)
    return section


def hosted(section: Section, folder: Path, native: str) -> None:
    """Examine a hosted model as far as its config tells; the engine checks more when it loads the
    model."""
    from scalesim.model.layers.hosting import refuse

    try:
        refuse(read_json(folder / "config.json"))
    except ScaleSimError as error:
        text = f"neither path runs this model. Native: {native}. Transformers: {error}"
        section.find("error", text, "a model that docs/models.md lists")
        return
    section.facts["path"] = "transformers"
    try:
        weight_files(folder)
    except ScaleSimError as error:
        section.find("error", str(error), COMPLETE)
    section.find(
        "note",
        f"transformers' layers run on our pages, since the native path says: {native}. Whether its "
        "attention can be replaced is known when an engine loads it",
        "model_impl='native' or 'transformers'",
    )


def config_of(folder: Path) -> ModelConfig:
    """The native config of a folder. Raises ``WeightsError``, ``UnsupportedModelError``."""
    if not folder.is_dir():
        raise WeightsError(
            f"{folder} is no folder; doctor downloads nothing: give a model's local folder"
        )
    return ModelConfig.from_folder(folder)


def geometry_of(folder: Path, place: str) -> PageGeometry:
    """The page geometry of this model for an engine at ``place``. Raises as ``config_of`` does."""
    config = config_of(folder)
    dtype: torch.dtype = torch.float32 if place == "cpu" else getattr(torch, config.dtype)
    return PageGeometry.choose(
        config.num_layers, config.num_kv_heads, config.head_dim, dtype.itemsize
    )


def shape(section: Section, config: ModelConfig, geometry: PageGeometry, place: str) -> None:
    count = num_elements(config)
    dtype_bytes = geometry.dtype_bytes
    section.facts |= {
        "parameters": count,
        "weights_bytes": count * dtype_bytes,
        "max_model_len": config.max_position,
        "block_size": geometry.block_size,
        "page_bytes": geometry.page_bytes,
        "token_bytes": geometry.token_bytes,
    }
    room = available_bytes() if place == "cpu" else torch.cuda.mem_get_info(place)[0]
    if count * dtype_bytes > room:
        section.find(
            "error",
            f"the weights take {count * dtype_bytes} bytes on {place}, and {room} are free",
            "a smaller model, or a device with more memory",
        )


def weights(section: Section, folder: Path, config: ModelConfig) -> None:
    """Check that the checkpoint has every tensor in its shape."""
    try:
        with open_checkpoint(folder, config, torch.float32):
            section.facts["weights"] = "complete"
    except ScaleSimError as error:
        section.facts["weights"] = None
        section.find("error", str(error), COMPLETE)


def text(section: Section, folder: Path) -> None:
    try:
        tokenizer = text_of(folder)
        section.facts["tokenizer"] = None if tokenizer is None else type(tokenizer).__name__
        tokens = {} if tokenizer is None else tokenizer.special_tokens
        template = load_chat_template(folder, tokens)
    except ScaleSimError as error:
        section.find("error", str(error), "the folder's tokenizer and template files")
        return
    section.facts["chat_template"] = template is not None
    if tokenizer is None:
        section.find(
            "warning",
            "there is no tokenizer.json: calls must give token ids, and replies have no text",
            "the tokenizer's files of this model",
        )
    elif template is None:
        section.find(
            "note",
            "the folder has no chat template: messages are written as ChatML",
            "chat_template.jinja in the folder, or text prompts",
        )
