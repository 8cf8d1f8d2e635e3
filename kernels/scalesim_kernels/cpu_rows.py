"""Matrix products on a CPU with row-independent bits, whatever the matrix library does.

A library chooses its kernel, and with it the order of summation, by the shape of a call, the
processor and the number of threads. So a row may have other bits among 512 rows than among 16: seen
in fp32 with the plain product on AVX-512 and with oneDNN's packed one on AVX, and with neither on
AVX2. Therefore rows are cut into parts of sizes that ``agreeing_sizes`` has tested: with these,
equal rows have equal bits at every place. The last part is padded to such a size. If not even 16
rows agree with themselves, each row is computed alone. ``scalesim doctor`` shows which sizes agree
on a machine.

A few rows are multiplied by a kernel of our own (``cpu_few_rows``) where numba is and where its
bits are the library's, which is asked too.

The only assumption is that the library repeats the bits of an identical call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, MutableMapping
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Product: TypeAlias = Callable[[Tensor], Tensor]
RowSizes: TypeAlias = tuple[int, ...]

BASE = 16  # rows that every other size has to agree with
ASKED = (1, 2, 4, 8, 12, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # in this order
AT_LEAST = 64  # sizes up to this are asked about whatever it costs
ALONE: RowSizes = (1,)
MULTIPLY_ADDS = 1 << 33  # a thread's, spent on asking about one shape: some tenths of a second
ALIGNMENT = 64  # bytes: of what torch allocates, and of every call here
SERIAL_ELEMENTS = 32768  # torch's grain: elementwise work of this size stays on one thread
FEW_ROWS = 64  # up to so many are multiplied by our own kernel; with more, the library is as fast
BLOCKS = (1024, 512, 256, 1 << 40)  # elements of a row that a library may add up on their own
SAMPLE_COLUMNS = 1024  # of the matrix that blocks are asked of
COMPARED = 1024  # results of each size, at least: fewer may agree by chance
PARTS = 8  # of a row; each has to count in the results
HAS_NUMBA = find_spec("numba") is not None


class Agreement(NamedTuple):
    """What was found about the products of one kind: the row counts that agree, and whether our own
    kernel has the same bits."""

    sizes: RowSizes
    few: bool = False


HAS_PACKED_LINEAR = all(
    hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
)
PACKED_FOR_ROWS = 64  # a hint to oneDNN; other row counts ran as fast

answers: dict[Hashable, Agreement] = {}  # of this process
blocks: dict[Hashable, int] = {}  # likewise


class RowProduct:
    """``product``, of ``[rows, width]`` for any number of rows, by calls of sizes that agree.

    kind : what decides the library's choice beside rows and threads: the function, the other
        operand's shape, dtype, strides and alignment. Products of one kind are asked about once.
    out : columns of the result; with the input's width, what asking costs.
    few : the same product by our own kernel, for a few rows, if there is one.
    """

    __slots__ = ("_answer", "_few", "_kind", "_out", "_product", "_threads")

    def __init__(
        self, product: Product, kind: Hashable, out: int, few: Product | None = None
    ) -> None:
        self._product, self._kind, self._out, self._few = product, kind, out, few
        self._answer, self._threads = Agreement(ALONE), 0

    def __call__(self, x: Tensor) -> Tensor:
        if self._threads != (threads := torch.get_num_threads()):
            self._answer, self._threads = self.ask(x.shape[1], x.dtype), threads
        num_rows, sizes = len(x), self._answer.sizes
        if self._few is not None and self._answer.few and 0 < num_rows <= FEW_ROWS:
            return self._few(x.contiguous())
        x = aligned(x)
        if num_rows in sizes or num_rows == 0:
            return self._product(x)
        parts, begin = [], 0
        for size in cover(sizes, num_rows):
            part = x[begin : begin + size]
            if len(part) < size:
                part = torch.cat((part, part[-1:].expand(size - len(part), -1)))
            parts.append(self._product(aligned(part)))
            begin += size
        return torch.cat(parts)[:num_rows]

    def ask(self, width: int, dtype: torch.dtype) -> Agreement:
        """What is known with torch's present number of threads; asked about if it was not yet."""
        threads = torch.get_num_threads()
        key = (self._kind, width, dtype, threads)
        if (known := answers.get(key)) is not None:
            return known
        most_rows = MULTIPLY_ADDS * threads // max(1, width * self._out)
        sizes = agreeing_sizes(self._product, width, dtype, most_rows)
        few = None if sizes == ALONE else self._few
        found = Agreement(sizes, few is not None and equal(self._product, few, width))
        if tells_rows_apart(self._product, width, dtype):
            answers[key] = found
        return found  # among zeros, all agree: that holds for this matrix alone


