"""The weight files of a checkpoint, and which file holds which tensor.

A checkpoint is not trusted: safetensors only, no pickle, no path that leaves the folder, only
regular files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from scalesim.errors import WeightsError
from scalesim.model.checkpoint.files import read_json
from scalesim.regular_file import check_regular

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = ("F64", "F32", "F16", "BF16")


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """Each weight file of the folder, with the tensors that the index assigns to it, if any.

    As in transformers, ``model.safetensors`` takes precedence over an index.
    """
    if (folder / SINGLE).exists():
        return {safe_path(folder, SINGLE): set()}
    if (folder / INDEX).exists():
        files: dict[Path, set[str]] = {}
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise WeightsError(f"{folder / INDEX} has no weight_map")
        for tensor, name in weight_map.items():
            if not isinstance(name, str):
                raise WeightsError(
                    f"{folder / INDEX} gives {tensor!r} to {name!r:.80}; must be a file's name"
                )
            files.setdefault(safe_path(folder, name), set()).add(tensor)
        return files
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise WeightsError(
            f"{folder} holds pickled weights only ({pickles[0]}): loading them could run code; "
            "convert them to safetensors"
        )
    raise WeightsError(f"{folder} holds neither {SINGLE} nor {INDEX}")


@contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """The open safetensors file of each tensor, by the tensor's name.

    The index decides; copies in other files are ignored. A tensor that the index does not name is
    read from the one file that has it. Raises ``WeightsError`` if two files have such a tensor, or
    if a file lacks a tensor that the index assigns to it.
    """
    from safetensors import SafetensorError, safe_open

    with ExitStack() as stack:
        files = weight_files(folder)
        named = set().union(*files.values())
        where: dict[str, Any] = {}
        holder: dict[str, Path] = {}
        for path, listed in files.items():
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
            names = set(file.keys())
            if missing := sorted(listed - names):
                raise WeightsError(
                    f"{path} lacks tensor {missing[0]!r}, which the index puts there"
                )
            for name in listed | (names - named):
                if name in where:
                    raise WeightsError(
                        f"tensor {name!r} is in {holder[name].name} and in {path.name}, and the "
                        "index does not say which counts"
                    )
                where[name], holder[name] = file, path
        yield where


def check_floating(name: str, file: Any) -> None:
    """Raise ``WeightsError`` if a weight is not stored as floating-point numbers."""
    stored = file.get_slice(name).get_dtype()
    if stored not in FLOATS:
        raise WeightsError(
            f"tensor {name!r} is stored as {stored}; weights are {', '.join(FLOATS)} (checkpoints "
            "in a quantized form are not run)"
        )


def safe_path(folder: Path, name: str) -> Path:
    """``folder / name``; raises if the name or a link leads out of the model's folder.

    The hub's cache is an exception: its ``snapshots/<commit>/file`` are links to ``blobs/`` of the
    same repository.
    """
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
        raise WeightsError(
            f"{folder / INDEX} names {name!r:.200}: only plain file names are accepted"
        )
    path = folder / name
    check_regular(path, WeightsError)
    here = folder.resolve()
    allowed = [here]
    if here.parent.name == "snapshots":
        allowed.append(here.parent.parent / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(place) for place in allowed):
        raise WeightsError(f"weight file {path} links to {target}, outside the model's folder")
    return path


def check_memory(num_elements: int, dtype: torch.dtype) -> None:
    """Raise ``WeightsError`` for a model that exceeds this machine's memory. A config may state any
    size, and so may the header of a sparse file."""
    asked = num_elements * dtype.itemsize
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if asked > there:
        raise WeightsError(
            f"config.json asks for {asked} bytes of weights in {dtype}; this machine has {there}"
        )
