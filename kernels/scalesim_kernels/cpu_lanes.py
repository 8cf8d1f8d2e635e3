"""Vectors of floats as types of numba's, which the compiled CPU kernels are written in: ``lanes``
of eight, and ``wide``, as many as a register of this processor holds.

Every operation here is an IEEE operation on each lane, in the order of the source: numba is given
no freedom to reorder sums (no fast-math), and a multiplication joins an addition only in ``fma``.
So the bits of a result follow from the source and from the inputs, on every processor, and two
kernels that name the same operations agree. What adds lanes up has eight of them, whatever the
processor; wide vectors are for work in which no lane meets another. Eight lanes fill a register of
AVX2; on others the compiler uses half a register, or several.

Numba caches what it compiled beside the file that has the kernel, and notices changes of that file
alone: after a change here, touch the files whose kernels are made of these.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

WIDTH = 8
WIDE = 16 if "+avx512f" in (config.CPU_FEATURES or get_host_cpu_features()) else WIDTH
LINE = 16  # elements of a cache line
PANEL = 64  # columns of a matrix that lie together
SHIFT = 4  # of increments that are fractions of an element
FLOAT, INT16, INT32, INT64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
VECTOR, INTS = ir.VectorType(FLOAT, WIDTH), ir.VectorType(INT32, WIDTH)


class Lanes(types.Type):
    """The type of ``width`` floats."""

    def __init__(self, width: int) -> None:
        super().__init__(name=f"Lanes{width}")
        self.width = width


lanes, wide = Lanes(WIDTH), Lanes(WIDE)  # one type, where the widths are equal


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """A vector is one value of LLVM."""

    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, ir.VectorType(FLOAT, kind.width))


def splat(builder: Any, scalar: Any, kind: Any = VECTOR) -> Any:
    """``scalar`` in all lanes."""
    first = builder.insert_element(kind(ir.Undefined), scalar, INT32(0))
    return builder.shuffle_vector(first, first, same(0, kind.count))


def constant(value: float, width: int = WIDTH) -> Any:
    return ir.Constant(ir.VectorType(FLOAT, width), [value] * width)


def same(value: int, width: int) -> Any:
    """The integer ``value`` in all lanes."""
    return ir.Constant(ir.VectorType(INT32, width), [value] * width)


def each_lane(builder: Any, name: str, *args: Any) -> Any:
    """LLVM's function ``name`` of floats, of vectors of one width."""
    kind = args[0].type
    return call(builder, f"llvm.{name}.v{kind.count}f32", kind, *args)


def element(context: Any, builder: Any, array: Any, index: Any, kind: Any) -> Any:
    """The address of element ``index`` of the one-dimensional contiguous ``array`` of ``kind``."""
    data = cgutils.create_struct_proxy(kind)(context, builder, array).data
    return builder.gep(data, [index])


def call(builder: Any, name: str, kind: Any, *args: Any) -> Any:
    """LLVM's function ``name`` of arguments that all have the type ``kind``."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * len(args)), name
    )
    return builder.call(function, args)


def widened(builder: Any, where: Any) -> Any:
    """The floats whose upper halves, bf16, are at ``where``."""
    kind = ir.VectorType(INT16, WIDTH)
    upper = builder.load(builder.bitcast(where, kind.as_pointer()), align=2, typ=kind)
    return builder.bitcast(builder.shl(builder.zext(upper, INTS), same(16, WIDTH)), VECTOR)


def ask_for(builder: Any, where: Any, closeness: int = 2) -> None:
    """Begin to read the cache line at ``where`` into the caches: 2 for all but the nearest, 3 for
    that too."""
    byte = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, INT32, INT32, INT32]),
        "llvm.prefetch.p0",
    )  # fmt: skip
    builder.call(function, [builder.bitcast(where, byte), INT32(0), INT32(closeness), INT32(1)])


def loading(kind: Lanes) -> Any:
    """The operation that takes a vector from an array."""

    @intrinsic
    def operation(typing: Any, array: Any, index: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            where = element(context, builder, args[0], args[1], signature.args[0])
            vector = context.get_value_type(kind)
            return builder.load(builder.bitcast(where, vector.as_pointer()), align=4, typ=vector)

        return kind(array, types.int64), build

    return operation


load, load_wide = loading(lanes), loading(wide)  # array[index:index + width]


@intrinsic
def load_upper(typing: Any, array: Any, index: Any) -> Any:
    """``array[index:index + width]`` of bf16, the upper halves of floats, as floats."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return widened(builder, element(context, builder, args[0], args[1], signature.args[0]))

    return lanes(array, types.int64), build


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """``array[index:index + width] = value``."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = element(context, builder, args[0], args[1], signature.args[0])
        builder.store(args[2], builder.bitcast(where, args[2].type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), build


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Begin to read ``array[index]`` into the caches."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ask_for(builder, element(context, builder, args[0], args[1], signature.args[0]), 3)
        return context.get_dummy_value()

    return types.void(array, types.int64), build


def filling(kind: Lanes) -> Any:
    """The operation that puts a number in all lanes."""

    @intrinsic
    def operation(typing: Any, value: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return splat(builder, args[0], context.get_value_type(kind))

        return kind(types.float32), build

    return operation


fill, fill_wide = filling(lanes), filling(wide)


@intrinsic
def spread(typing: Any, array: Any, index: Any) -> Any:
    """``array[index]`` in all lanes of a wide vector."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = element(context, builder, args[0], args[1], signature.args[0])
        return splat(builder, builder.load(where), context.get_value_type(wide))

    return wide(array, types.int64), build


