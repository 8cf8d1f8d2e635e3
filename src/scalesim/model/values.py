"""Tensors as bytes, and back: the values that an agent keeps."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scalesim.errors import StateError

TensorForm: TypeAlias = "tuple[str, tuple[int, ...]]"
"""Name of the dtype, and shape."""


def tensor_of(value: Any) -> Tensor:
    """``value``, a tensor or a numpy array, as a dense tensor. Raises ``StateError``."""
    try:
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    except TypeError as error:
        raise StateError(f"an array of dtype {value.dtype} is no tensor: {error}") from error
    if not isinstance(tensor, Tensor):
        raise StateError(f"a {type(value).__name__} is given; state is a tensor or a numpy array")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise StateError(f"a tensor of {tensor.layout} on {tensor.device}; state is dense tensors")
    return tensor.detach()


def packed(tensor: Tensor) -> tuple[TensorForm, npt.NDArray[np.uint8]]:
    """The form of a dense ``tensor``, and its elements in C order as uint8 ``[num_bytes]``."""
    flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).cpu()
    data: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)), data


def unpacked(form: TensorForm, data: Any, device: str) -> Tensor:
    """The tensor of ``form`` on ``device`` whose bytes are the first of ``data``, uint8 ``[n]``,
    an array or a tensor. Shares no memory with ``data``. Raises ``StateError`` for a form of
    another release."""
    name, shape = form
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise StateError(f"{name!r} is no dtype of torch {torch.__version__}")
    tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
    flat = tensor.reshape(-1).view(torch.uint8)
    flat.copy_(torch.as_tensor(data[: flat.numel()]))
    return tensor
