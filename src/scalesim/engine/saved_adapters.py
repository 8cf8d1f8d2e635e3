"""Updated adapters in snapshots: weights that are in no folder, by the digests of their content.

Their pages lie in page files like those of KV, with a checksum each. In a manifest they stand
behind the pages of memory's segments, in the order of their first names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, TypeAlias

from scalesim.core import Bytes2D
from scalesim.requests.adapter_registry import AdapterImage
from scalesim.snapshot.block_keys import KEY_BYTES

PageKeys: TypeAlias = "tuple[bytes, ...]"
"""The keys of an adapter's pages, by which another generation finds them."""
_DIGEST, _FORM = (AdapterImage._fields.index(name) for name in ("digest", "form"))


def updated_in(adapters: Iterable[AdapterImage]) -> dict[PageKeys, Bytes2D]:
    """The pages of the adapters that are in no folder, uint8 ``[n, page_bytes]``, by their keys."""
    found = {}
    for adapter in adapters:
        if adapter.source is not None and adapter.form is not None:
            rows = adapter.source.read()
            found[_keys_of(adapter.digest, len(rows))] = rows
    return found


def updated_keys(manifest: dict[str, Any]) -> Iterator[PageKeys]:
    """The keys of the pages of each adapter that a manifest has."""
    digests = digests_in_manifest(manifest)
    counts = manifest["pages"]["num_pages"].tolist()
    return map(_keys_of, digests, counts[len(counts) - len(digests) :])


def digests_in_manifest(manifest: dict[str, Any]) -> list[str]:
    """The digests of the adapters whose pages a manifest has, in their order: those with a form. A
    release before had none."""
    saved = (entry for entry in manifest["adapters"] if len(entry) > _FORM and entry[_FORM])
    return list(dict.fromkeys(entry[_DIGEST] for entry in saved))


def _keys_of(digest: str, num_pages: int) -> PageKeys:
    return tuple(
        blake2b(f"adapter {digest} {page}".encode(), digest_size=KEY_BYTES).digest()
        for page in range(num_pages)
    )
