"""Weights in pages: how a model's tensors lie in runs of consecutive pages, and the model over
them.

The embedding, with the head and the last norm, is the first part; each layer is a further one. The
tensors of a part follow one another, each at a multiple of ``ALIGN`` bytes, on pages that are
consecutive, so that a matrix is a view of the pool: products read the weights where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalesim.core import Bytes2D
from scalesim.errors import ModelError, ScaleSimError
from scalesim.memory.links.link import PageSource
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.weights import Weights, assemble, expected_shapes
from scalesim.model.layers.native import NativeModel

ALIGN = 64  # bytes


@dataclass(frozen=True)
class WeightLayout:
    """Where each tensor of a model of ``config`` in ``dtype`` lies on pages of ``page_bytes``."""

    config: ModelConfig
    dtype: torch.dtype
    page_bytes: int

    @cached_property
    def _template(self) -> Weights:
        """The model's weights without content."""
        shapes = expected_shapes(self.config)
        return assemble(
            self.config, lambda name: torch.empty(shapes[name], dtype=self.dtype, device="meta")
        )

    @cached_property
    def _places(self) -> list[list[int]]:
        """Of each part, the first byte of each tensor, and the end."""
        found = []
        for part in _parts(self._template):
            ends = [0]
            for tensor in part:
                ends.append(-(-(ends[-1] + tensor.nbytes) // ALIGN) * ALIGN)
            found.append(ends)
        return found

    @cached_property
    def runs(self) -> tuple[int, ...]:
        """The pages of each part."""
        return tuple(-(-ends[-1] // self.page_bytes) for ends in self._places)

    def pack(self, weights: Weights) -> Bytes2D:
        """``weights`` as pages, uint8 ``[num_pages, page_bytes]``."""
        pages = np.zeros((sum(self.runs), self.page_bytes), np.uint8)
        first = 0
        for part, ends, count in zip(_parts(weights), self._places, self.runs, strict=True):
            flat = pages[first : first + count].reshape(-1)
            for tensor, start in zip(part, ends[:-1], strict=True):
                content = tensor.contiguous().view(-1).view(torch.uint8)
                flat[start : start + tensor.nbytes] = content.numpy()
            first += count
        return pages

    def view(self, pool: Tensor, heads: Sequence[int]) -> Weights:
        """The weights in ``pool``, uint8 ``[num_pages, page_bytes]``, whose parts begin at the
        pages ``heads``. Shares memory."""
        flat, found = pool.view(-1), []
        for part, ends, head in zip(_parts(self._template), self._places, heads, strict=True):
            for tensor, start in zip(part, ends[:-1], strict=True):
                begin = head * self.page_bytes + start
                found.append(
                    flat[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                )
        return _rebuilt(self._template, iter(found))


class PagedModel:
    """A model whose weights lie in ``pages``, uint8 ``[num_pages, page_bytes]``, wherever
    ``move_to`` says. ``model`` is the decoder over them; a move makes another one, as steps in
    flight keep theirs."""

    def __init__(self, layout: WeightLayout, pages: Bytes2D | Tensor) -> None:
        pool = torch.as_tensor(pages)  # shares memory
        self.num_parts = len(layout.runs)
        self._layout, self._pool = layout, pool
        self._heads = (0,) * self.num_parts  # nowhere yet: steps of padding take any bytes
        self.model = NativeModel(layout.config, layout.view(pool, self._heads))

    def move_to(self, heads: Sequence[int]) -> bool:
        """The parts of the weights begin at the pages ``heads``. Returns whether they did not
        before."""
        now = tuple(heads)
        has_moved = now != self._heads
        if has_moved:
            self.model = self.model.with_weights(self._layout.view(self._pool, now))
            self._heads = now
        return has_moved


@dataclass(frozen=True)
class WeightsSource(PageSource):
    """A page source: ``load`` gives a model's weights again, which must be what they were.
    Reading raises ``ModelError`` otherwise."""

    layout: WeightLayout
    load: Callable[[], Weights]
    digest: bytes
    name: str

    def read(self) -> Bytes2D:
        try:
            pages = self.layout.pack(self.load())
        except ScaleSimError as error:
            raise ModelError(f"model {self.name} cannot be read again: {error}") from error
        if digest_of(self.layout, pages) != self.digest:
            raise ModelError(
                f"model {self.name}: its files changed since it was added; put them back, or add "
                "the model under another name"
            )
        return pages


def digest_of(layout: WeightLayout, pages: Bytes2D) -> bytes:
    """The digest of packed weights, 16 bytes: cryptographic, since a folder may come from
    anybody."""
    state = blake2b(repr(layout.runs).encode(), digest_size=16)
    state.update(pages.data)
    return state.digest()


def _parts(weights: Weights) -> Iterator[list[Tensor]]:
    """The tensors of each part. A head that is the embedding is not a tensor of its own."""
    ends = replace(weights, layers=())
    yield list(_tensors(ends if ends.lm_head is not ends.embed else (ends.embed, ends.final_norm)))
    for layer in weights.layers:
        yield list(_tensors(layer))


def _tensors(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from _tensors(each)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _tensors(getattr(part, field.name))


def _rebuilt(template: Weights, tensors: Iterator[Tensor]) -> Weights:
    """``template`` with other ``tensors``, in the order of ``_parts``."""
    is_tied = template.lm_head is template.embed
    embed, final_norm = next(tensors), next(tensors)
    lm_head = embed if is_tied else next(tensors)
    layers = tuple(_refilled(layer, tensors) for layer in template.layers)
    return Weights(embed, layers, final_norm, lm_head)


def _refilled(part: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(part, Tensor):
        return next(tensors)
    if isinstance(part, tuple):
        return tuple(_refilled(each, tensors) for each in part)
    if is_dataclass(part) and not isinstance(part, type):
        names = [field.name for field in fields(part)]
        return replace(part, **{name: _refilled(getattr(part, name), tensors) for name in names})
    return part
