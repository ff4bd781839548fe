"""Matrix products that are too small for a BLAS call: one step's recurrent product.

The output is cut into tiles of a few rows by a few vectors of columns. A tile's sums stay in
registers while the inner axis runs, so every loaded vector of the right-hand matrix serves all
rows and every broadcast number of the left-hand matrix serves all vectors.

    tile of rows x vectors:   sum[r][v] += a[row r, k] * b[k, vector v]     for k in 0 .. inner

``multiply_tile`` emits that loop for any (rows, vectors); ``multiply`` covers a matrix with it.
Matrices are given as a C-contiguous array, the flat index of their first element and the distance
between their rows, so that any block of columns or any strided set of rows is a matrix.
"""

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import types
from numba.extending import intrinsic

from .options import COMPILED, COMPILED_INTO_CALLERS
from .simd import VectorType, emit_fma, emit_load, emit_store, lanes_of, pointer, splat

_I64 = ir.IntType(64)


@intrinsic(prefer_literal=True)
def multiply_tile(
    typing,
    rows,
    vectors,
    a,
    a_index,
    a_row,
    b,
    b_index,
    b_row,
    inner,
    out,
    out_index,
    out_row,
    width,
):
    """out[:rows, :width] = a[:rows, :inner] @ b[:inner, :width], width at most vectors * lanes.

    Only the last of the vectors may be partly used; ``rows`` and ``vectors`` are constants.
    """
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(vectors, types.IntegerLiteral):
        return None
    vector = VectorType(b.dtype)
    R, V = rows.literal_value, vectors.literal_value

    def codegen(context, builder, signature, args):
        _, _, a_, ai, ar, b_, bi, br, inner_, out_, oi, orow, width_ = args
        int_type = ai.type
        last = builder.sub(width_, int_type((V - 1) * vector.lanes))  # lanes of the last vector

        def lanes(v):
            return last if v == V - 1 else int_type(vector.lanes)

        entry = builder.block
        head = builder.append_basic_block("inner")
        done = builder.append_basic_block("done")
        zero = ir.Constant(vector.llvm, [0.0] * vector.lanes)
        builder.branch(head)

        builder.position_at_end(head)
        k = builder.phi(int_type)
        sums = [[builder.phi(vector.llvm) for _ in range(V)] for _ in range(R)]
        b_k = builder.add(bi, builder.mul(k, br))
        columns = []
        for v in range(V):
            index = builder.add(b_k, int_type(v * vector.lanes))
            address = pointer(context, builder, b, b_, index)
            columns.append(emit_load(builder, vector, address, lanes(v)))
        new = []
        for r in range(R):
            index = builder.add(builder.add(ai, k), builder.mul(ar, int_type(r)))
            number = builder.load(pointer(context, builder, a, a_, index))
            factor = splat(builder, number, vector.llvm)
            new.append(
                [emit_fma(builder, vector, factor, columns[v], sums[r][v]) for v in range(V)]
            )
        k_next = builder.add(k, int_type(1))
        loop_end = builder.block
        builder.cbranch(builder.icmp_signed("<", k_next, inner_), head, done)

        k.add_incoming(int_type(0), entry)
        k.add_incoming(k_next, loop_end)
        builder.position_at_end(done)
        for r in range(R):
            for v in range(V):
                sums[r][v].add_incoming(zero, entry)
                sums[r][v].add_incoming(new[r][v], loop_end)
                row = builder.add(oi, builder.mul(orow, int_type(r)))
                index = builder.add(row, int_type(v * vector.lanes))
                address = pointer(context, builder, out, out_, index)
                emit_store(builder, vector, new[r][v], address, lanes(v))
        return context.get_dummy_value()

    i = types.intp
    return types.void(rows, vectors, a, i, i, b, i, i, i, out, i, i, i), codegen


@njit(**COMPILED_INTO_CALLERS)
def multiply(a, a_index, a_row, b, b_index, b_row, out, out_index, out_row, rows, inner, columns):
    """out (rows, columns) = a (rows, inner) @ b (inner, columns); inner is at least 1."""
    W = lanes_of(b)
    c = 0
    while c < columns:
        wide = columns - c >= 4 * W
        width = 4 * W if wide else min(W, columns - c)
        ai, bi, oi = a_index, b_index + c, out_index + c
        r = 0
        while r + 4 <= rows:
            if wide:
                multiply_tile(4, 4, a, ai, a_row, b, bi, b_row, inner, out, oi, out_row, width)
            else:
                multiply_tile(4, 1, a, ai, a_row, b, bi, b_row, inner, out, oi, out_row, width)
            ai, oi, r = ai + 4 * a_row, oi + 4 * out_row, r + 4
        while r < rows:
            if wide:
                multiply_tile(1, 4, a, ai, a_row, b, bi, b_row, inner, out, oi, out_row, width)
            else:
                multiply_tile(1, 1, a, ai, a_row, b, bi, b_row, inner, out, oi, out_row, width)
            ai, oi, r = ai + a_row, oi + out_row, r + 1
        c += width


@njit(**COMPILED)
def transpose(a):
    """A C-contiguous copy of a.T, block by block so that both sides stay in the cache."""
    rows, columns = a.shape
    out = np.empty((columns, rows), a.dtype)
    for r0 in range(0, rows, 16):
        for c0 in range(0, columns, 16):
            for c in range(c0, min(c0 + 16, columns)):
                for r in range(r0, min(r0 + 16, rows)):
                    out[c, r] = a[r, c]
    return out
