"""Rows of members that differ in length (``ragged_rows.py``), in compiled code."""

from .kernel_abi import arguments, jitted, load_i64, record
from .parallel_for import Items
from .ragged_rows import Moving
from .simd import VECTOR_BYTES, lanes_of, load_part, store_part

_read_moving = record(Moving)


@jitted
def _place(p, row, t):
    """Where the caller has a row, which is of step t."""
    n = row - load_i64(p.firsts, t)
    return p.array + load_i64(p.members, n) + t * p.time


@jitted
def _step_of(p, row, t):
    """The step of a row, from one that is not later."""
    while load_i64(p.firsts, t + 1) <= row:
        t += 1
    return t


@jitted
def _copy(ctx, source, to, columns):
    W = lanes_of(ctx)
    for k in range(0, columns, W):
        skip = k * VECTOR_BYTES // W
        store_part(ctx, load_part(ctx, source + skip, columns - k), to + skip, columns - k)


def pack_rows(ctx):
    """A kernel: some rows of ``Moving``, from the caller's array."""
    items = arguments(ctx, Items)
    p, t = _read_moving(items.given), 0
    for row in range(items.begin, items.end):
        t = _step_of(p, row, t)
        _copy(ctx, _place(p, row, t), p.rows + row * p.row, p.columns)


def unpack_rows(ctx):
    """A kernel: some rows of ``Moving``, to the caller's array."""
    items = arguments(ctx, Items)
    p, t = _read_moving(items.given), 0
    for row in range(items.begin, items.end):
        t = _step_of(p, row, t)
        _copy(ctx, p.rows + row * p.row, _place(p, row, t), p.columns)
