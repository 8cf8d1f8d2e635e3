"""How a further model joins an engine: it is read, checked against the engine's pages, packed into
pages, and made known to the runner."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

from scalesim.errors import AdapterError, ConfigError, ModelError
from scalesim.memory.geometry import BLOCK_SIZES, PageGeometry
from scalesim.memory.leases.adapters import AdapterContent
from scalesim.memory.leases.weights import WeightsContent
from scalesim.model.adapters.folder import AdapterFolders
from scalesim.model.adapters.layout import LayoutTable, lora_sites
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.loader import LoadedModel, load_model
from scalesim.model.checkpoint.weights import Weights
from scalesim.model.layers.native import NativeModel
from scalesim.model.paged_weights import WeightLayout, WeightsSource, digest_of
from scalesim.requests.adapter_home import AdapterHome
from scalesim.requests.added_model import AddedModel
from scalesim.requests.prompt import TextModel

MIN_ROW_BLOCKS = 128
"""Entries of a row of the block table, at least: it lists the parts of a model's weights."""
AddRunner = Callable[[int, WeightLayout, PageGeometry, LayoutTable], Callable[[], None]]
"""``(number, weights, pages, layouts of adapters)``: computes batches of a further model from now
on, until what is returned is called on the engine's thread."""
MakeText = Callable[[LoadedModel, int, int], TextModel]
"""``(model, model_len, pool_len)``: the model's vocabulary and limits, as requests need them."""


@dataclass(frozen=True)
class JoinModels:
    """A ``JoinModel`` of an engine on a ``backend``, whose models are of ``dtype``. Its pages have
    ``page_bytes``, and hold as many tokens of a model as fit and the kernels take. ``max_len`` is
    the most tokens of a sequence, and ``row_blocks`` the most pages of its KV, or of an adapter.
    ``adapters`` are those of each model's shapes, which all models and versions of the same shapes
    have in common."""

    backend: str
    dtype: str
    reproducible: bool
    page_bytes: int
    kv_bytes: int
    num_pages: int
    max_len: int
    row_blocks: int
    make_text: MakeText
    add_runner: AddRunner
    adapters: dict[Hashable, tuple[LayoutTable, AdapterHome]] = field(default_factory=dict)

    def __call__(self, name: str, path: str | Path, number: int, dummy_weights: bool) -> AddedModel:
        loaded = self._load(path, name, dummy_weights)
        load = partial(self._load, loaded.folder, name, dummy_weights)
        is_folder = Path(path).expanduser().is_dir()  # and no name on a hub
        shape, folder = loaded.config, str(loaded.folder if is_folder else path)
        if not isinstance(shape, ModelConfig):
            raise ModelError(f"model {folder}: only ScaleSim's own layers run beside another model")
        try:
            geometry = PageGeometry.fitting(
                shape.num_layers, shape.num_kv_heads, shape.head_dim, self.kv_bytes,
                self.page_bytes, None if self.backend == "cpu" else BLOCK_SIZES,
            )  # fmt: skip
        except ConfigError as error:
            raise ModelError(
                f"model {folder}: {error}; make the engine of this model and add the other one, or "
                "give a larger block_size"
            ) from error
        layout = WeightLayout(shape, loaded.model.dtype, self.page_bytes)
        num_pages = sum(layout.runs)
        if num_pages >= self.num_pages or len(layout.runs) > MIN_ROW_BLOCKS:
            raise ModelError(
                f"model {folder}: its weights take {num_pages} pages in {len(layout.runs)} parts; "
                f"the device pool has {self.num_pages}, and a model {MIN_ROW_BLOCKS} parts at "
                "most: raise device_memory, or take a smaller model"
            )
        pages = layout.pack(_weights_of(loaded))
        digest = digest_of(layout, pages)
        source = WeightsSource(layout, lambda: _weights_of(load()), digest, folder)
        facts = repr((shape, layout.dtype, geometry, self.backend, self.reproducible)).encode()
        identity = blake2b(facts + digest, digest_size=16).digest()
        size = geometry.block_size
        model_len = min(self.max_len, shape.max_position, self.row_blocks * size)
        text = self.make_text(loaded, model_len, (self.num_pages - num_pages) * size)
        layouts, home = self._adapters_of(layout)
        weights = WeightsContent(identity, layout.runs, source, pages)
        forget = self.add_runner(number, layout, geometry, layouts)
        return AddedModel(
            name, folder, dummy_weights, text, number, weights, geometry.block_size, home, digest,
            forget,
        )  # fmt: skip

    def _adapters_of(self, model: WeightLayout) -> tuple[LayoutTable, AdapterHome]:
        """The layouts and the home of adapters of a model's shapes: all that they are made for."""
        shape, dtype = model.config, model.dtype
        sites = lora_sites(shape)
        shapes = shape.architecture, shape.num_layers, shape.vocab_size, shape.experts, sites, dtype
        folders = AdapterFolders(shape, dtype, self.page_bytes, LayoutTable())
        mark = blake2b(repr(shapes).encode(), digest_size=16).digest()
        read = partial(self._read_adapter, folders)
        home = AdapterHome(read, folders.updated, folders.rebuilt, mark)
        return self.adapters.setdefault(shapes, (folders.layouts, home))

    def _read_adapter(self, folders: AdapterFolders, path: str | Path) -> AdapterContent:
        found = folders(path)
        if found.num_pages > self.row_blocks:
            raise AdapterError(
                f"adapter {path} takes {found.num_pages} pages; a row of the engine's block table "
                f"lists {self.row_blocks}: raise max_model_len"
            )
        return found

    def _load(self, path: str | Path, name: str, dummy_weights: bool) -> LoadedModel:
        return load_model(
            path, dtype=self.dtype, dummy_weights=dummy_weights, seed=crc32(name.encode()),
            model_impl="native",
        )  # fmt: skip


def _weights_of(loaded: LoadedModel) -> Weights:
    assert isinstance(loaded.model, NativeModel)
    return loaded.model.weights
