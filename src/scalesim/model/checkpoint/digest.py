"""The identity of KV: equal for equal weights, shapes and kernels, so that what one engine computed
may be used by another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import xxhash

from scalesim.errors import WeightsError
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.loader import LoadedModel
from scalesim.model.checkpoint.loader_files import weight_files
from scalesim.regular_file import open_regular

_PIECE_BYTES = 8 << 20


def kv_identity(
    loaded: LoadedModel, geometry: PageGeometry, kernels: str, reproducible: bool
) -> Callable[[], str]:
    """A function that gives a digest, in hex, of all that KV depends on beside tokens and adapters:
    the weight files from the first byte to the last, the model's config, how it is quantized, the
    layout of a page, and by which kernels it is computed.

    The function reads the weight files when it is first called, at the disk's rate, and keeps none
    of the model alive. It raises ``WeightsError`` if a file is gone.
    """
    facts = (
        loaded.config, loaded.implementation, loaded.quantize, loaded.model.dtype, geometry,
        kernels, reproducible,
    )  # fmt: skip
    seed = repr(facts).encode()
    folder, place = loaded.folder, loaded.place.partition(":")[0]
    is_random = loaded.dummy_weights
    known: list[str] = []

    def identity() -> str:
        if not known:
            state = xxhash.xxh3_128(seed)
            if is_random:
                state.update(f"random weights, {place}".encode())
            else:
                for path in sorted(weight_files(folder)):
                    _add_file(state, path)
            known.append(state.hexdigest())
        return known[0]

    return identity


def _add_file(state: xxhash.xxh3_128, path: Path) -> None:
    with open_regular(path, WeightsError) as file:
        while piece := file.read(_PIECE_BYTES):
            state.update(piece)
