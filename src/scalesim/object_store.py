"""Object stores: objects under a prefix, written, read and replaced whole, through fsspec.

Clients raise classes of their own, of any kind: here each is an ``OSError``. There are no locks and
no renames, and nothing is ever half written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scalesim.foreign import Foreign


class ObjectStore:
    """The objects under ``url``, as fsspec understands it (``"s3://bucket/prefix"``). Raises
    ``OSError`` where there is no client for it; the store is not asked yet."""

    def __init__(self, url: str) -> None:
        self.url = url
        import fsspec  # a fifth of a second, for those who have a store

        options = {"auto_mkdir": True} if url.startswith(("file:", "local:")) else {}
        found = call(fsspec.url_to_fs, url, use_listings_cache=False, **options)
        self._client: Any = found[0]
        self._prefix: str = found[1].rstrip("/")

    def path(self, name: str) -> str:
        """The object ``name`` under the prefix, as the client calls it."""
        return f"{self._prefix}/{name}"

    def ask(self, method: str, *values: Any, **options: Any) -> Any:
        """What ``method`` of the client gives. Raises ``OSError``, see ``call``."""
        return call(getattr(self._client, method), *values, **options)

    def read(self, path: str, **bounds: int) -> bytes:
        """The content of the object that the client calls ``path``, with ``start=`` and ``end=`` a
        part of it. Raises ``OSError``, also for what is no bytes."""
        found = self.ask("cat_file", path, **bounds)
        if isinstance(found, bytes):
            return found
        content: bytes = call(lambda: bytes(memoryview(found)))
        return content

    def names(self) -> list[str]:
        """The names under the prefix; none where there is no such prefix. Raises ``OSError``."""
        try:
            paths = self.ask("ls", self._prefix, detail=False)
        except FileNotFoundError:
            return []
        return [path.rpartition("/")[2] for path in paths]

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects. Raises ``OSError``."""
        if names:
            self.ask("rm", [self.path(name) for name in names])


def call(function: Callable[..., Any], *values: Any, **options: Any) -> Any:
    """What a function of a client gives. Raises ``OSError`` whatever the client raises;
    ``FileNotFoundError`` stays what it is."""
    with Foreign() as raised:
        return function(*values, **options)
    assert raised.error is not None
    raise as_os_error(raised.error) from raised.error


def as_os_error(error: BaseException) -> OSError:
    """What a client raised, with its class and its words."""
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
    return kind(f"{type(error).__name__}: {str(error) or 'no more is known':.200}")
