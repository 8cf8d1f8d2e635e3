"""Eight floats as a type of numba's: the vectors that the compiled CPU kernels are written in.

Every operation here is an IEEE operation on each lane, in the order of the source: numba is given
no freedom to reorder sums (no fast-math), and a multiplication joins an addition only in ``fma``.
So the bits of a result follow from the source and from the inputs, on every processor, and two
kernels that name the same operations agree. Eight lanes fill a register of AVX2; on others the
compiler uses half a register, or several.

Numba caches what it compiled beside the file that has the kernel, and notices changes of that file
alone: after a change here, touch ``cpu_compiled.py``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

WIDTH = 8
LINE = 16  # elements of a cache line
PANEL = 64  # columns of a matrix that lie together
AHEAD = 32  # steps of a product: the memory's latency, at its full rate
FLOAT, INT32, INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VECTOR, INTS = ir.VectorType(FLOAT, WIDTH), ir.VectorType(INT32, WIDTH)


class Lanes(types.Type):
    """The type of eight floats."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes = Lanes()


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """Eight floats are one value of LLVM."""

    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, VECTOR)


def splat(builder: Any, scalar: Any, kind: Any = VECTOR) -> Any:
    """``scalar`` in all lanes."""
    first = builder.insert_element(kind(ir.Undefined), scalar, INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(INTS, [0] * WIDTH))


def constant(value: float) -> Any:
    return ir.Constant(VECTOR, [value] * WIDTH)


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


