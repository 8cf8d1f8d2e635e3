"""Tensors as a kind of state: the values that an agent keeps unless a kind of yours takes them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalesim.errors import StateError
from scalesim.memory.kinds import StateKind


class TensorKind(StateKind):
    """Dense tensors and numpy arrays of any dtype. Nothing can make them again."""

    name = "tensor"

    def form(self, value: Any) -> Any:
        """(name of the dtype, shape). Raises ``StateError`` for a tensor that is not dense."""
        if not isinstance(value, (Tensor, np.ndarray)):
            return None
        tensor = _tensor_of(value)
        return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)

    def num_bytes(self, form: Any) -> int:
        name, shape = form
        return int(np.prod(shape, dtype=np.int64)) * _dtype(name).itemsize

    def pack(self, value: Any) -> Any:
        """The elements in C order."""
        tensor = _tensor_of(value).resolve_conj().resolve_neg()
        flat = tensor.contiguous().reshape(-1).cpu()
        if flat.stride(0) != 1:  # of one element or none any stride counts as contiguous
            flat = flat.clone(memory_format=torch.contiguous_format)
        return flat.view(torch.uint8).numpy()

    def view(self, form: Any, data: Any, origin: Any) -> Tensor:
        """Raises ``StateError`` for a dtype of another release."""
        name, shape = form
        if not len(data):  # has no strides that a view could take
            return torch.empty(tuple(shape), dtype=_dtype(name), device=data.device)
        tensor: Tensor = data.view(_dtype(name)).reshape(tuple(shape))
        return tensor

    def sample(self, rng: random.Random) -> Tensor:
        shape = [rng.randint(0, 9) for _ in range(rng.randint(0, 3))]
        dtype = rng.choice([torch.float32, torch.bfloat16, torch.int64, torch.bool])
        return (
            torch.tensor([rng.gauss(0, 9) for _ in range(int(np.prod(shape)))])
            .to(dtype)
            .reshape(shape)
        )


TENSORS = TensorKind()


def bytes_in(rows: Any, num_bytes: int, device: str = "cpu") -> Tensor:
    """The first ``num_bytes`` of the pages ``rows``, uint8 ``[num_pages, page_bytes]``, an array or
    a tensor, as ``torch.uint8`` on ``device``: not a copy, if they are there."""
    return torch.as_tensor(rows.reshape(-1)[:num_bytes], device=device)


def has_elements(tensor: Tensor) -> bool:
    """Whether each element of ``tensor`` is in memory: of sparse tensors some are not, and of
    those on the device ``meta`` none."""
    return tensor.layout is torch.strided and not tensor.is_meta


def _tensor_of(value: Any) -> Tensor:
    try:
        tensor = _from_numpy(value) if isinstance(value, np.ndarray) else value
    except TypeError as error:
        raise StateError(f"an array of dtype {value.dtype} is no tensor: {error}") from error
    if not has_elements(tensor) or tensor.is_quantized:
        raise StateError(f"a tensor of {tensor.layout} on {tensor.device}; state is dense tensors")
    return tensor.detach()


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """The elements of ``array``, which are not copied if torch takes them as they lie. Raises
    ``TypeError`` for a dtype that torch has not."""
    is_forward = min(array.strides, default=0) >= 0
    if not (is_forward and array.dtype.isnative and array.flags.writeable):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise StateError(f"{name!r} is no dtype of torch {torch.__version__}")
    return dtype
