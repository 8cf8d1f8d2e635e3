"""Kinds of state: what an agent may own beside its KV, and what each kind says of its values.

Memory moves pages and knows no values: ``packed`` makes pages of a value of any kind, and an
``OriginSource`` makes them again. KV is no such kind: it is computed, not given, grows by a token
at a time, and is shared by prefix.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scalesim.checks import shown, whole
from scalesim.core import Bytes2D
from scalesim.errors import ScaleSimError, StateError
from scalesim.memory.links.link import PageSource

IDENTITY_BYTES = 16
MAX_DEPTH, MAX_BITS = 32, 1024
"""Of a form or an origin: tuples within tuples, and the bits of a whole number. A snapshot writes
both as JSON, whose nesting and digits Python bounds."""


class StateKind(ABC):
    """A kind of state, for ``Engine.register_kind``: how its values lie in pages, and what it means
    to lose them. Called on callers' threads, ``reread`` also on one that reads ahead.

    A *form* is what makes a value of its bytes again, and an *origin* is where the value can be
    read once more: both are plain values (texts, finite numbers, booleans, ``None``, tuples of
    those), since snapshots hold them. A value without an origin cannot be made again, so its pages
    stay on the host, and a snapshot has its bytes. One with an origin may leave all pools, and is
    shared by all agents that have the same content.
    """

    name: str
    """What snapshots call the kind."""

    @abstractmethod
    def form(self, value: Any) -> Any:
        """The form of ``value``; ``None`` where it is no value of this kind."""

    @abstractmethod
    def num_bytes(self, form: Any) -> int:
        """The bytes of a value of this form. In a pool it takes whole pages."""

    @abstractmethod
    def pack(self, value: Any) -> Any:
        """The bytes of ``value``, C-contiguous: an array or ``bytes``; they are copied."""

    @abstractmethod
    def view(self, form: Any, data: Any, origin: Any) -> Any:
        """The value of this form and origin whose bytes are ``data``, a ``torch.uint8`` tensor
        ``[num_bytes]`` on the engine's device, which is the value's own."""

    def identity(self, form: Any, data: npt.NDArray[np.uint8]) -> bytes:
        """16 bytes that only values with this content share, asked of values with an origin.
        ``data``: the bytes, uint8 ``[num_bytes]``."""
        state = blake2b(repr((self.name, form)).encode(), digest_size=16)
        state.update(np.ascontiguousarray(data).data)
        return state.digest()

    def origin(self, value: Any) -> Any:
        """Where ``value`` can be read again; ``None``: nowhere, losing it is fatal."""
        return None

    def reread(self, origin: Any) -> Any:
        """The value at ``origin``, with the content of before. A kind that gives origins has
        one; this one raises ``NotImplementedError``."""
        raise NotImplementedError(f"kind {self.name!r} gives origins, and has no reread()")

    def reread_s(self, origin: Any) -> float | None:
        """The seconds that ``reread`` and ``pack`` take; ``None``: as reads have taken so far."""
        return None

    def sample(self, rng: random.Random) -> Any:
        """A random value, drawn from ``rng``, for ``scalesim check kind``. Raises
        ``NotImplementedError`` unless the kind has one."""
        raise NotImplementedError(f"kind {self.name!r} has no sample(): it gives random values")


class ValueForm(NamedTuple):
    """What makes a value of the bytes in pages again: ``num_bytes`` of them, the ``kind`` of value,
    its ``form`` and ``origin``; with an origin, the ``digest`` of its content."""

    num_bytes: int
    kind: str
    form: Any
    origin: Any = None
    digest: bytes = b""


def stored_form(
    num_bytes: int, kind: str, form: Any, origin: Any = None, digest: bytes = b""
) -> ValueForm:
    """The form of a value in a snapshot, which has lists for tuples."""
    return ValueForm(int(num_bytes), kind, plain(form, "form"), plain(origin, "origin"), digest)


class Packed(NamedTuple):
    """A value in pages: ``rows``, uint8 ``[num_pages, page_bytes]``, a copy."""

    form: ValueForm
    rows: Bytes2D


def packed(kind: StateKind, value: Any, page_bytes: int) -> Packed:
    """``value`` of ``kind`` in pages. Everything that the kind says is checked here, on its
    caller's thread. Raises ``StateError`` where ``value`` is of another kind, or the kind packs no
    bytes, tells another size than it packs, gives a form or an origin that is not plain, an origin
    without a ``reread``, or no identity."""
    given_form = kind.form(value)
    if given_form is None:
        raise StateError(f"{shown(value)} is no value of kind {kind.name!r}: its form() is None")
    form = plain(given_form, f"form of kind {kind.name!r}")
    data = _bytes_of(kind.pack(value), kind.name)
    told = whole(f"num_bytes() of kind {kind.name!r}", kind.num_bytes(form), 0, error=StateError)
    if told != len(data):
        raise StateError(
            f"kind {kind.name!r} packs {len(data)} bytes of a value of form {shown(form)}, for "
            f"which num_bytes() tells {told}"
        )
    origin = plain(kind.origin(value), f"origin of kind {kind.name!r}")
    found = Packed(ValueForm(told, kind.name, form, origin), in_rows(data, page_bytes))
    if origin is None:
        return found
    if type(kind).reread is StateKind.reread:
        raise StateError(
            f"kind {kind.name!r} gives the origin {shown(origin)}, and has no reread(): write it, "
            "or give no origin"
        )
    return found._replace(form=found.form._replace(digest=digest_of(kind, found)))


def digest_of(kind: StateKind, value: Packed) -> bytes:
    """The identity of a value in pages. Raises ``StateError`` unless it has 16 bytes."""
    data = value.rows.reshape(-1)[: value.form.num_bytes]
    digest = kind.identity(value.form.form, data)
    if not isinstance(digest, bytes) or len(digest) != IDENTITY_BYTES:
        raise StateError(
            f"identity() of kind {kind.name!r} gives {shown(digest)}: give {IDENTITY_BYTES} bytes"
        )
    return digest


def _bytes_of(given: Any, kind: str) -> npt.NDArray[np.uint8]:
    """The bytes of what ``pack`` gave, uint8 ``[num_bytes]``."""
    try:
        if isinstance(given, np.ndarray):
            return np.ascontiguousarray(given).reshape(-1).view(np.uint8)
        return np.frombuffer(given, np.uint8)
    except (TypeError, ValueError) as error:
        raise StateError(
            f"pack() of kind {kind!r} gives {shown(given)}: give bytes or an array of numbers "
            f"({error})"
        ) from error


def in_rows(data: npt.NDArray[np.uint8], page_bytes: int) -> Bytes2D:
    """``data``, uint8 ``[num_bytes]``, as rows of pages, uint8 ``[num_pages, page_bytes]``: at
    least one, the last filled up with zeros."""
    rows = np.zeros((num_pages_of(len(data), page_bytes), page_bytes), np.uint8)
    rows.reshape(-1)[: len(data)] = data
    return rows


def num_pages_of(num_bytes: int, page_bytes: int) -> int:
    """The pages that a value of ``num_bytes`` takes: one at least."""
    return max(1, -(-num_bytes // page_bytes))


def plain(value: Any, what: str, depth: int = MAX_DEPTH) -> Any:
    """``value`` with lists as tuples, and NumPy's numbers as Python's. Raises ``StateError`` unless
    it is plain."""
    if isinstance(value, (list, tuple)) and depth > 0:
        return tuple(plain(part, what, depth - 1) for part in value)
    found = value.item() if isinstance(value, np.generic) else value
    if not _is_plain(found):
        raise StateError(
            f"{what} has {shown(value)}: give texts, finite numbers of at most {MAX_BITS} bits, "
            f"booleans, None, and tuples of those, at most {MAX_DEPTH} deep"
        )
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return value.bit_length() <= MAX_BITS
    return value is None or isinstance(value, str)


@dataclass(frozen=True)
class OriginSource(PageSource):
    """A page source: the value of ``form`` at its origin, as long as its content has not changed.
    ``named`` finds the kind; ``error`` and ``again`` are what is raised for a change, and what to
    do then. ``read_s`` is as the kind told it."""

    form: ValueForm
    page_bytes: int
    named: Callable[[str], StateKind]
    read_s: float | None = None
    is_far: bool = False
    error: type[ScaleSimError] = StateError
    again: str = "assign it again"

    def read(self) -> Bytes2D:
        kind, origin = self.named(self.form.kind), self.form.origin
        found = packed(kind, kind.reread(origin), self.page_bytes)
        if (found.form.digest or digest_of(kind, found)) != self.form.digest:
            raise self.error(f"{kind.name} {origin} changed since it was added; {self.again}")
        return found.rows
