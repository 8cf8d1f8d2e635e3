"""Adapter folders as a kind of state: read when an adapter is added, and again when its pages were
evicted from both tiers. The files of a folder may lie in an object store as well."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from scalesim.checks import is_url, shown
from scalesim.core import Bytes2D
from scalesim.errors import AdapterError
from scalesim.memory.kinds import OriginSource, StateKind, packed, plain
from scalesim.memory.leases.adapters import AdapterContent
from scalesim.memory.links.link import InMemorySource
from scalesim.model.adapters.layout import LayoutTable, LoraLayout, lora_sites
from scalesim.model.adapters.peft import PackedAdapter, digest_of, pack, read_adapter, tensor_name
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.values import has_elements


@dataclass(frozen=True)
class AdapterFolders(StateKind):
    """LoRA adapters of one model, whose origin is a PEFT folder, or a URL with the same files. A
    call reads one, and raises ``AdapterError``. From any thread. A runner reads the pages by the
    layout, through the block table, and needs no view.

    A read from a URL is taken to last as long as the first one did: the rate of folders says
    nothing of a network."""

    name = "adapter"
    model: ModelConfig
    dtype: torch.dtype
    page_bytes: int
    layouts: LayoutTable

    def __call__(self, path: str | Path) -> AdapterContent:
        start = time.perf_counter()
        form, rows = packed(self, self.reread(path), self.page_bytes)
        is_far = is_url(str(path))
        layout, invocation_tokens = form.form
        source = OriginSource(
            form, self.page_bytes, lambda name: self,
            read_s=time.perf_counter() - start if is_far else None, is_far=is_far,
            error=AdapterError, again="add it again with replace=True",
        )  # fmt: skip
        return AdapterContent(
            form.digest, layout, len(rows), invocation_tokens, source, rows,
            self._plain(layout, invocation_tokens), form.origin,
        )  # fmt: skip

    def form(self, value: Any) -> Any:
        """(number of the layout, invocation tokens)."""
        if not isinstance(value, PackedAdapter):
            return None
        return self.layouts.number(value.layout), value.invocation_tokens

    def num_bytes(self, form: Any) -> int:
        layout, _ = form
        num_pages: int = self.layouts.layouts[layout].num_pages
        return num_pages * self.page_bytes

    def pack(self, value: PackedAdapter) -> Any:
        return value.pages

    def view(self, form: Any, data: Any, origin: Any) -> PackedAdapter:
        layout, pages = self.layouts.layouts[form[0]], data.cpu().numpy()
        return PackedAdapter(layout, form[1], pages.reshape(-1, self.page_bytes), origin)

    def identity(self, form: Any, data: Bytes2D) -> bytes:
        """The same in every process, whatever the layout's number there."""
        return digest_of(self.layouts.layouts[form[0]], form[1], data)

    def origin(self, value: PackedAdapter) -> str | None:
        return value.path

    def reread(self, origin: str | Path) -> PackedAdapter:
        return read_adapter(origin, self.model, self.dtype, self.page_bytes)

    def updated(self, content: AdapterContent, tensors: Mapping[str, Any]) -> AdapterContent:
        """The adapter ``content`` with new weights: copies of ``tensors``, a PEFT state dict. They
        have no folder, so their packed pages stay in host memory beside the pools, to be read from
        there again after an eviction. Raises ``AdapterError``."""
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise AdapterError(f"{shown(name)} is {shown(tensor)}; must be a torch.Tensor")
            if not has_elements(tensor):
                raise AdapterError(
                    f"{shown(name)} is a tensor of {tensor.layout} on {tensor.device}; weights are "
                    "dense tensors: give .to_dense() of a sparse one, and none on the device meta"
                )
        layout = self.layouts.layouts[content.layout]
        for layer, index, side, *_ in layout.rows():
            if (name := tensor_name(layer, index, side)) not in tensors:
                raise AdapterError(
                    f"there is no tensor {name!r}: give all weights of the adapter, as "
                    "peft.get_peft_model_state_dict(model) names them"
                )
        own = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        pages = pack(layout, own, self.dtype)
        digest = self.identity((content.layout, content.invocation_tokens), pages)
        source = InMemorySource(pages)
        return replace(content, digest=digest, source=source, pages=pages, origin=None)

    def rebuilt(self, form: Any, pages: Bytes2D) -> AdapterContent:
        """The adapter of the plain ``form`` of a content, on ``pages``, which stay in host memory.
        Raises ``AdapterError`` for pages of another number than the form takes here."""
        ranks, scales, invocation_tokens = plain(form, "form")
        page_elems = self.page_bytes // self.dtype.itemsize
        layout = LoraLayout(lora_sites(self.model), ranks, scales, page_elems)
        if len(pages) != layout.num_pages:
            raise AdapterError(f"{len(pages)} of its {layout.num_pages} pages can be used here")
        number, source = self.layouts.number(layout), InMemorySource(pages)
        return AdapterContent(
            digest_of(layout, invocation_tokens, pages), number, len(pages), invocation_tokens,
            source, pages, self._plain(number, invocation_tokens),
        )  # fmt: skip

    def _plain(self, layout: int, invocation_tokens: tuple[int, ...] | None) -> Any:
        found = self.layouts.layouts[layout]
        return found.ranks, found.scales, invocation_tokens