def binary(name: str) -> Any:
    """The operation ``name`` of LLVM's builder, lane by lane."""

    @intrinsic
    def operation(typing: Any, a: Any, b: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, name)(*args)

        return a(a, a), build

    return operation


add, subtract, multiply, divide = (binary(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return each_lane(builder, "fma", *args)

    return a(a, a, a), build


@intrinsic
def larger(typing: Any, a: Any, b: Any) -> Any:
    """The larger of two, lane by lane; ``b`` where either is NaN."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, a), build


@intrinsic
def within(typing: Any, firsts: Any, ends: Any, at: Any, j: Any, value: Any, other: Any) -> Any:
    """``value`` in the lanes whose ``firsts[at + lane] <= j < ends[at + lane]`` (int32), ``other``
    in the rest."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integers = ir.VectorType(INT32, args[4].type.count)
        first, end = (
            builder.load(
                builder.bitcast(
                    element(context, builder, args[i], args[2], signature.args[i]),
                    integers.as_pointer(),
                ),
                align=4, typ=integers,
            )
            for i in range(2)
        )  # fmt: skip
        now = splat(builder, builder.trunc(args[3], INT32), integers)
        inside = builder.and_(
            builder.icmp_signed("<=", first, now), builder.icmp_signed("<", now, end)
        )
        return builder.select(inside, args[4], args[5])

    return value(firsts, ends, types.int64, types.int64, value, value), build


@intrinsic
def only(typing: Any, first: Any, end: Any, value: Any, other: Any) -> Any:
    """``value`` in the lanes ``first:end``, ``other`` in those before and after."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        begin, stop = (splat(builder, builder.trunc(bound, INT32), INTS) for bound in args[:2])
        lane = ir.Constant(INTS, list(range(WIDTH)))
        inside = builder.and_(
            builder.icmp_signed(">=", lane, begin), builder.icmp_signed("<", lane, stop)
        )
        return builder.select(inside, args[2], args[3])

    return lanes(types.int64, types.int64, lanes, lanes), build


def fold(builder: Any, a: Any, b: Any, distance: int) -> Any:
    """Sums of lanes of ``a`` and ``b`` that are ``distance`` apart, within the parts of ``2 *
    distance`` lanes that were not yet folded; the sums of ``a`` stand before those of ``b``."""
    parts = [
        [
            start + side * distance + lane
            for start in range(0, 2 * WIDTH, 2 * distance)
            for lane in range(distance)
        ]
        for side in range(2)
    ]
    halves = [builder.shuffle_vector(a, b, ir.Constant(INTS, part)) for part in parts]
    return builder.fadd(*halves)


@intrinsic
def sums(typing: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """The sums of the lanes of eight vectors, a lane each: lanes four apart are added first, then
    two apart, then neighbours."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        level = list(args)
        for distance in (4, 2, 1):
            level = [
                fold(builder, first, second, distance)
                for first, second in zip(level[::2], level[1::2], strict=True)
            ]
        return level[0]

    return lanes(*[lanes] * WIDTH), build


@intrinsic
def lane(typing: Any, value: Any, index: Any) -> Any:
    """Lane ``index``."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], builder.trunc(args[1], INT32))

    return types.float32(value, types.int64), build


@njit(inline="always")
def total(value: Any) -> Any:
    """The sum of the lanes, in the order of ``sums``."""
    return lane(sums(value, value, value, value, value, value, value, value), 0)


@njit(inline="always")
def largest(value: Any) -> Any:
    """The largest lane."""
    result = lane(value, 0)
    for index in range(1, WIDTH):
        result = max(result, lane(value, index))
    return result


LOG2E, LN2_HIGH, LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
EXP_TERMS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
             1.6666665459e-1, 5.0000001201e-1)  # fmt: skip
EXP_LEAST, EXP_MOST = -87.3, 88.7
TANH_TERMS = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
              -3.33332819422e-1)  # fmt: skip
TANH_NEAR = 0.625


def polynomial(builder: Any, x: Any, terms: tuple[float, ...]) -> Any:
    width = x.type.count
    result = constant(terms[0], width)
    for term in terms[1:]:
        result = each_lane(builder, "fma", result, x, constant(term, width))
    return result


def exponential(builder: Any, x: Any) -> Any:
    """The exponential function, good to two units in the last place: a power of two times a
    polynomial of the remainder (S. L. Moshier's coefficients, Cephes). 0 below ``EXP_LEAST``,
    infinity above ``EXP_MOST``; NaN stays."""
    kind, width = x.type, x.type.count
    integers = ir.VectorType(INT32, width)

    def number(value: float) -> Any:
        return constant(value, width)

    low = builder.fcmp_ordered("<", x, number(EXP_LEAST))
    high = builder.fcmp_ordered(">", x, number(EXP_MOST))
    tame = builder.select(builder.or_(low, high), number(0.0), x)
    power = each_lane(builder, "rint", builder.fmul(tame, number(LOG2E)))
    remainder = each_lane(builder, "fma", power, number(-LN2_HIGH), tame)
    remainder = each_lane(builder, "fma", power, number(-LN2_LOW), remainder)
    square = builder.fmul(remainder, remainder)
    part = polynomial(builder, remainder, EXP_TERMS)
    part = each_lane(builder, "fma", part, square, builder.fadd(remainder, number(1.0)))
    finite = builder.fcmp_ordered("ord", x, x)
    whole = builder.fptosi(builder.select(finite, power, number(0.0)), integers)
    # In two steps, as 2**128 is no float.
    half = builder.ashr(whole, same(1, width))
    for exponent in (half, builder.sub(whole, half)):
        bits = builder.shl(builder.add(exponent, same(127, width)), same(23, width))
        part = builder.fmul(part, builder.bitcast(bits, kind))
    part = builder.select(low, number(0.0), part)
    return builder.select(high, number(float("inf")), part)


@intrinsic
def exp(typing: Any, x: Any) -> Any:
    """The exponential function; see ``exponential``."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return exponential(builder, args[0])

    return x(x), build


@intrinsic
def tanh(typing: Any, x: Any) -> Any:
    """The hyperbolic tangent: a polynomial near 0 (Cephes), ``1 - 2 / (exp(2 x) + 1)`` beyond."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (x,) = args
        width = x.type.count
        square = builder.fmul(x, x)
        cubic = builder.fmul(polynomial(builder, square, TANH_TERMS), builder.fmul(square, x))
        near = builder.fadd(cubic, x)
        grown = builder.fadd(exponential(builder, builder.fadd(x, x)), constant(1.0, width))
        far = builder.fsub(constant(1.0, width), builder.fdiv(constant(2.0, width), grown))
        size = each_lane(builder, "fabs", x)
        return builder.select(
            builder.fcmp_ordered("<", size, constant(TANH_NEAR, width)), near, far
        )

    return x(x), build


@intrinsic
def take_next(typing: Any, counter: Any) -> Any:
    """The number at ``counter``, which is one higher afterwards, whoever else counts meanwhile."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.bitcast(args[0], INT64.as_pointer())
        return builder.atomic_rmw("add", pointer, INT64(1), "monotonic")

    return types.int64(counter), build


def pointer(kind: Any, element: Any) -> Any:
    """The operation that takes an address for a pointer to elements, in LLVM ``element``."""

    @intrinsic
    def operation(typing: Any, address: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], element.as_pointer())

        return types.CPointer(kind)(types.int64), build

    return operation


floats, doubles = pointer(types.float32, FLOAT), pointer(types.float64, ir.DoubleType())
ints, longs = pointer(types.int32, INT32), pointer(types.int64, INT64)
octets, halves = pointer(types.uint8, ir.IntType(8)), pointer(types.uint16, INT16)
