"""Where adapters lie: a folder or a prefix of an object store, with the two files of PEFT's layout.

Neither is trusted: no path leaves a folder, and nothing is read past a limit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from scalesim.checks import is_url
from scalesim.errors import AdapterError
from scalesim.model.checkpoint.files import Json, json_object, read_bytes, read_json
from scalesim.model.checkpoint.loader_files import PICKLES, safe_path
from scalesim.object_store import ObjectStore

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20


class AdapterPlace(Protocol):
    """``str`` gives the place in a form in which it can be found again. What reads raises
    ``AdapterError`` or ``OSError``."""

    def config(self) -> Json: ...

    def weights(self, max_bytes: int) -> bytes:
        """The content of the weight file. Raises for one that holds more than ``max_bytes``."""
        ...


def adapter_place(path: str | Path) -> AdapterPlace:
    """The place that a user calls ``path``: a folder, or a URL as fsspec understands it. Raises
    ``AdapterError`` where there is none."""
    if isinstance(path, str) and is_url(path):
        return StoredAdapter(path)
    return AdapterFolder(Path(path).expanduser().absolute())


class AdapterFolder:
    """A folder. The weight file is read, not mapped: truncating a mapped file would end the
    process."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise AdapterError("no such folder")
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def config(self) -> Json:
        return read_json(safe_path(self._folder, CONFIG), MAX_CONFIG_BYTES, AdapterError)

    def weights(self, max_bytes: int) -> bytes:
        if not (self._folder / WEIGHTS).exists():
            pickles = sorted(p.name for pattern in PICKLES for p in self._folder.glob(pattern))
            if pickles:
                raise AdapterError(
                    f"holds pickled weights only ({pickles[0]}): loading them could run code; save "
                    "the adapter as safetensors"
                )
        return read_bytes(safe_path(self._folder, WEIGHTS), max_bytes, AdapterError)


class StoredAdapter:
    """The two objects under ``url``."""

    def __init__(self, url: str) -> None:
        try:
            self._store = ObjectStore(url)
        except OSError as error:
            raise AdapterError(
                f"no place for an adapter ({error}); give another one, or what it needs, as a "
                "package (pip install 'scalesim-runtime[remote]' for S3)"
            ) from error

    def __str__(self) -> str:
        return self._store.url

    def config(self) -> Json:
        return json_object(self._read(CONFIG, MAX_CONFIG_BYTES), CONFIG, AdapterError)

    def weights(self, max_bytes: int) -> bytes:
        return self._read(WEIGHTS, max_bytes)

    def _read(self, name: str, max_bytes: int) -> bytes:
        try:
            content = self._store.read(self._store.path(name), start=0, end=max_bytes + 1)
        except FileNotFoundError as error:
            raise AdapterError(f"{name} is missing") from error
        if len(content) > max_bytes:
            raise AdapterError(
                f"{name} holds more than {max_bytes} bytes, the most that is read of such a file"
            )
        return content
