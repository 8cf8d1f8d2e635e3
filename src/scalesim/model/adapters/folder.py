"""Adapter folders as page sources: read when an adapter is added, and again when its pages were
evicted from both tiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from scalesim.checks import shown
from scalesim.core import Bytes2D
from scalesim.errors import AdapterError
from scalesim.memory.leases.adapters import AdapterContent
from scalesim.memory.links.link import InMemorySource
from scalesim.model.adapters.layout import LayoutTable
from scalesim.model.adapters.peft import PackedAdapter, digest_of, pack, read_adapter
from scalesim.model.checkpoint.config import ModelConfig


@dataclass(frozen=True)
class AdapterFolders:
    """The reader of PEFT folders for one model. A call raises ``AdapterError``. From any
    thread."""

    model: ModelConfig
    dtype: torch.dtype
    page_bytes: int
    layouts: LayoutTable

    def __call__(self, path: str | Path) -> AdapterContent:
        found = self.read(path)
        return AdapterContent(
            found.digest,
            self.layouts.number(found.layout),
            len(found.pages),
            found.invocation_tokens,
            FolderSource(self, Path(path).expanduser().absolute(), found.digest),
            found.pages,
        )

    def read(self, path: str | Path) -> PackedAdapter:
        return read_adapter(path, self.model, self.dtype, self.page_bytes)

    def pack(self, content: AdapterContent, tensors: Mapping[str, Any]) -> AdapterContent:
        """The adapter ``content`` with new weights: copies of ``tensors``, a PEFT state dict. They
        have no folder, so their packed pages stay in host memory beside the pools, to be read from
        there again after an eviction. Raises ``AdapterError``."""
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise AdapterError(f"{shown(name)} is {shown(tensor)}; must be a torch.Tensor")
        layout = self.layouts.layouts[content.layout]
        own = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        pages = pack(layout, own, self.dtype)
        digest = digest_of(layout, content.invocation_tokens, pages)
        return replace(content, digest=digest, source=InMemorySource(pages), pages=pages)


@dataclass(frozen=True)
class FolderSource:
    """A page source: the folder, as long as its content has not changed."""

    folders: AdapterFolders
    path: Path
    digest: bytes

    def read(self) -> Bytes2D:
        found = self.folders.read(self.path)
        if found.digest != self.digest:
            raise AdapterError(
                f"adapter {self.path} changed on disk since it was added; add it again with "
                "replace=True"
            )
        return found.pages
