"""e4m3 in the compiled CPU kernels: eight elements of a pool as lanes, and back. By integer
operations, since not every processor converts: exact, and the bits of ``float8.narrowed``.

What ``cpu_lanes`` says of numba's cache holds here too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cpu_lanes import INTS, VECTOR, WIDTH, call, constant, element, lanes
from .float8 import LARGEST

BYTE = ir.IntType(8)
BYTES = ir.VectorType(BYTE, WIDTH)
LEAST_NORMAL, LEAST = 2.0**-6, 2.0**-9
EXPONENT, MANTISSA = 23, 20  # bits of fp32 below its exponent; of them, those that e4m3 lacks
REBIAS = 127 - 7
TINY_BASE = LEAST * 2.0**EXPONENT  # the last bit of numbers from here on is LEAST


def ints(value: int) -> Any:
    return ir.Constant(INTS, [value] * WIDTH)


@intrinsic
def load_float8(typing: Any, array: Any, index: Any) -> Any:
    """``array[index:index + 8]``, bytes in e4m3, as floats."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = element(context, builder, args[0], args[1], signature.args[0])
        packed = builder.load(builder.bitcast(where, BYTES.as_pointer()), align=1, typ=BYTES)
        code = builder.zext(packed, INTS)
        size = builder.and_(code, ints(0x7F))
        bits = builder.add(builder.shl(size, ints(MANTISSA)), ints(REBIAS << EXPONENT))
        # Subnormal: as a mantissa of the least normal number, of which that is taken off.
        tiny = builder.icmp_unsigned("<", size, ints(1 << EXPONENT - MANTISSA))
        bits = builder.add(bits, builder.select(tiny, ints(1 << EXPONENT), ints(0)))
        base = builder.select(tiny, constant(LEAST_NORMAL), constant(0.0))
        value = builder.fsub(builder.bitcast(bits, VECTOR), base)
        broken = builder.icmp_unsigned("==", size, ints(0x7F))
        value = builder.select(broken, constant(float("nan")), value)
        sign = builder.shl(builder.and_(code, ints(0x80)), ints(24))
        return builder.bitcast(builder.or_(builder.bitcast(value, INTS), sign), VECTOR)

    return lanes(array, types.int64), build


@intrinsic
def store_float8(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """``array[index:index + 8] = value``, in bytes of e4m3."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = args[2]
        size = call(builder, f"llvm.fabs.v{WIDTH}f32", VECTOR, value)
        small = builder.fcmp_ordered("<", size, constant(LARGEST))
        size = builder.select(small, size, constant(LARGEST))
        bits = builder.bitcast(size, INTS)
        last = builder.and_(builder.lshr(bits, ints(MANTISSA)), ints(1))
        half = builder.add(ints((1 << MANTISSA - 1) - 1), last)  # ties go to even
        normal = builder.lshr(builder.add(bits, half), ints(MANTISSA))
        normal = builder.sub(normal, ints(REBIAS << EXPONENT - MANTISSA))
        raised = builder.bitcast(builder.fadd(size, constant(TINY_BASE)), INTS)
        tiny = builder.sub(raised, builder.bitcast(constant(TINY_BASE), INTS))
        below = builder.fcmp_ordered("<", size, constant(LEAST_NORMAL))
        code = builder.select(below, tiny, normal)
        sound = builder.fcmp_ordered("ord", value, value)
        code = builder.select(sound, code, ints(0x7F))
        sign = builder.lshr(builder.bitcast(value, INTS), ints(24))
        code = builder.or_(code, builder.and_(sign, ints(0x80)))
        where = element(context, builder, args[0], args[1], signature.args[0])
        pointer = builder.bitcast(where, BYTES.as_pointer())
        builder.store(builder.trunc(code, BYTES), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), build
