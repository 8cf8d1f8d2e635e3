"""Which files hold a checkpoint's tensors: safetensors only, and none outside the model's folder.

A checkpoint is input from strangers: no pickle, no path that leaves its folder.
"""

from __future__ import annotations

from pathlib import Path

from scalesim.errors import WeightsError
from scalesim.model.config import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


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