def aligned(x: Tensor) -> Tensor:
    """``x``, C-contiguous from where torch's own memory would begin."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % ALIGNMENT else x


def agreeing_sizes(product: Product, width: int, dtype: torch.dtype, most_rows: int) -> RowSizes:
    """Row counts, ``BASE`` among them, with which ``product`` gives equal rows equal bits; asked
    until ``most_rows`` are computed (but for ``AT_LEAST``). ``ALONE`` if ``BASE`` rows do not by
    themselves.

    A few results agree by chance, so rows are many where columns are few.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randn((BASE, width), generator=generator).to(dtype)
    base = product(first)
    num_rows = BASE * -(-COMPARED // base.numel())
    more = torch.randn((num_rows - BASE, width), generator=generator).to(dtype)
    rows = torch.cat((first, more))
    base = torch.cat((base, *(product(part) for part in torch.split(more, BASE))))

    def agrees(size: int, shift: int) -> bool:
        """Whether rows moved by ``shift`` places, over and over among ``size``, keep their bits."""
        needed = max(size, -(-COMPARED // base.shape[1]))
        order = (torch.arange(-(-needed // size) * size) - shift) % num_rows
        return all(
            torch.equal(product(rows[some]), base[some]) for some in torch.split(order, size)
        )

    if not all(agrees(BASE, shift) for shift in (1, 5, 11)):
        return ALONE
    found, spent = [BASE], 4 * num_rows
    for size in ASKED:
        spent += max(size, -(-COMPARED // base.shape[1]))
        if spent > most_rows and size > AT_LEAST:
            break
        if agrees(size, 5):
            found.append(size)
    return tuple(sorted(found))


def tells_rows_apart(product: Product, width: int, dtype: torch.dtype) -> bool:
    """Whether most results of ``product`` depend on every part of a row, so that what holds for
    them holds for other matrices of the same kind. It does not where the matrix is zero, as an
    adapter's often begins, or so sparse that there is hardly anything to add up."""
    row = torch.randn(width, generator=torch.Generator().manual_seed(3)).to(dtype)
    parts = row.new_zeros(1 + min(PARTS, width), width)
    shares = torch.arange(width).tensor_split(len(parts) - 1)
    for part, places in zip(parts[1:], shares, strict=True):
        part[places] = row[places]
    nothing, *found = product(parts)
    told = [(each != nothing) & (each - nothing).isfinite() for each in found]
    return bool(torch.stack(told).float().mean() > 0.5)


def equal(product: Product, few: Product, width: int) -> bool:
    """Whether ``few`` has the bits of ``product``."""
    rows = torch.randn((BASE, width), generator=torch.Generator().manual_seed(1))
    base = product(rows)
    return all(torch.equal(few(rows[:count]), base[:count]) for count in (1, 5, BASE))


@lru_cache(maxsize=4096)
def cover(sizes: RowSizes, num_rows: int) -> RowSizes:
    """Which of ``sizes`` to call, one after another, for so many rows; the largest first, so that
    each part begins at a multiple of 16 rows. The last may be larger than what is left."""
    if sizes == ALONE:
        return ALONE * num_rows
    parts: list[int] = []
    while num_rows > 0:
        fitting = [size for size in sizes if size <= num_rows and size % BASE == 0]
        size = fitting[-1] if fitting else next(size for size in sizes if size >= num_rows)
        parts.append(size)
        num_rows -= size
    return tuple(parts)


# -- linear layers -------------------------------------------------------------------------------


def pack_weight(weight: Tensor) -> Tensor:
    """oneDNN's blocked form, where torch has the ops that its own compiler uses for it.

    Measured on AVX2, two cores, a 20 M model, fp32: 0.6 of the plain product's time at 32 and 64
    rows, 0.9 at 1024.
    """
    if weight.dtype == torch.float32 and HAS_PACKED_LINEAR:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)
        return packed
    return weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The library's own, for plain and packed matrices; rows may depend on their number."""
    if weight.is_mkldnn:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


class MatrixProduct(NamedTuple):
    """The product with a matrix and this bias."""

    bias: Tensor | None
    multiply: RowProduct


products: MutableMapping[Tensor, MatrixProduct] = WeakTensorKeyDictionary()
"""The product with each matrix that was multiplied: making it takes longer than a small product."""


def steady_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear``, with rows that stand alone."""
    found: MatrixProduct | None = products.get(weight)
    if found is None or found.bias is not bias:
        made = product_with(weakref.ref(weight), weight, bias)
        found = products[weight] = MatrixProduct(bias, made)
    return found.multiply(x)


def linear_product(weight: Tensor, bias: Tensor | None = None) -> RowProduct:
    return product_with(lambda: weight, weight, bias)


def product_with(
    get: Callable[[], Tensor | None], weight: Tensor, bias: Tensor | None
) -> RowProduct:
    """The product with ``weight``, which ``get`` returns as long as the product is used."""

    def multiply(x: Tensor) -> Tensor:
        matrix = get()
        assert matrix is not None
        return linear(x, matrix, bias)

    where = 0 if weight.is_mkldnn else weight.data_ptr() % ALIGNMENT
    kind = ("linear", weight.is_mkldnn, weight.shape, weight.dtype, where, bias is None)
    few = few_rows(weight, bias) if HAS_NUMBA and weight.is_mkldnn else None
    return RowProduct(multiply, kind, weight.shape[0], few)


def few_rows(packed: Tensor, bias: Tensor | None) -> Product | None:
    """Our own kernel's product with a packed matrix, where it can be; the matrix outlives it."""
    from . import cpu_few_rows

    columns, where, block = len(packed), cpu_few_rows.panels(packed), block_of(packed)
    if where is None or block == 0:
        return None
    return partial(cpu_few_rows.product, columns=columns, where=where, bias=bias, block=block)


def block_of(packed: Tensor) -> int:
    """The first of ``BLOCKS`` with which our own kernel has the library's bits; 0 if there is none.

    Asked of a random matrix, since one that a model brings may be all zeros.
    """
    from . import cpu_few_rows

    columns, width = min(len(packed), SAMPLE_COLUMNS), packed.shape[1]
    key = columns, width, torch.get_num_threads()
    if key not in blocks:
        generator = torch.Generator().manual_seed(2)
        sample = pack_weight(torch.randn((columns, width), generator=generator))
        where = cpu_few_rows.panels(sample)
        blocks[key] = 0
        for block in BLOCKS:
            if where is None or blocks[key]:
                break
            ours = partial(
                cpu_few_rows.product, columns=columns, where=where, bias=None, block=block
            )
            if equal(partial(linear, weight=sample), ours, width):
                blocks[key] = block
    return blocks[key]


# -- elementwise work ----------------------------------------------------------------------------


def evenly(function: Callable[[Tensor], object], x: Tensor) -> None:
    """``function``, elementwise and in place, on the contiguous ``x``, of which a multiple of 64
    elements makes a row; a row's bits do not depend on the number of rows or threads.

    torch computes the end of each thread's range by another function than the rest, whose last bit
    differs. So ranges end where vectors do: a grain each, or a whole number of them.
    """
    flat = x.view(-1)
    together = torch.get_num_threads() * SERIAL_ELEMENTS
    whole = len(flat) // together * together
    if whole:
        function(flat[:whole])
    for part in torch.split(flat[whole:], SERIAL_ELEMENTS):
        function(part)
