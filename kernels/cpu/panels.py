"""Matrices to panels (``gemm.py``) and back, and the sums of their columns."""

from typing import NamedTuple

from llvmlite import ir
from numba.core import types

from .kernel_abi import arguments, emits
from .simd import (
    VECTOR_BYTES,
    VectorType,
    emit_load_part,
    emit_store,
    lanes_of,
    load,
    load_part,
    store,
    store_part,
)

_I64 = ir.IntType(64)


class Packing(NamedTuple):
    """A matrix (rows, columns) to be packed, and where its panels begin; strides in bytes."""

    source: int
    source_row: int
    source_panel: int  # from W columns to the next (transposed: rows)
    rows: int
    columns: int
    to: int
    to_row: int
    to_panel: int


class Rounding(NamedTuple):
    """A matrix (rows, columns), or its panels, and where its rows go as words of fewer bits."""

    source: int
    source_row: int
    source_panel: int
    rows: int
    columns: int
    to: int
    to_row: int
    to_panel: int  # from W words to the next
    scale: int  # where the first row's scale goes, ``to_row`` apart; 0: nowhere
    bounded: int  # whether the numbers are known to lie between -1 and 1


class Unpacking(NamedTuple):
    """Panels, and the matrix (rows, columns) that they become."""

    source: int
    source_row: int
    source_panel: int
    rows: int
    columns: int
    to: int
    to_row: int


class ColumnSums(NamedTuple):
    """A matrix (rows, columns) or its panels, and where the sum of each column goes."""

    source: int
    row: int  # bytes from one row to the next
    panel: int  # bytes from W columns to the next
    rows: int
    columns: int
    out: int
    add: int  # whether it is added to what is there


def pack(ctx):
    """A kernel: panels of a matrix; padding is zero."""
    p = arguments(ctx, Packing)
    W = lanes_of(ctx)
    for start in range(0, p.rows, 8):  # few rows at a time: their lines stay in the cache
        for panel in range((p.columns + W - 1) // W):
            source, to = p.source + panel * p.source_panel, p.to + panel * p.to_panel
            for r in range(start, min(start + 8, p.rows)):
                numbers = load_part(ctx, source + r * p.source_row, p.columns - panel * W)
                store(ctx, numbers, to + r * p.to_row)


def unpack(ctx):
    """A kernel: a matrix from its panels."""
    p = arguments(ctx, Unpacking)
    W = lanes_of(ctx)
    for panel in range((p.columns + W - 1) // W):
        source, to = p.source + panel * p.source_panel, p.to + panel * VECTOR_BYTES
        for r in range(p.rows):
            numbers = load(ctx, source + r * p.source_row)
            store_part(ctx, numbers, to + r * p.to_row, p.columns - panel * W)


def pack_transposed(ctx):
    """A kernel: panels of the transpose of a matrix, without gaps in them; padding is zero."""
    p = arguments(ctx, Packing)
    W = lanes_of(ctx)
    for panel in range((p.rows + W - 1) // W):
        for start in range(0, p.columns, W):
            square = p.source + panel * p.source_panel + start * (VECTOR_BYTES // W)
            place = p.to + panel * p.to_panel + start * VECTOR_BYTES
            rows, columns = p.rows - panel * W, p.columns - start
            transpose(ctx, square, p.source_row, rows, place, columns)


def column_sums(ctx):
    """A kernel: ``ColumnSums``."""
    p = arguments(ctx, ColumnSums)
    W = lanes_of(ctx)
    for k in range((p.columns + W - 1) // W):
        panel, out, lanes = p.source + k * p.panel, p.out + k * VECTOR_BYTES, p.columns - k * W
        total = load_part(ctx, out, lanes * p.add)
        for start in range(0, p.rows, 32):  # the sum of a few rows is added to that of the others
            part = load_part(ctx, out, 0)
            for r in range(start, min(start + 32, p.rows)):
                part = part + load_part(ctx, panel + r * p.row, lanes)
            total = total + part
        store_part(ctx, total, out, lanes)


@emits(types.void)
def transpose(builder, ctx, source, source_row, rows, to, columns):
    """A square of W rows (as far as there are that many) and W columns, transposed."""
    vector = VectorType(ctx.dtype)

    def load_line(place, lanes):
        return emit_load_part(builder, vector, place, lanes)

    emit_transpose(builder, vector, load_line, source, source_row, rows, to, columns, columns)


def emit_transpose(builder, vector, load_line, source, source_row, rows, to, columns, lines_out):
    """A square of W lines, transposed; ``lines_out`` of the result are stored (LLVM level).

    load_line(place, lanes) is a line as a vector, whose numbers of the source are so many. Log2(W)
    rounds, each of which swaps halves, quarters ... between pairs of rows.
    """
    W = vector.lanes
    lines = []
    for r in range(W):
        exists = builder.icmp_signed("<", _I64(r), rows)
        lanes = builder.select(exists, columns, _I64(0))
        lines.append(load_line(builder.add(source, builder.mul(source_row, _I64(r))), lanes))
    distance = W // 2
    while distance:
        index = ir.VectorType(ir.IntType(32), W)
        low = [k if not k & distance else W + k - distance for k in range(W)]
        high = [k + distance if not k & distance else W + k for k in range(W)]
        new = list(lines)
        for r in range(W):
            if not r & distance:
                pair = lines[r], lines[r + distance]
                new[r] = builder.shuffle_vector(*pair, ir.Constant(index, low))
                new[r + distance] = builder.shuffle_vector(*pair, ir.Constant(index, high))
        lines, distance = new, distance // 2
    for r in range(W):
        with builder.if_then(builder.icmp_signed("<", _I64(r), lines_out), likely=True):
            emit_store(builder, vector, lines[r], builder.add(to, _I64(r * VECTOR_BYTES)))
