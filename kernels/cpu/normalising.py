"""Layer normalisation: what happens to normalised gates between the products and the cell.

The pre-activations of such gates are written to panels of their own and normalised there, some
rows at a time, which stay in the first cache; the cell finds them there, in both passes.

    normalised   gate k of ``Layout.normalised``, unit-panel u: panel k * (units + 1) + u;
                 the last of a gate's panels: 1 / deviation, in every lane

    forward      early_numbers -> standardise    (the same again with late_numbers, once the
                                                  operand is there)
    backward     denormalise: from the gradient by what the cell was given to that by what
                 ``*_numbers`` gave, in place

A row needs all of its units, so shards share such a cell's work by rows.
"""

from math import sqrt

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..layout import EPSILON
from .frames import arguments
from .lowering import (
    add_early_side,
    add_late_side,
    add_x_side,
    load_bias,
    store_early_numbers,
    store_late_numbers,
)
from .simd import (
    VECTOR_BYTES,
    MaskType,
    VectorType,
    emit_lanes_in_use,
    fma,
    lanes_of,
    load,
    splat,
    store,
    where,
)

# ---- pieces for a cell


def early_numbers(frame):
    """A piece: the pre-activations of the normalised gates that do not wait for the operand."""
    (
        units, H, rows, x_side, x_panel, e_side, e_panel, b, b_row, out, out_panel,
    ) = arguments(frame, 11)  # fmt: skip
    W = lanes_of(frame)
    for u in range(units):
        bias = load_bias(frame, b, b_row, u * VECTOR_BYTES, H * (VECTOR_BYTES // W), H - u * W)
        for n in range(rows):
            row = n * VECTOR_BYTES
            gates = add_x_side(frame, bias, x_side + u * x_panel + row, units * x_panel)
            gates = add_early_side(frame, gates, e_side + u * e_panel + row, units * e_panel)
            store_early_numbers(frame, gates, out + u * out_panel + row, (units + 1) * out_panel)


def late_numbers(frame):
    """A piece: those of the others, which the second product feeds, or the operand itself."""
    (
        units, H, rows, x_side, x_panel, l_side, l_panel, b, b_row, out, out_panel,
    ) = arguments(frame, 11)  # fmt: skip
    W = lanes_of(frame)
    for u in range(units):
        bias = load_bias(frame, b, b_row, u * VECTOR_BYTES, H * (VECTOR_BYTES // W), H - u * W)
        for n in range(rows):
            row = n * VECTOR_BYTES
            gates = add_x_side(frame, bias, x_side + u * x_panel + row, units * x_panel)
            gates = add_late_side(frame, gates, l_side + u * l_panel + row, units * l_panel)
            store_late_numbers(frame, gates, out + u * out_panel + row, (units + 1) * out_panel)


# ---- pieces for a dtype


def standardise(frame):
    """A piece: normalises the rows of some gates, in place."""
    start, panel, gates, units, H, rows = arguments(frame, 6)
    last, end = (units - 1) * panel, units * panel
    lanes = H - (units - 1) * lanes_of(frame)
    in_use, share = lanes_in_use(frame, lanes), 1.0 / H
    for gate in range(gates):
        first = start + gate * (end + panel)
        for row in range(first, first + rows * VECTOR_BYTES, VECTOR_BYTES):
            total = where(in_use, load(frame, row + last), 0.0)
            for p in range(0, last, panel):
                total = total + load(frame, row + p)
            mean = number(frame, sum_of_lanes(total) * share)
            # it was rounded as roughly as the numbers are: what it is off is taken off as well
            d = where(in_use, load(frame, row + last) - mean, 0.0)
            total, squares = d, d * d
            for p in range(0, last, panel):
                d = load(frame, row + p) - mean
                total, squares = total + d, fma(d, d, squares)
            off = number(frame, sum_of_lanes(total) * share)
            variance = sum_of_lanes(squares) * share - off * off
            factor = number(frame, 1.0 / sqrt((0.0 if variance < 0.0 else variance) + EPSILON))
            for p in range(0, last, panel):
                store((load(frame, row + p) - mean - off) * factor, row + p)
            d = where(in_use, load(frame, row + last) - mean - off, 0.0)
            store(d * factor, row + last)
            store(everywhere(frame, factor), row + end)


def denormalise(frame):
    """A piece: the gradients of a gate's rows, in place."""
    delta, delta_panel, given, panel, units, H, rows = arguments(frame, 7)
    last = units - 1
    in_use, share = lanes_in_use(frame, H - last * lanes_of(frame)), 1.0 / H
    for n in range(rows):
        d_row, row = delta + n * VECTOR_BYTES, given + n * VECTOR_BYTES
        d = where(in_use, load(frame, d_row + last * delta_panel), 0.0)
        total, along = d, d * load(frame, row + last * panel)
        for u in range(last):
            d = load(frame, d_row + u * delta_panel)
            total, along = total + d, fma(d, load(frame, row + u * panel), along)
        mean = number(frame, sum_of_lanes(total) * share)
        slope = number(frame, sum_of_lanes(along) * share)
        factor = load(frame, row + units * panel)
        for u in range(units):
            d, place = load(frame, row + u * panel), d_row + u * delta_panel
            store(factor * (load(frame, place) - mean - d * slope), place)


# ---- across lanes


@intrinsic
def lanes_in_use(typing, frame, lanes):
    """The first ``lanes`` lanes."""
    vector = VectorType(frame.dtype)

    def codegen(context, builder, signature, args):
        return emit_lanes_in_use(builder, vector, args[1])

    return MaskType(vector.lanes)(frame, types.int64), codegen


@intrinsic
def sum_of_lanes(typing, value):
    """The sum of a vector's numbers; added up in pairs, always the same ones."""

    def codegen(context, builder, signature, args):
        total, distance = args[0], value.lanes // 2
        while distance:
            order = [lane ^ distance for lane in range(value.lanes)]
            order = ir.Constant(ir.VectorType(ir.IntType(32), value.lanes), order)
            other = builder.shuffle_vector(total, ir.Constant(total.type, ir.Undefined), order)
            total, distance = builder.fadd(total, other), distance // 2
        return builder.extract_element(total, ir.IntType(32)(0))

    return value.dtype(value), codegen


@intrinsic
def everywhere(typing, frame, value):
    """The number in every lane."""
    vector = VectorType(frame.dtype)

    def codegen(context, builder, signature, args):
        return splat(builder, args[1], vector.llvm)

    return vector(frame, value), codegen


@intrinsic
def number(typing, frame, value):
    """A number, rounded to the frame's dtype."""

    def codegen(context, builder, signature, args):
        return context.cast(builder, args[1], value, frame.dtype)

    return frame.dtype(frame, value), codegen
