"""Blocks of products as operations of numba's, which keep their sums in registers."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .cpu_lanes import (
    INT64,
    LINE,
    PANEL,
    SHIFT,
    VECTOR,
    WIDE,
    WIDTH,
    ask_for,
    constant,
    each_lane,
    splat,
    wide,
    widened,
)


def products(rows: int, vectors: int) -> Any:
    """The operation that adds to ``sums`` the products of ``rows`` rows of ``x``, each ``width``
    elements long, with ``vectors`` vectors of a panel of ``weights``, over ``count`` elements of
    the rows. A sum takes its products one after another. Weights are fp32, or bf16 as uint16.

    Meanwhile the floats of ``following`` are asked for: a line or more each element, from ``n_at``
    on, at places that are ``pace`` sixteenths of a float apart.
    """

    @intrinsic
    def operation(
        typing: Any, x: Any, x_at: Any, width: Any, weights: Any, w_at: Any, count: Any,
        following: Any, n_at: Any, pace: Any, sums: Any, s_at: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            arrays = {
                name: cgutils.create_struct_proxy(kinds[index])(context, builder, args[index]).data
                for name, index in (("x", 0), ("weights", 3), ("following", 6), ("sums", 9))
            }
            x_at, width, w_at, count, n_at, pace, s_at = (args[i] for i in (1, 2, 4, 5, 7, 8, 10))

            def place(name: str, index: Any) -> Any:
                return builder.gep(arrays[name], [index])

            def vector(name: str, index: Any) -> Any:
                return builder.bitcast(place(name, index), VECTOR.as_pointer())

            def sum_at(row: int, part: int) -> Any:
                return vector("sums", builder.add(s_at, INT64(row * PANEL + part * WIDTH)))

            places = [(row, part) for row in range(rows) for part in range(vectors)]
            kept = {}
            for where in places:
                kept[where] = cgutils.alloca_once(builder, VECTOR)
                builder.store(builder.load(sum_at(*where), align=4, typ=VECTOR), kept[where])
            with cgutils.for_range(builder, count) as loop:
                passed = builder.ashr(builder.mul(loop.index, pace), INT64(SHIFT))
                for line in range(0, vectors * WIDTH, LINE):
                    ahead = builder.add(n_at, builder.add(passed, INT64(line)))
                    ask_for(builder, place("following", ahead))
                now = builder.add(w_at, builder.mul(loop.index, INT64(PANEL)))
                taken = []
                for part in range(vectors):
                    at = builder.add(now, INT64(part * WIDTH))
                    if kinds[3].dtype is types.uint16:
                        taken.append(widened(builder, place("weights", at)))
                    else:
                        taken.append(builder.load(vector("weights", at), align=4, typ=VECTOR))
                for row in range(rows):
                    index = builder.add(x_at, builder.mul(width, INT64(row)))
                    value = splat(builder, builder.load(place("x", builder.add(index, loop.index))))
                    for part in range(vectors):
                        total = builder.load(kept[row, part])
                        total = each_lane(builder, "fma", value, taken[part], total)
                        builder.store(total, kept[row, part])
            for where in places:
                builder.store(builder.load(kept[where]), sum_at(*where), align=4)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(
            x,
            integer,
            integer,
            weights,
            integer,
            integer,
            following,
            integer,
            integer,
            sums,
            integer,
        ), build

    return operation


def row_products(keys: int) -> Any:
    """The operation that stores the products of ``keys`` keys with as many rows as a wide vector
    has: ``scores[s_at + key * stride + row]``, of ``queries[q_at + i * stride + row]`` and
    ``layer[k_at + key * dim + i]``. A sum has eight parts, of every eighth element each, which are
    added in the order of ``sums``.
    """

    @intrinsic
    def operation(
        typing: Any, queries: Any, q_at: Any, stride: Any, layer: Any, k_at: Any, dim: Any,
        scores: Any, s_at: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = context.get_value_type(wide)
            q_at, stride, k_at, dim, s_at = (args[i] for i in (1, 2, 4, 5, 7))
            q, k, out = (
                cgutils.create_struct_proxy(signature.args[i])(context, builder, args[i]).data
                for i in (0, 3, 6)
            )
            parts = [
                [cgutils.alloca_once(builder, kind) for _ in range(WIDTH)] for _ in range(keys)
            ]
            for part in (part for parts_of_key in parts for part in parts_of_key):
                builder.store(constant(0.0, WIDE), part)
            with cgutils.for_range_slice(builder, INT64(0), dim, INT64(WIDTH)) as (i, _):
                for part in range(WIDTH):
                    at = builder.add(i, INT64(part))
                    where = builder.gep(q, [builder.add(q_at, builder.mul(at, stride))])
                    rows = builder.load(
                        builder.bitcast(where, kind.as_pointer()), align=4, typ=kind
                    )
                    for key in range(keys):
                        where = builder.add(k_at, builder.add(builder.mul(dim, INT64(key)), at))
                        element = splat(builder, builder.load(builder.gep(k, [where])), kind)
                        total = builder.load(parts[key][part])
                        builder.store(
                            each_lane(builder, "fma", rows, element, total), parts[key][part]
                        )
            for key in range(keys):
                level = [builder.load(part) for part in parts[key]]
                while len(level) > 1:
                    half = len(level) // 2
                    level = [builder.fadd(level[n], level[n + half]) for n in range(half)]
                where = builder.gep(out, [builder.add(s_at, builder.mul(stride, INT64(key)))])
                builder.store(level[0], builder.bitcast(where, kind.as_pointer()), align=4)
            return context.get_dummy_value()

        number = types.int64
        return types.void(queries, number, number, layer, number, number, scores, number), build

    return operation