def ask_for(builder: Any, where: Any) -> None:
    """Begin to read the cache line at ``where`` into the caches."""
    byte = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, INT32, INT32, INT32]),
        "llvm.prefetch.p0",
    )  # fmt: skip
    builder.call(function, [builder.bitcast(where, byte), INT32(0), INT32(3), INT32(1)])


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """``array[index:index + 8]``."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = element(context, builder, args[0], args[1], signature.args[0])
        pointer = builder.bitcast(where, VECTOR.as_pointer())
        return builder.load(pointer, align=4, typ=VECTOR)

    return lanes(array, types.int64), build


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """``array[index:index + 8] = value``."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = element(context, builder, args[0], args[1], signature.args[0])
        builder.store(args[2], builder.bitcast(where, VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), build


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Begin to read ``array[index]`` into the caches."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ask_for(builder, element(context, builder, args[0], args[1], signature.args[0]))
        return context.get_dummy_value()

    return types.void(array, types.int64), build


@intrinsic
def fill(typing: Any, value: Any) -> Any:
    """``value`` in all lanes."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return splat(builder, args[0])

    return lanes(types.float32), build


def binary(name: str) -> Any:
    """The operation ``name`` of LLVM's builder, lane by lane."""

    @intrinsic
    def operation(typing: Any, a: Any, b: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, name)(*args)

        return lanes(lanes, lanes), build

    return operation


add, subtract, multiply, divide = (binary(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call(builder, f"llvm.fma.v{WIDTH}f32", VECTOR, *args)

    return lanes(lanes, lanes, lanes), build


@intrinsic
def larger(typing: Any, a: Any, b: Any) -> Any:
    """The larger of two, lane by lane; ``b`` where either is NaN."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return lanes(lanes, lanes), build


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

    return types.float32(lanes, types.int64), build


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
    result = constant(terms[0])
    for term in terms[1:]:
        result = call(builder, f"llvm.fma.v{WIDTH}f32", VECTOR, result, x, constant(term))
    return result


def exponential(builder: Any, x: Any) -> Any:
    """The exponential function, good to two units in the last place: a power of two times a
    polynomial of the remainder (S. L. Moshier's coefficients, Cephes). 0 below ``EXP_LEAST``,
    infinity above ``EXP_MOST``; NaN stays."""

    def fused(a: Any, b: Any, c: Any) -> Any:
        return call(builder, f"llvm.fma.v{WIDTH}f32", VECTOR, a, b, c)

    low = builder.fcmp_ordered("<", x, constant(EXP_LEAST))
    high = builder.fcmp_ordered(">", x, constant(EXP_MOST))
    tame = builder.select(builder.or_(low, high), constant(0.0), x)
    power = call(builder, f"llvm.rint.v{WIDTH}f32", VECTOR, builder.fmul(tame, constant(LOG2E)))
    remainder = fused(power, constant(-LN2_HIGH), tame)
    remainder = fused(power, constant(-LN2_LOW), remainder)
    square = builder.fmul(remainder, remainder)
    part = fused(
        polynomial(builder, remainder, EXP_TERMS), square, builder.fadd(remainder, constant(1.0))
    )
    finite = builder.fcmp_ordered("ord", x, x)
    whole = builder.fptosi(builder.select(finite, power, constant(0.0)), INTS)
    # In two steps, as 2**128 is no float.
    half = builder.ashr(whole, ir.Constant(INTS, [1] * WIDTH))
    for exponent in (half, builder.sub(whole, half)):
        biased = builder.add(exponent, ir.Constant(INTS, [127] * WIDTH))
        bits = builder.shl(biased, ir.Constant(INTS, [23] * WIDTH))
        part = builder.fmul(part, builder.bitcast(bits, VECTOR))
    part = builder.select(low, constant(0.0), part)
    return builder.select(high, constant(float("inf")), part)


@intrinsic
def exp(typing: Any, x: Any) -> Any:
    """The exponential function; see ``exponential``."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return exponential(builder, args[0])

    return lanes(lanes), build


@intrinsic
def tanh(typing: Any, x: Any) -> Any:
    """The hyperbolic tangent: a polynomial near 0 (Cephes), ``1 - 2 / (exp(2 x) + 1)`` beyond."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (x,) = args
        square = builder.fmul(x, x)
        cubic = builder.fmul(polynomial(builder, square, TANH_TERMS), builder.fmul(square, x))
        near = builder.fadd(cubic, x)
        grown = builder.fadd(exponential(builder, builder.fadd(x, x)), constant(1.0))
        far = builder.fsub(constant(1.0), builder.fdiv(constant(2.0), grown))
        size = call(builder, f"llvm.fabs.v{WIDTH}f32", VECTOR, x)
        return builder.select(builder.fcmp_ordered("<", size, constant(TANH_NEAR)), near, far)

    return lanes(lanes), build


def products(rows: int, vectors: int) -> Any:
    """The operation that adds to ``sums`` the products of ``rows`` rows of ``x`` with ``vectors``
    vectors of ``weights``, over ``count`` steps: in each, every row has one element of ``x``, and
    ``step`` elements of ``weights`` pass by. A sum takes its products one after another. Its
    weights are asked for ``AHEAD`` steps before, up to the step ``last``."""

    @intrinsic
    def operation(
        typing: Any, x: Any, x_at: Any, width: Any, weights: Any, w_at: Any, step: Any, count: Any,
        last: Any, sums: Any, s_at: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            arrays = {
                name: cgutils.create_struct_proxy(kinds[index])(context, builder, args[index]).data
                for name, index in (("x", 0), ("weights", 3), ("sums", 8))
            }
            x_at, width, w_at, step, count, last, s_at = (args[i] for i in (1, 2, 4, 5, 6, 7, 9))

            def place(name: str, index: Any) -> Any:
                return builder.gep(arrays[name], [index])

            def vector(name: str, index: Any) -> Any:
                return builder.bitcast(place(name, index), VECTOR.as_pointer())

            def sum_at(row: int, part: int) -> Any:
                start = builder.add(s_at, builder.mul(step, INT64(row)))
                return vector("sums", builder.add(start, INT64(part * WIDTH)))

            places = [(row, part) for row in range(rows) for part in range(vectors)]
            kept = {}
            for where in places:
                kept[where] = cgutils.alloca_once(builder, VECTOR)
                builder.store(builder.load(sum_at(*where), align=4, typ=VECTOR), kept[where])
            with cgutils.for_range(builder, count) as loop:
                with builder.if_then(builder.icmp_signed(">=", last, INT64(0))):
                    soon = builder.add(loop.index, INT64(AHEAD))
                    soon = builder.select(builder.icmp_signed("<", soon, last), soon, last)
                    line = builder.add(w_at, builder.mul(soon, step))
                    for part in range(0, PANEL, LINE):
                        ask_for(builder, place("weights", builder.add(line, INT64(part))))
                now = builder.add(w_at, builder.mul(loop.index, step))
                taken = [
                    builder.load(
                        vector("weights", builder.add(now, INT64(part * WIDTH))),
                        align=4, typ=VECTOR,
                    )
                    for part in range(vectors)
                ]  # fmt: skip
                for row in range(rows):
                    index = builder.add(x_at, builder.mul(width, INT64(row)))
                    value = splat(builder, builder.load(place("x", builder.add(index, loop.index))))
                    for part in range(vectors):
                        total = builder.load(kept[row, part])
                        total = call(
                            builder, f"llvm.fma.v{WIDTH}f32", VECTOR, value, taken[part], total
                        )
                        builder.store(total, kept[row, part])
            for where in places:
                builder.store(builder.load(kept[where]), sum_at(*where), align=4)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(
            x, integer, integer, weights, integer, integer, integer, integer, sums, integer
        ), build

    return operation


@intrinsic
def take_next(typing: Any, counter: Any) -> Any:
    """The number at ``counter``, which is one higher afterwards, whoever else counts meanwhile."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.bitcast(args[0], INT64.as_pointer())
        return builder.atomic_rmw("add", pointer, INT64(1), "monotonic")

    return types.int64(counter), build


@intrinsic
def floats(typing: Any, address: Any) -> Any:
    """The address as a pointer to floats."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], FLOAT.as_pointer())

    return types.CPointer(types.float32)(types.int64), build


@intrinsic
def ints(typing: Any, address: Any) -> Any:
    """The address as a pointer to int32s."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], INT32.as_pointer())

    return types.CPointer(types.int32)(types.int64), build
